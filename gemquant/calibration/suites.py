"""Suites: which text an evaluation measures on, as versioned data in ``calib_data/suites.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from gemquant.calibration.documents import read_user_file
from gemquant.calibration.text import REINSTALL, Library, TextFile
from gemquant.calibration.windows import (
    Packer,
    TokenWindows,
    dealt_documents,
    token_windows,
)
from gemquant.core.json_document import Record
from gemquant.core.resources import data_folder
from gemquant.core.untrusted import MAX_TOML_BYTES, UntrustedFile, user_path
from gemquant.errors import CalibrationError, GemquantError, UsageError, refuse

FILE = "suites.toml"
OWN_SEQ_LEN = 256
OWN_WINDOWS = 16
"""Most windows of a user's file, unless a number is requested."""


class SuiteSlice(Record):
    """A slice, and the files of the index that it takes its text from; all of its kind if none."""

    name: str
    files: tuple[str, ...] = ()


class Suite(Record):
    """One suite of the file."""

    version: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    windows: int = Field(ge=1)
    order: Literal["shuffled", "stored"]
    slices: tuple[SuiteSlice, ...] = Field(min_length=1)


class _Suites(Record):
    version: Literal[1]
    suites: dict[str, Suite]


class SuiteText(Suite):
    """The requested text: a suite, or a user's file.

    name: for the record. own: the user's file. strict: text that is too short for so many windows
    is refused; otherwise they are as many as fit.
    """

    name: str
    own: Path | None = None
    strict: bool = True

    @classmethod
    def named(cls, name: str) -> SuiteText:
        """A suite by its name, or a user's FILE.txt or FILE.jsonl; UsageError if it is neither."""
        suites = read_suites()
        if name in suites:
            return cls(name=name, **dict(suites[name]))
        path = user_path(name)
        if not path.suffix and not path.is_file():
            raise UsageError(
                f"--suite {name}: neither a file nor one of {', '.join(suites)}.",
                hint="--suite default, or --suite FILE.txt or FILE.jsonl with text of your own",
            )
        return cls(
            name=path.name,
            version=1,
            seq_len=OWN_SEQ_LEN,
            windows=OWN_WINDOWS,
            order="stored",
            slices=(SuiteSlice(name=path.stem),),
            own=path,
            strict=False,
        )

    def reduced(
        self, *, slices: Sequence[str] | None, windows: int | None, seq_len: int | None
    ) -> SuiteText:
        """The same with other slices, windows or lengths.

        UsageError for an unknown slice, and if nothing would remain.
        """
        known = [each.name for each in self.slices]
        count = self.windows if windows is None else windows
        chosen = known if slices is None else list(dict.fromkeys(slices))
        problems: list[GemquantError] = [
            UsageError(f"--eval-slices {name}: suite {self.name} has {', '.join(known)}.")
            for name in chosen
            if name not in known
        ]
        if not chosen or count < 1:
            problems.append(
                UsageError(
                    f"suite {self.name}: {len(chosen)} slices of {count} windows "
                    "are nothing to measure on.",
                    hint="Leave --eval-slices and --eval-windows out.",
                )
            )
        if seq_len is not None and seq_len < 2:
            problems.append(UsageError(f"--seq-len {seq_len}: must be at least 2, <bos> included."))
        refuse(problems)
        return self.model_copy(
            update={
                "slices": tuple(each for each in self.slices if each.name in chosen),
                "windows": count,
                "seq_len": seq_len or self.seq_len,
                "strict": self.strict or windows is not None,
            }
        )

    def token_windows(self, packer: Packer) -> list[TokenWindows]:
        """Tokenize: windows of every slice. CalibrationError where its text is too short."""
        if self.own is not None:
            documents, what = iter(read_user_file(self.own, flag="--suite")), f"--suite {self.own}"
            rows = packer.pack(documents, self.windows, what, strict=self.strict)
            return [token_windows(rows, self.slices[0].name)]
        library = Library.open()
        return [
            token_windows(list(self._windows(packer, library, each)), each.name)
            for each in self.slices
        ]

    def _windows(
        self, packer: Packer, library: Library, suite_slice: SuiteSlice
    ) -> Iterator[list[int]]:
        """The windows of one slice."""
        files = _files(library, suite_slice)
        what = f"suite {self.name}, slice {suite_slice.name}"
        if self.order == "shuffled":
            documents = dealt_documents(library, files, packer.seed, "evaluation", suite_slice.name)
            yield from packer.pack(documents, self.windows, what, strict=self.strict)
            return
        for number, file in enumerate(files[: self.windows]):
            count = len(range(number, self.windows, len(files)))
            text = iter(library.read(file))
            yield from packer.pack(text, count, f"{what}, {file.name}", strict=self.strict)


def read_suites(folder: Path | None = None) -> dict[str, Suite]:
    """All suites by name. CalibrationError if the file is missing or not valid."""
    path = (data_folder("calib_data") if folder is None else folder) / FILE
    return UntrustedFile(path, MAX_TOML_BYTES, CalibrationError, REINSTALL).table(_Suites).suites


def _files(library: Library, suite_slice: SuiteSlice) -> Sequence[TextFile]:
    if not suite_slice.files:
        return library.of(suite_slice.name, "evaluation")
    evaluation = {file.name: file for file in library.files if file.split == "evaluation"}
    missing = [name for name in suite_slice.files if name not in evaluation]
    if missing:
        raise CalibrationError(
            f"{FILE}, slice {suite_slice.name}: no evaluation text called {', '.join(missing)}.",
            hint=REINSTALL,
        )
    return [evaluation[name] for name in suite_slice.files]
