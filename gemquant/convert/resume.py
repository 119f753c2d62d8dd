"""Resume an interrupted run after its last finished layer.

From one decoder layer to the next a run carries hidden states and the range of the activations.
From time to time both are saved in one safetensors file next to the artifacts' scratch folders,
after all tensors of the finished layers are on the disk. The file is renamed when it is complete,
so a run that is killed at any moment leaves a state to resume from, or none.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemquant.convert.finalize import library_versions
from gemquant.core.artifact.manifest import MANIFEST_FILE
from gemquant.core.artifact.staging import (
    flush,
    flush_tree,
    is_own_folder,
    make_parents,
    make_private,
    output_problems,
    put_in_place,
    scratch_of,
    tree_bytes,
)
from gemquant.core.protocols import ActivationRange, Progress, RoutedTokens
from gemquant.core.resources import human_bytes
from gemquant.errors import BusyError, GemquantError, OutputError, SourceLostError, refuse
from gemquant.numerics import native

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.convert.plan import Job
    from gemquant.formats.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 60.0
SHARE_OF_TIME = 0.05
"""Saving takes no more of the time than this."""

TOKEN_LENGTH = 8
SUFFIX, STATE, LOCK = ".unfinished", "state.safetensors", "lock"
COMPLETE = "complete"
"""Holds the identity of a run whose artifacts are complete, and get their names one by one."""


@dataclass(frozen=True)
class ResumePolicy:
    """Whether and how a run resumes an interrupted one.

    identity: digest of all that decides bytes; a run resumes only one of the same. restart: discard
    an interrupted run. every_seconds: the least time between two saved states.
    """

    identity: str
    restart: bool = False
    every_seconds: float = SAVE_EVERY_SECONDS

    @property
    def token(self) -> str:
        """Names the scratch folders; other users' runs of the same have another."""
        user = os.getuid() if hasattr(os, "getuid") else ""
        return hashlib.sha256(f"{self.identity} {user}".encode()).hexdigest()[:TOKEN_LENGTH]


