"""Makes ``gguf_metadata.json``: what llama.cpp's own converter writes for Gemmas.

They are a tiny one of every kind, and the sample Gemma 3 270M as a folder. Nothing of gemquant
decides what is recorded: its tests only write the folders, llama.cpp's ``convert_hf_to_gguf.py``
converts them, and the ``gguf`` package reads the results. Made with llama.cpp 0c1e57098 (its source
is in PyPI's llama-cpp-python 0.3.36, folder vendor/llama.cpp), torch 2.13.0, transformers 5.23.0,
sentencepiece 0.2.3, gguf 0.19.0; the tiny ones come out the same with transformers 4.57.6, which
that llama.cpp pins:

    PYTHONPATH=. python tests/golden/make_gguf_metadata.py LLAMA_CPP_FOLDER PYTHON_FOR_THE_CONVERTER

Arrays and tensors are recorded as SHA-256 of their little-endian bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderField

from tests.helpers.sample_folder import write_sample_folder
from tests.helpers.tiny_gemma import GEMMA4, KINDS
from tests.helpers.tiny_sentencepiece import Layout, tiny_sentencepiece, write_convertible_gemma

OUTPUT = Path(__file__).with_name("gguf_metadata.json")
LLAMA_CPP = "0c1e57098"


def main() -> None:
    converter, python = Path(sys.argv[1]) / "convert_hf_to_gguf.py", sys.argv[2]
    converted: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = {kind: write_convertible_gemma(root, kind) for kind in (*KINDS, *GEMMA4)}
        folders["sample"] = write_sample_folder(root / "gemma-3-270m")
        for kind, folder in folders.items():
            file = root / f"{kind}.gguf"
            subprocess.run(
                [python, converter, folder, "--outfile", file, "--outtype", "bf16"], check=True
            )
            converted[kind] = recorded(file)
    layouts: tuple[Layout, ...] = ("gemma", "gemma3")
    digests = {of: hashlib.sha256(tiny_sentencepiece(of)).hexdigest() for of in layouts}
    content = {"llama.cpp": LLAMA_CPP, "tokenizer.model": digests, **converted}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # One entry a line.
    text = re.sub(r"\n {4,}(?=\S)|\n {3}(?=\],?\n)", "", text)
    OUTPUT.write_text(text + "\n", encoding="utf-8")


def recorded(file: Path) -> dict[str, Any]:
    """Metadata as [key, types, value], and tensors as [name, shape, type, sha256], in order."""
    reader = GGUFReader(file)
    return {
        "metadata": [
            [field.name, "/".join(kind.name for kind in field.types[:2]), value(field)]
            for field in reader.fields.values()
            if not field.name.startswith("GGUF.")
        ],
        "tensors": [
            [
                tensor.name,
                [int(size) for size in reversed(tensor.shape)],
                tensor.tensor_type.name,
                hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
            ]
            for tensor in reader.tensors
        ],
    }


def value(field: ReaderField) -> Any:
    if field.types[0] != GGUFValueType.ARRAY:
        return field.contents()
    contents = field.contents()
    if field.types[1] == GGUFValueType.STRING:
        if len(contents) < 20:
            return contents
        data = b"".join(
            len(text.encode()).to_bytes(8, "little") + text.encode() for text in contents
        )
    else:
        data = b"".join(field.parts[index].tobytes() for index in field.data)
    return {"count": len(contents), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    main()
