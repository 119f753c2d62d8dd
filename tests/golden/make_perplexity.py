"""Makes ``perplexity.json``: what llama.cpp's own llama-perplexity says of two tiny Gemmas.

Perplexity of a tiny Gemma 2 and 3, and the Kullback-Leibler divergence of the same with noise on
its linears, chunk by chunk. npm has no llama-perplexity, but its sources and the libraries that it
links, as for ``make_imatrix.py``; made with llama.cpp v0.5.0 and g++ 12:

    python tests/golden/make_perplexity.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from ci.bench.llama_quantize import FOLDER, LLAMA_CPP  # noqa: E402
from tests.golden.make_imatrix import compiled  # noqa: E402
from tests.helpers.tiny_perplexity import KINDS, WINDOW, text, write_models  # noqa: E402

OUTPUT = Path(__file__).parent / "perplexity.json"
NUMBER = r"(-?[\d.]+(?:e[-+]\d+)?)"


def said(program: Path, folder: Path, *arguments: str) -> str:
    """Run llama-perplexity, keys and values in float32, on the plain x86-64 build."""
    environment = os.environ | {"GGML_BACKEND_PATH": str(FOLDER / "libggml-cpu-x64.so")}
    command = [
        *(str(program), "-f", "text.txt", "-c", str(WINDOW), "-b", str(WINDOW), "-t", "1"),
        *("-ctk", "f32", "-ctv", "f32", "-fa", "off", *arguments),
    ]
    done = subprocess.run(
        command, check=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def figure(output: str, name: str) -> float:
    """A figure by the words before it."""
    found = re.search(rf"{re.escape(name)}\s*:?\s*{NUMBER}", output)
    if found is None:
        raise SystemExit(f"{name!r} is not in:\n{output}")
    return float(found[1])


def measured(program: Path, folder: Path) -> dict[str, Any]:
    """Perplexity of the original, and how far the noisy one diverges from it."""
    base = said(program, folder, "-m", "original.gguf", "--kl-divergence-base", "base.kld")
    noisy = said(
        *(program, folder, "-m", "noisy.gguf", "--kl-divergence-base", "base.kld"),
        "--kl-divergence",
    )
    chunks = re.findall(rf"\[\d+\]{NUMBER},", base)
    return {
        "perplexity_by_chunk": [float(value) for value in chunks],
        "perplexity": figure(base, "PPL ="),
        "kl_mean": figure(noisy, "Mean    KLD:"),
        "kl_max": figure(noisy, "Maximum KLD:"),
        "kl_p999": figure(noisy, "99.9%   KLD:"),
        "kl_p99": figure(noisy, "99.0%   KLD:"),
        "kl_median": figure(noisy, "Median  KLD:"),
        "top1": figure(noisy, "Same top p:") / 100,
        "perplexity_noisy": figure(noisy, "Mean PPL(Q)"),
    }


def main() -> None:
    content: dict[str, Any] = {"llama.cpp": LLAMA_CPP}
    with tempfile.TemporaryDirectory() as scratch:
        program = compiled(Path(scratch), "perplexity")
        for kind in KINDS:
            folder = Path(scratch) / kind
            folder.mkdir()
            (folder / "text.txt").write_text(text(), encoding="utf-8")
            write_models(folder, kind)
            content[kind] = measured(program, folder)
    OUTPUT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
