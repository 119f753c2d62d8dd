"""Makes ``mmproj.json``: SHA-256 of the mmproj files that llama.cpp's own converter writes.

Of a tiny multimodal Gemma of every kind, which gemquant's tests write. Made with llama.cpp
0c1e57098 (its source is in PyPI's llama-cpp-python 0.3.36, folder vendor/llama.cpp), torch 2.13.0,
transformers 5.23.0, gguf 0.19.0:

    PYTHONPATH=. python tests/golden/make_mmproj.py LLAMA_CPP_FOLDER PYTHON_FOR_THE_CONVERTER
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.tiny_gemma import NESTED
from tests.helpers.tiny_multimodal import write_convertible_multimodal

OUTPUT = Path(__file__).with_name("mmproj.json")
TYPES = ("F16", "BF16", "Q8_0")


def main() -> None:
    converter, python = Path(sys.argv[1]) / "convert_hf_to_gguf.py", sys.argv[2]
    digests: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in NESTED:
            folder = write_convertible_multimodal(Path(name), kind)
            for wanted in TYPES:
                file = Path(name) / f"{kind}-{wanted}.gguf"
                flags = ["--mmproj", "--outtype", wanted.lower(), "--outfile", file]
                subprocess.run([python, converter, folder, *flags], check=True)
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                digests.setdefault(kind, {})[wanted] = digest
    OUTPUT.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
