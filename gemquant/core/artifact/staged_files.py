"""Complete or absent, for files outside an artifact: all of them, or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gemquant.core.artifact.staging import flush, flush_tree, parents_created, place_problems
from gemquant.core.json_document import Document
from gemquant.errors import GemquantError, OutputError, UsageError

DOCUMENT_BYTES = 50_000_000
"""Free space that a document needs on the disk; far above its size."""


def file_problems(
    files: Sequence[Path], *, replaceable: Sequence[Path], needed_bytes: int
) -> list[GemquantError]:
    """Return everything that forbids files at these places; touches nothing.

    files: all in one folder. replaceable: those that may stand there already.
    """
    problems: list[GemquantError] = []
    for file in files:
        if file.is_symlink():
            problems.append(OutputError(f"{file} is a symbolic link.", hint="Name a file itself."))
        elif file.is_dir():
            problems.append(OutputError(f"{file} is a folder.", hint="Choose another -o."))
        elif file.exists() and not file.is_file():
            problems.append(
                OutputError(f"{file} is not a regular file.", hint="Choose another -o.")
            )
        elif file.exists() and file not in replaceable:
            problems.append(
                OutputError(
                    f"{file} exists.",
                    hint="Choose another -o; --force replaces what gemquant wrote there.",
                )
            )
    return problems + place_problems(files[-1], needed_bytes=needed_bytes)


@contextmanager
def staged_files(files: Sequence[Path]) -> Iterator[Path]:
    """Yield a scratch folder whose files of these names take their places if the block succeeds.

    files: all in one folder, the one whose presence means success last. On success everything is
    flushed to disk and renamed; on any exception, an interrupt too, what stood there before stands
    there again. Ask ``file_problems`` first.
    """
    # abspath, since resolve() would follow a link at the last part.
    places = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100
    folder = places[-1].parent
    scratch = folder / f".{places[-1].name}.{secrets.token_hex(4)}.partial"
    with parents_created(folder):
        try:
            scratch.mkdir(mode=0o700)
            yield scratch
            flush_tree(scratch)
            _put_in_place(scratch, places)
            flush(folder)
        except OSError as error:
            raise OutputError(
                f"{error.filename or folder} cannot be written: {error.strerror or error}.",
                hint="Free some space, or choose another place with -o.",
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, those of one folder together: all of a folder's, or none."""
    folders: dict[Path, list[Path]] = {}
    for path in contents:
        folders.setdefault(path.absolute().parent, []).append(path)
    for files in folders.values():
        with staged_files(files) as scratch:
            for path in files:
                (scratch / path.name).write_bytes(contents[path])


def document_problems(output: Path | None, kind: type[Document]) -> list[GemquantError]:
    """Return everything that forbids a document at a place; touches nothing.

    kind: of the document. An earlier one of the same kind is replaced, no other file is.
    """
    if output is None:
        return []
    if output.is_file():
        try:
            kind.read(output)
        except UsageError:
            return [
                OutputError(
                    f"{output} exists and is not an earlier {kind.noun}: only those are replaced.",
                    hint="Choose another -o.",
                )
            ]
    return file_problems([output], replaceable=[output], needed_bytes=DOCUMENT_BYTES)


def write_document(output: Path, document: Document) -> None:
    """Write a document whole, or not at all. Ask ``document_problems`` first."""
    write_files({output: document.to_json()})


def _put_in_place(scratch: Path, places: Sequence[Path]) -> None:
    aside = scratch / ".replaced"
    aside.mkdir()
    moved: list[Path] = []
    try:
        for place in places:
            if place.exists():
                place.rename(aside / place.name)
            moved.append(place)
            (scratch / place.name).rename(place)
    except BaseException:
        for place in reversed(moved):
            if place.exists():
                place.rename(scratch / place.name)
        for old in aside.iterdir():
            old.rename(places[-1].parent / old.name)
        raise
