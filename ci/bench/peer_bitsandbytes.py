"""Load a checkpoint with transformers, quantizing it by bitsandbytes, and save it: the usual way.

python peer_bitsandbytes.py FOLDER OUT nf4|fp4|int8
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def main(folder: str, out: str, kind: str) -> None:
    if kind == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
