"""Complete or absent: an artifact is built next to its destination and renamed last."""

from __future__ import annotations

import glob
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemquant.core.artifact.manifest import MANIFEST_FILE
from gemquant.core.resources import human_bytes
from gemquant.errors import GemquantError, OutputError, refuse

logger = logging.getLogger(__name__)


def output_problems(out: Path, *, force: bool, needed_bytes: int) -> list[GemquantError]:
    """Return everything that forbids an artifact at ``out``; touches nothing.

    needed_bytes: size of the artifact; with ``force`` the old one stays until the new one stands.
    """
    problems: list[GemquantError] = []
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link at `out`)
    if out.is_symlink():
        problems.append(OutputError(f"{out} is a symbolic link.", hint="Name the folder itself."))
    elif out.exists():
        problems += _replacement_problems(out, force=force)
    problems += place_problems(out, needed_bytes=needed_bytes)
    return problems


def place_problems(out: Path, *, needed_bytes: int) -> list[GemquantError]:
    """Return what forbids anything at all from being written at ``out``: no folder, no room."""
    base = _existing_ancestor(out)
    if not base.is_dir():
        return [OutputError(f"{base} is not a folder, so {out} cannot be created in it.")]
    if not os.access(base, os.W_OK | os.X_OK):
        return [OutputError(f"{base} cannot be written to.", hint="Choose another place with -o.")]
    free = shutil.disk_usage(base).free
    if free < needed_bytes:
        return [
            OutputError(
                f"{out} needs {human_bytes(needed_bytes)}; {human_bytes(free)} are free.",
                hint="Free some space, or choose another place with -o.",
            )
        ]
    return []


def scratch_of(out: Path, token: str) -> Path:
    """Return the scratch folder in which ``out`` is built; token: tells runs and users apart."""
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link at `out`)
    return out.with_name(f".{out.name}.{token}.partial")


@contextmanager
def staged(
    out: Path,
    *,
    force: bool,
    needed_bytes: int,
    token: str | None = None,
    keeps: Callable[[BaseException], bool] | None = None,
) -> Iterator[Path]:
    """Yield a scratch folder next to ``out`` that becomes ``out`` if the block succeeds.

    On success everything is flushed to disk and renamed into place; an older artifact is moved
    aside first and removed afterwards. On any exception, an interrupt too, the scratch folder is
    removed and an older artifact is untouched. OutputError lists every problem before any work.

    token: names the scratch folder, so that a later run continues in it; by default a new one.
    keeps: which exceptions leave it where it is; by default none.
    """
    token = token or secrets.token_hex(4)
    scratch = scratch_of(out, token)
    held = tree_bytes(scratch)
    refuse(output_problems(out, force=force, needed_bytes=max(0, needed_bytes - held)))
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link at `out`)
    with parents_created(out.parent):
        make_private(scratch)
        try:
            yield scratch
            flush_tree(scratch)
            put_in_place(scratch, out)
        except BaseException as error:
            if keeps is None or not keeps(error):
                shutil.rmtree(scratch, ignore_errors=True)
            raise


def _replacement_problems(out: Path, *, force: bool) -> list[GemquantError]:
    if not force:
        return [OutputError(f"{out} exists.", hint="Give --force to replace it, or another -o.")]
    is_artifact = out.is_dir() and ((out / MANIFEST_FILE).is_file() or not any(out.iterdir()))
    if is_artifact:
        return []
    return [
        OutputError(
            f"{out} exists and is no artifact ({MANIFEST_FILE} is not in it): --force replaces "
            "artifacts only.",
            hint="Choose another place with -o.",
        )
    ]


def _existing_ancestor(out: Path) -> Path:
    for parent in out.parents:
        if parent.exists():
            return parent
    return Path(out.anchor)


@contextmanager
def parents_created(parent: Path) -> Iterator[None]:
    """Create a folder and what is missing above it; remove them again on an exception."""
    created = make_parents(parent)
    try:
        yield
    except BaseException:
        for folder in reversed(created):
            with suppress(OSError):
                folder.rmdir()
        raise


def make_parents(parent: Path) -> list[Path]:
    """Create what is missing above the artifact; return it, the outermost first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    created: list[Path] = []
    try:
        for folder in reversed(missing):
            make_folder(folder)
            created.append(folder)
    except GemquantError:
        for folder in reversed(created):
            folder.rmdir()
        raise
    return created


def interrupted_bytes(out: Path) -> int:
    """Space that the largest scratch folder of ``out`` takes, which an interrupted run has left."""
    out = Path(os.path.abspath(out))  # noqa: PTH100 (as above)
    if not out.name:  # the root: nothing can be next to it
        return 0
    pattern = scratch_of(out.with_name(glob.escape(out.name)), "*").name
    return max(map(tree_bytes, out.parent.glob(pattern)), default=0)


def tree_bytes(folder: Path) -> int:
    """Space that the files of a folder take on the disk; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_folder(folder: Path, *, exist_ok: bool = False) -> None:
    """Make one folder; OutputError where the system refuses."""
    try:
        folder.mkdir(exist_ok=exist_ok)
    except OSError as error:
        raise OutputError(
            f"{folder.parent} cannot be written to: {error.strerror}.",
            hint="Choose another place with -o.",
        ) from error


def make_private(folder: Path) -> None:
    """Make a folder that no other user enters, or take up an own one; OutputError if it is not."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not is_own_folder(folder):
            raise OutputError(
                f"{folder} is a link, no folder, or another user's.",
                hint="Remove it, or choose another place with -o.",
            ) from None
        folder.chmod(0o700)
    except OSError as error:
        raise OutputError(
            f"{folder.parent} cannot be written to: {error.strerror}.",
            hint="Choose another place with -o.",
        ) from error


def is_own_folder(folder: Path) -> bool:
    """Whether it is a folder, no link, and belongs to this user."""
    try:
        state = folder.lstat()
    except OSError:
        return False
    owner = os.geteuid() if hasattr(os, "geteuid") else state.st_uid  # Windows has none
    return stat.S_ISDIR(state.st_mode) and state.st_uid == owner


def flush_tree(folder: Path) -> None:
    """Ask the disk to keep every file and folder, so that a rename never precedes its content."""
    for root, _, files in os.walk(folder):
        for name in files:
            flush(Path(root) / name)
        flush(Path(root))


def flush(path: Path) -> None:
    """Ask the disk to keep one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OutputError(f"{path} cannot be flushed to disk: {error.strerror}.") from error
    finally:
        os.close(descriptor)


def put_in_place(scratch: Path, out: Path) -> None:
    """Give a complete scratch folder its name and the usual rights; what stood there goes."""
    aside = scratch.with_suffix(".old")
    replaced = out.exists()
    umask = os.umask(0)
    os.umask(umask)
    try:
        scratch.chmod(stat.S_IMODE(scratch.stat().st_mode) | 0o777 & ~umask)
        if replaced:
            out.rename(aside)
        try:
            scratch.rename(out)
        except BaseException:
            if replaced:
                aside.rename(out)
            raise
        flush(out.parent)
    except OSError as error:
        raise OutputError(f"{out} cannot be put in place: {error.strerror}.") from error
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            logger.warning("The replaced artifact could not be removed: %s", aside)
