"""Makes ``imatrix.gguf`` and ``imatrix.dat``: importance matrices that llama-imatrix wrote.

Both are of the same tiny Gemma 3 and text, in llama.cpp's two forms. npm has no llama-imatrix, but
its sources and the libraries that it links; made with llama.cpp v0.5.0 and g++ 12:

    npm install --prefix build/llama.cpp --ignore-scripts @node-llama-cpp/linux-x64@3.22.1
    npm pack node-llama-cpp@3.22.1 && tar xf node-llama-cpp-3.22.1.tgz
    git clone package/llama/gitRelease.bundle build/llama.cpp/source
    python tests/golden/make_imatrix.py
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from ci.bench.llama_quantize import FOLDER, LLAMA_CPP  # noqa: E402
from tests.helpers.tiny_gguf import write_tiny_gguf  # noqa: E402

SOURCE = ROOT / "build/llama.cpp/source"
OUTPUT = Path(__file__).parent
WORDS = "the of and to in is that for with as on it was by this are from not have be at".split()


def compiled(folder: Path, tool: str = "imatrix") -> Path:
    """One of llama.cpp's tools out of its own sources and the prebuilt libraries."""
    program = folder / f"llama-{tool}"
    headers = [f"-I{SOURCE / part}" for part in ("include", "ggml/include", "common", "vendor")]
    sources = map(str, sorted((SOURCE / "tools" / tool).glob("*.cpp")))
    linked = ["-l:libllama-common.so", f"-l:libllama.{LLAMA_CPP}.so"]
    linked += [f"-l:libggml.{LLAMA_CPP}.so", "-l:libggml-base.so"]
    subprocess.run(
        [
            "g++", "-O1", "-std=c++17", *headers, *sources,
            "-o", str(program), f"-L{FOLDER}", f"-Wl,-rpath,{FOLDER}", *linked,
        ],
        check=True,
    )  # fmt: skip
    return program


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        program = compiled(folder)
        write_tiny_gguf(folder / "model.gguf", "gemma3_text")
        words = random.Random(0).choices(WORDS, k=900)
        (folder / "text.txt").write_text(" ".join(words), encoding="utf-8")
        # The plain x86-64 build, so that every machine computes alike.
        environment = os.environ | {"GGML_BACKEND_PATH": str(FOLDER / "libggml-cpu-x64.so")}
        for form in ("gguf", "dat"):
            subprocess.run(
                [
                    str(program), "-m", "model.gguf", "-f", "text.txt", "-o", f"imatrix.{form}",
                    "--output-format", form, "-c", "64", "--no-ppl", "-t", "1",
                ],
                check=True,
                cwd=folder,
                env=environment,
            )  # fmt: skip
            (OUTPUT / f"imatrix.{form}").write_bytes((folder / f"imatrix.{form}").read_bytes())


if __name__ == "__main__":
    main()
