"""Two tiny Gemmas as GGUF, one with noise, and a text: what llama-perplexity was asked about."""

from __future__ import annotations

import random
from pathlib import Path

import gguf

from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf

KINDS: tuple[Kind, ...] = ("gemma2", "gemma3_text")
WINDOW = 64
WORDS = "the of and to in is that for with as on it was by this are from not have be at".split()


def text() -> str:
    """Some words."""
    return " ".join(random.Random(0).choices(WORDS, k=900))


def write_models(folder: Path, kind: Kind) -> None:
    """Write original.gguf, and noisy.gguf, whose linears are off by a tenth of their spread."""
    packed = gguf.GGMLQuantizationType.F32
    for name, noise in (("original", 0.0), ("noisy", 0.1)):
        write_tiny_gguf(
            folder / f"{name}.gguf", kind, packed=packed, overrides=LLAMACPP[kind], noise=noise
        )
