"""The shipped text: an index of files by kind and split, and mixtures of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from gemquant.calibration.documents import LARGEST_FILE, Document, parse_lines
from gemquant.core.json_document import Record
from gemquant.core.resources import data_folder
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CalibrationError, refuse

INDEX = "index.toml"
VERSION: Literal[1] = 1
_MAX_INDEX = 1_000_000
REINSTALL = "Reinstall gemquant, or take the folder from its source again."

Split = Literal["calibration", "evaluation"]


class TextFile(Record):
    """One file of the index; package, package_path and attribution are its source.

    path: relative to the folder. license: an SPDX identifier or expression.
    """

    path: str
    name: str
    kind: str
    split: Split
    package: str
    package_sha256: str
    package_path: str
    license: str
    attribution: str
    sha256: str
    documents: int
    bytes: int

    @field_validator("path")
    @classmethod
    def _within(cls, text: str) -> str:
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{text} leads out of the folder")
        return text


class _Index(Record):
    version: Literal[1]
    files: tuple[TextFile, ...]
    mixtures: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, shares in self.mixtures.items():
            total = sum(shares.values())
            if abs(total - 1) > 1e-9:
                raise ValueError(f"the shares of mixture {name} add up to {total:g}, not 1")
        return self


@dataclass(frozen=True)
class Library:
    """The shipped files, and the mixtures: kind → share of the tokens, adding up to 1."""

    folder: Path
    files: tuple[TextFile, ...]
    mixtures: Mapping[str, Mapping[str, float]]

    @classmethod
    def open(cls, folder: Path | None = None) -> Library:
        """Read the index alone. Raises CalibrationError if it is missing or not valid."""
        folder = data_folder("calib_data") if folder is None else folder
        file = UntrustedFile(folder / INDEX, _MAX_INDEX, CalibrationError, REINSTALL)
        index = file.table(_Index)
        return cls(folder, index.files, index.mixtures)

    def of(self, kind: str, split: Split) -> tuple[TextFile, ...]:
        """The files of one kind in one split, in the order of the index."""
        return tuple(file for file in self.files if file.kind == kind and file.split == split)

    def slices(self) -> tuple[str, ...]:
        """Kinds with evaluation text, in the order of the index: the evaluation slices."""
        return tuple(dict.fromkeys(f.kind for f in self.files if f.split == "evaluation"))

    def read(self, file: TextFile) -> list[Document]:
        """The documents of a file. Raises CalibrationError if it is not the file of the index."""
        path = self.folder / file.path
        content = UntrustedFile(path, LARGEST_FILE, CalibrationError, REINSTALL).bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != file.sha256:
            raise CalibrationError(
                f"{path}: sha256 {digest} is not that of the index, {file.sha256}.", hint=REINSTALL
            )
        documents, problems = parse_lines(content, str(path))
        refuse(problems)
        return documents


def largest_remainder(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Divide ``total`` whole windows by shares; the rest goes to the largest remainders.

    >>> largest_remainder({"english": 0.5, "code": 0.3, "math": 0.2}, 4)
    {'english': 2, 'code': 1, 'math': 1}
    """
    exact = {key: share * total for key, share in shares.items()}
    counts = {key: int(value + 1e-9) for key, value in exact.items()}
    ranked: Sequence[str] = sorted(exact, key=lambda key: counts[key] - exact[key])
    for key in ranked[: total - sum(counts.values())]:
        counts[key] += 1
    return counts
