"""A GGUF and the other parts of it, where it was split.

Source: llama.cpp ``tools/gguf-split``: NAME-00001-of-00003.gguf, and keys ``split.no``,
``split.count``, ``split.tensors.count`` in every part; all other metadata is in the first.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemquant.errors import CheckpointError, GemquantError, refuse
from gemquant.formats.gguf.header import GgufHeader, read_gguf_header

MAX_PARTS = 1000
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufPart:
    """One mapped file."""

    path: Path
    data: mmap.mmap
    header: GgufHeader


def open_parts(path: Path) -> Sequence[GgufPart]:
    """Map a GGUF, and every other part where it is the first of several.

    Raises CheckpointError for a part that is missing, or none of this GGUF.
    """
    first = _opened(path)
    count = first.header.metadata.get("split.count", 1)
    if count in (0, 1):
        return [first]
    match = _PART.fullmatch(path.name)
    if type(count) is not int or count > MAX_PARTS or match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path}: split.count is {count!r}, which its name does not end in, as in "
            "NAME-00001-of-00003.gguf."
        )
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1)]
    if path.name != names[0]:
        raise CheckpointError(
            f"{path}: one of {count} parts; the metadata is in the first.",
            hint=f"Open {path.with_name(names[0])}.",
        )
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:4])}."
        )
    parts = [first, *(_opened(path.with_name(name)) for name in names[1:])]
    refuse(_problems(parts))
    return parts


def _problems(parts: Sequence[GgufPart]) -> list[GemquantError]:
    problems: list[GemquantError] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        metadata = part.header.metadata
        place = (metadata.get("split.no"), metadata.get("split.count"))
        if place != (number, len(parts)):
            problems.append(
                CheckpointError(f"{part.path}: says it is part {place[0]!r} of {place[1]!r}.")
            )
        twice = seen & part.header.tensors.keys()
        if twice:
            problems.append(
                CheckpointError(f"{part.path}: {min(twice)} is in another part already.")
            )
        seen |= part.header.tensors.keys()
    total = parts[0].header.metadata.get("split.tensors.count")
    if total != len(seen):
        problems.append(
            CheckpointError(f"{parts[0].path}: {len(seen)} tensors, and {total!r} are announced.")
        )
    return problems


def _opened(path: Path) -> GgufPart:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty.")
        # Private and thus writable in torch's eyes; see MappedSafetensors.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return GgufPart(path, data, read_gguf_header(path, data))
