"""A small library of text whose tokens can be counted by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gemquant.calibration.text import Library

FILES: Mapping[str, Sequence[Mapping[str, object]]] = {
    "calibration/english-a": [{"text": f"ea{n} " * 5} for n in range(8)],
    "calibration/english-b": [{"text": f"eb{n} " * 5} for n in range(8)],
    "calibration/chat-a": [
        {"messages": [{"role": "user", "content": f"ca{n}"}, {"role": "model", "content": "yes"}]}
        for n in range(8)
    ],
    "evaluation/english-c": [{"text": f"ec{n} " * 5} for n in range(4)],
    "evaluation/code-a": [{"text": f"oa{n} " * 5} for n in range(4)],
}


def write_library(folder: Path) -> Path:
    lines = ["version = 1", "[mixtures.general]", "english = 0.75", "chat = 0.25"]
    for path, documents in FILES.items():
        split, _, name = path.partition("/")
        content = "".join(json.dumps(document) + "\n" for document in documents).encode()
        (folder / split).mkdir(exist_ok=True)
        (folder / f"{path}.jsonl").write_bytes(content)
        lines += [
            "[[files]]",
            f'path = "{path}.jsonl"\nname = "{name}"\nkind = "{name.rpartition("-")[0]}"',
            f'split = "{split}"\nlicense = "CC0-1.0"\nattribution = "none"\npackage = "none"',
            'package_sha256 = ""\npackage_path = ""',
            f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
            f"documents = {len(documents)}\nbytes = {len(content)}",
        ]
    (folder / "index.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture
def library_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    return write_library(folder)


@pytest.fixture
def small_library(library_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The small library, found where the shipped one is looked for."""
    monkeypatch.setattr("gemquant.calibration.text.data_folder", lambda _: library_folder)
    return Library.open()
