"""Quantize a Gemma with llm-compressor's AWQ: the other side of `ci/bench/peer`.

Runs under the interpreter of llm-compressor's own environment and imports nothing of gemquant.

Input, the only argument: a JSON file with

    model        folder of a bfloat16 safetensors checkpoint with its tokenizer
    tokens       safetensors file with `input_ids`, int64 (windows, seq_len)
    threads      threads for torch
    batch_size   windows per forward pass
    duo_scaling  AWQModifier's option: true, false or "both"
    out          folder for the artifact

Output: the last line on stdout, JSON with the seconds of every phase and the versions. Whatever the
libraries say while they work goes to stderr.

    load       weights and tokenizer into memory
    oneshot    the whole `oneshot` call: calibration passes, scale search, rounding parameters
    compress   `ModelCompressor.compress_model`: rounding to codes and packing
    save       the rest of `save_pretrained`: writing files

The recipe is the one that the library's AWQModifier documents: AWQModifier with its own mappings
for the architecture (Gemma 3: gate/up and down; o_proj where shapes agree; q/k/v left out), then
QuantizationModifier, W4A16_ASYM (4 bits, groups of 128, zero points), `lm_head` left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors import ModelCompressor
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

LIBRARIES = ("llmcompressor", "compressed-tensors", "torch", "transformers")


class Phases:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add what happens inside to a phase."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed

    def timing(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that every call counts towards a phase."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return function(*args, **kwargs)

        return wrapped


def batches(tokens: torch.Tensor, batch_size: int) -> DataLoader[Any]:
    """The windows in their order, as the batches that llm-compressor feeds to the model."""

    def collate(windows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.stack(windows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    windows: Any = list(tokens)  # a list does for a map-style data set
    return DataLoader(windows, batch_size=batch_size, shuffle=False, collate_fn=collate)


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job; return what goes onto the output line."""
    torch.set_num_threads(job["threads"])
    if not torch.accelerator.is_available():
        # Pinning pages speeds copies to an accelerator; without one torch refuses to pin.
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
    phases = Phases()
    with phases.timed("load"):
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokens = load_file(job["tokens"])["input_ids"]
    recipe = [
        AWQModifier(duo_scaling=job["duo_scaling"]),
        QuantizationModifier(targets=["Linear"], ignore=["lm_head"], scheme="W4A16_ASYM"),
    ]
    with phases.timed("oneshot"):
        oneshot(
            model=model,
            processor=tokenizer,
            recipe=recipe,
            dataset=batches(tokens, job["batch_size"]),
            num_calibration_samples=tokens.shape[0],
            max_seq_length=tokens.shape[1],
        )
    ModelCompressor.compress_model = phases.timing("compress", ModelCompressor.compress_model)
    with phases.timed("save"):
        model.save_pretrained(job["out"], save_compressed=True)
    phases.seconds["save"] -= phases.seconds.get("compress", 0.0)
    return {
        "seconds": phases.seconds,
        "mappings": [str(mapping) for mapping in recipe[0].mappings],
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def main() -> None:
    """Keep stdout for the result alone."""
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(Path(sys.argv[1]).read_text())
    answer = quantize(job)
    result.write(json.dumps(answer) + "\n")
    result.flush()


if __name__ == "__main__":
    main()