@dataclass(frozen=True)
class RunState:
    """What a run carries after its first ``layers`` decoder layers.

    hidden: stream → its hidden states. reach: layer → how large its activations become.
    routed: layer → how many tokens reached its experts.
    """

    layers: int
    hidden: Mapping[str, Tensor]
    reach: Mapping[int, ActivationRange] = field(default_factory=dict)
    routed: Mapping[int, RoutedTokens] = field(default_factory=dict)

    def write(self, path: Path, identity: str) -> None:
        """Write a file that is whole or absent."""
        facts = {
            "identity": identity,
            "layers": str(self.layers),
            "reach": json.dumps({n: dataclasses.asdict(each) for n, each in self.reach.items()}),
            "routed": json.dumps({n: dataclasses.asdict(each) for n, each in self.routed.items()}),
        }
        unnamed = path.with_suffix(".new")
        tensors = {name: hidden.cpu().contiguous() for name, hidden in self.hidden.items()}
        save_file(tensors, unnamed, metadata=facts)
        flush(unnamed)
        unnamed.replace(path)
        flush(path.parent)

    @classmethod
    def read(cls, path: Path, identity: str) -> RunState | None:
        """Read a state; None if there is none, or another run's, or it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("identity") != identity:
                    return None
                reach, routed = json.loads(facts["reach"]), json.loads(facts["routed"])
                return cls(
                    int(facts["layers"]),
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                    {int(n): ActivationRange(**each) for n, each in reach.items()},
                    {
                        int(n): RoutedTokens(tuple(each["tokens"]), each["least"])
                        for n, each in routed.items()
                    },
                )
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be read; the run starts over: %s", path, error)
            return None


class RunCheckpoint:
    """Where one run saves its state; ``state`` is what an interrupted run has left."""

    def __init__(self, folder: Path, policy: ResumePolicy, state: RunState | None) -> None:
        self.token = policy.token
        self.state = state
        self.layers_saved = 0 if state is None else state.layers
        self._folder, self._policy = folder, policy
        self._next = time.monotonic() + policy.every_seconds

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next

    def save(self, state: RunState) -> None:
        """Save a state whose layers have been flushed. On a full disk the last one stays."""
        began = time.monotonic()
        path = self._folder / STATE
        size = sum(hidden.nbytes for hidden in state.hidden.values())
        if size <= shutil.disk_usage(self._folder).free:
            try:
                state.write(path, self._policy.identity)
                self.layers_saved = state.layers
            except (OSError, SafetensorError, OutputError) as error:
                logger.warning("%s cannot be written: %s", path, error)
        spent = time.monotonic() - began
        wait = max(self._policy.every_seconds, spent / SHARE_OF_TIME)
        self._next = time.monotonic() + wait

    def complete(self, layers: int, outs: Sequence[Path]) -> None:
        """Record that the artifacts are whole: what remains is to give them their names."""
        for out in outs:
            flush_tree(scratch_of(out, self.token))
        try:
            (self._folder / COMPLETE).write_text(self._policy.identity)
            flush(self._folder / COMPLETE)
        except OSError:  # a full disk: a run that is killed now starts over
            return
        self.layers_saved = layers

    def is_resumable(self, error: BaseException) -> bool:
        """Whether the same run may succeed next time: not if the input is at fault."""
        passing = OutputError, SourceLostError
        at_fault = isinstance(error, GemquantError) and not isinstance(error, passing)
        return self.layers_saved > 0 and not at_fault


def resumable_layers(outs: Sequence[Path], policy: ResumePolicy) -> int:
    """How many layers a run would find finished."""
    scratches = [scratch_of(out, policy.token) for out in outs]
    folder = scratches[0].with_suffix(SUFFIX)
    state = None if policy.restart else _usable(folder, scratches, policy)
    return 0 if state is None else state.layers


def interrupted_at_the_end(out: Path) -> bool:
    """Whether a run was interrupted while it gave names to artifacts of which ``out`` is first."""
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link at `out`)
    if not out.name:  # the root
        return False
    pattern = scratch_of(out.with_name(glob.escape(out.name)), "*").with_suffix(SUFFIX).name
    return any((folder / COMPLETE).is_file() for folder in out.parent.glob(pattern))


def finish_interrupted(outs: Sequence[Path], policy: ResumePolicy, *, force: bool) -> bool:
    """Give their names to artifacts that an interrupted run of the same had completed."""
    scratches = [scratch_of(out, policy.token) for out in outs]
    folder = scratches[0].with_suffix(SUFFIX)
    if policy.restart or not is_own_folder(folder) or not (folder / COMPLETE).is_file():
        return False
    with _locked(folder, outs[0]):
        waiting = {out: each for out, each in zip(outs, scratches, strict=True) if each.exists()}
        whole = all((waiting.get(out, out) / MANIFEST_FILE).is_file() for out in outs)
        own = all(map(is_own_folder, waiting.values()))
        if not whole or not own or (folder / COMPLETE).read_text() != policy.identity:
            return False
        for out, scratch in waiting.items():
            refuse(output_problems(out, force=force, needed_bytes=0))
            put_in_place(scratch, out)
        for left in (folder, *(scratch.with_suffix(".old") for scratch in scratches)):
            shutil.rmtree(left, ignore_errors=True)
    return True


@contextmanager
def open_run_checkpoint(
    outs: Sequence[Path], policy: ResumePolicy, progress: Progress
) -> Iterator[RunCheckpoint]:
    """Take up what an interrupted run of the same identity has left of these artifacts.

    What cannot be resumed is removed; at the end everything is, unless this run is interrupted too.
    OutputError if another run is making them at this moment.
    """
    scratches = [scratch_of(out, policy.token) for out in outs]
    folder = scratches[0].with_suffix(SUFFIX)
    for other in _others(folder, policy.token):
        if (other / STATE).exists() and other.with_suffix(".partial").exists():
            progress.note(_left_over(other))
        else:  # nothing that a run could take up
            shutil.rmtree(other.with_suffix(".partial"), ignore_errors=True)
            shutil.rmtree(other, ignore_errors=True)
    parents = make_parents(folder.parent)
    try:
        make_private(folder)
        with _locked(folder, outs[0]):
            state = None if policy.restart else _usable(folder, scratches, policy)
            if state is None:
                for scratch in scratches:
                    shutil.rmtree(scratch, ignore_errors=True)
                (folder / STATE).unlink(missing_ok=True)
            (folder / COMPLETE).unlink(missing_ok=True)
            run = RunCheckpoint(folder, policy, state)
            try:
                yield run
            except BaseException as error:
                if run.is_resumable(error):
                    size = human_bytes(sum(map(tree_bytes, [folder, *scratches])))
                    error.add_note(
                        f"layers 1 to {run.layers_saved} are saved ({size} next to {outs[0]}): "
                        "run the same command again to resume, or with --restart to start over"
                    )
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        for parent in reversed(parents):
            with suppress(OSError):  # a folder that is not empty stays
                parent.rmdir()


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    busy = BusyError(
        f"{out}: another run is making it at this moment.",
        hint="Wait for it, or choose another place with -o.",
    )
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise busy from error
    try:
        if not (folder / LOCK).exists():  # that run has just ended, and removed it
            raise busy
        yield
    finally:
        lock.release()


def _usable(folder: Path, scratches: Sequence[Path], policy: ResumePolicy) -> RunState | None:
    if not all(map(is_own_folder, [folder, *scratches])):
        return None
    return RunState.read(folder / STATE, policy.identity)


def _others(folder: Path, token: str) -> list[Path]:
    """What interrupted runs with other settings have left of the same artifact."""
    start, end = folder.name.rsplit(token, 1)
    pattern = glob.escape(start) + "[0-9a-f]" * TOKEN_LENGTH + end
    others = [path for path in sorted(folder.parent.glob(pattern)) if path != folder]
    return [path for path in others if is_own_folder(path) and not _in_use(path)]


def _in_use(folder: Path) -> bool:
    """Whether a run is writing it."""
    lock = FileLock(folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except (OSError, Timeout):
        return True


def _left_over(folder: Path) -> str:
    scratch = folder.with_suffix(".partial")
    size = human_bytes(tree_bytes(folder) + tree_bytes(scratch))
    return (
        f"{scratch.name} and {folder.name} next to it are of an interrupted run with other "
        f"settings ({size}); delete them if you do not need them"
    )


# ---------------------------------------------------------------- identity


def run_identity(
    jobs: Sequence[Job],
    checkpoint: Checkpoint,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
) -> str:
    """Digest everything that decides bytes, hexadecimal.

    Recipes, the model's configuration, tokens, library versions, threads and what the processor
    can do; weight files and files that an option names, by path, size and time of change, since
    hashing a checkpoint takes minutes.
    """
    files = [*checkpoint.source.files, *checkpoint.adapters.files.values()]
    facts = {
        "libraries": library_versions() | {"kernels": native.version()},
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "jobs": [[job.recipe.to_dict(), repr(job.exporter), job.quantizer.name] for job in jobs],
        "revision": checkpoint.revision,
        "config": checkpoint.config,
        "files": [
            _file(path)
            for path in [*files, *(p for job in jobs for p in _named(job.recipe.to_dict()))]
        ],
        "calibration": None if calibration is None else calibration.digest,
        "evaluation": [windows.digest for windows in evaluation],
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _file(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path.resolve()), state.st_size, state.st_mtime_ns


def _named(values: Mapping[str, Any]) -> Iterator[Path]:
    """Files among a recipe's values, the model and adapter, which were listed, left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif name in {"model", "lora"} or not isinstance(value, str):
            continue
        elif os.path.isfile(value):  # noqa: PTH113 - False for a name that is too long
            yield Path(value)
