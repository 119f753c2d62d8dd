"""What an interrupted run has kept, and how the same run goes on behind its last finished layer.

From one decoder layer to the next a run carries hidden states and how far activations reach. Both
go into one safetensors file now and then, written beside the artifacts' scratch folders once the
disk has all tensors of the finished layers; it takes its name when it is whole, so that a run that
is killed at any moment leaves a state that can be gone on with, or none.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemquant.core.artifact.staging import flush, make_folder, make_parents, scratch_of, tree_bytes
from gemquant.core.progress import Progress
from gemquant.core.protocols import ActivationRange
from gemquant.core.resources import human_bytes
from gemquant.errors import GemquantError, OutputError

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 60.0
SHARE_OF_TIME = 0.05
"""Saving takes no more of the time than this."""

TOKEN_LENGTH = 8
SUFFIX, STATE, LOCK = ".unfinished", "state.safetensors", "lock"


@dataclass(frozen=True)
class Resumption:
    """Whether and how a run goes on with an interrupted one.

    identity: digest of all that decides bytes; only a run of the same goes on. restart: forget an
    interrupted run. every_seconds: the least time between two states.
    """

    identity: str
    restart: bool = False
    every_seconds: float = SAVE_EVERY_SECONDS

    @property
    def token(self) -> str:
        """What names the scratch folders."""
        return self.identity[:TOKEN_LENGTH]


@dataclass(frozen=True)
class RunState:
    """What a run carries behind its first ``layers`` decoder layers.

    hidden: stream → its hidden states. reach: layer → how large its activations become.
    """

    layers: int
    hidden: Mapping[str, Tensor]
    reach: Mapping[int, ActivationRange] = field(default_factory=dict)

    def write(self, path: Path, identity: str) -> None:
        """Write a file that is whole or absent."""
        facts = {
            "identity": identity,
            "layers": str(self.layers),
            "reach": json.dumps({n: dataclasses.asdict(each) for n, each in self.reach.items()}),
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
                reach = json.loads(facts["reach"])
                return cls(
                    int(facts["layers"]),
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                    {int(n): ActivationRange(**each) for n, each in reach.items()},
                )
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be read, so the run starts again: %s", path, error)
            return None


class Unfinished:
    """One run's place for its state; ``state`` is what an interrupted one has left."""

    def __init__(self, folder: Path, resumption: Resumption, state: RunState | None) -> None:
        self.token = resumption.token
        self.state = state
        self.layers_kept = 0 if state is None else state.layers
        self._folder, self._resumption = folder, resumption
        self._next = time.monotonic() + resumption.every_seconds

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next

    def save(self, state: RunState) -> None:
        """Keep a state; the tensors of its layers have been flushed. A full disk keeps the last."""
        began = time.monotonic()
        path = self._folder / STATE
        size = sum(hidden.nbytes for hidden in state.hidden.values())
        if size <= shutil.disk_usage(self._folder).free:
            try:
                state.write(path, self._resumption.identity)
                self.layers_kept = state.layers
            except (OSError, SafetensorError, OutputError) as error:
                logger.warning("%s cannot be written: %s", path, error)
        spent = time.monotonic() - began
        wait = max(self._resumption.every_seconds, spent / SHARE_OF_TIME)
        self._next = time.monotonic() + wait

    def keeps(self, error: BaseException) -> bool:
        """Whether the same run may do better next time: not if the input is at fault."""
        at_fault = isinstance(error, GemquantError) and not isinstance(error, OutputError)
        return self.layers_kept > 0 and not at_fault


def layers_kept(outs: Sequence[Path], resumption: Resumption) -> int:
    """How many layers a run would find finished."""
    scratches = [scratch_of(out, resumption.token) for out in outs]
    folder = scratches[0].with_suffix(SUFFIX)
    state = None if resumption.restart else _usable(folder, scratches, resumption)
    return 0 if state is None else state.layers


@contextmanager
def unfinished(
    outs: Sequence[Path], resumption: Resumption, progress: Progress
) -> Iterator[Unfinished]:
    """Take up what an interrupted run of the same identity has left of these artifacts.

    What it left is removed where it cannot be gone on with, and in the end, unless this run is
    interrupted too. OutputError if another run is making them at this moment.
    """
    token = resumption.token
    scratches = [scratch_of(out, token) for out in outs]
    folder = scratches[0].with_suffix(SUFFIX)
    for other in _others(folder, token):
        progress.note(_left_over(other))
    made = make_parents(folder.parent)
    try:
        make_folder(folder, exist_ok=True)
        with _locked(folder, outs[0]):
            state = None if resumption.restart else _usable(folder, scratches, resumption)
            if state is None:
                for each in scratches:
                    shutil.rmtree(each, ignore_errors=True)
                (folder / STATE).unlink(missing_ok=True)
            run = Unfinished(folder, resumption, state)
            try:
                yield run
            except BaseException as error:
                if run.keeps(error):
                    held = sum(map(tree_bytes, [folder, *scratches]))
                    error.add_note(
                        f"layers 1 to {run.layers_kept} are kept ({human_bytes(held)} beside "
                        f"{outs[0]}): the same command goes on behind them, with --restart it "
                        "starts again"
                    )
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # what is not empty stays
                parent.rmdir()


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    busy = OutputError(
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


def _usable(folder: Path, scratches: Sequence[Path], resumption: Resumption) -> RunState | None:
    if not all(each.is_dir() for each in scratches):
        return None
    return RunState.read(folder / STATE, resumption.identity)


def _others(folder: Path, token: str) -> list[Path]:
    """What interrupted runs with other settings have left of the same artifact."""
    before, after = folder.name.rsplit(token, 1)
    pattern = glob.escape(before) + "[0-9a-f]" * TOKEN_LENGTH + after
    found = [each for each in sorted(folder.parent.glob(pattern)) if each != folder]
    return [each for each in found if not _in_use(each)]


def _in_use(folder: Path) -> bool:
    """Whether a run is still at it."""
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
        f"{scratch.name} and {folder.name} beside it are of an interrupted run with other settings "
        f"({size}); remove them if they are not wanted"
    )
