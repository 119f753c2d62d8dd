"""Reads damaged files with every parser and counts what is no clean error.

python -m tests.fuzz.fuzz --cases 1000000 [--parser NAME] [--seed N] [--keep FOLDER]

A failure is any exception but GemquantError, a case of more than five seconds of processor time, or
an end of the process. What fails is kept with its traceback; the smallest of a kind belongs in
tests/fuzz/corpus. Memory above three gigabytes is a failure too.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from gemquant.errors import GemquantError
from tests.fuzz.mutations import mutated
from tests.fuzz.parsers import PARSERS, STATE, DefectError

SECONDS_PER_CASE = 5.0
MEMORY_BYTES = 3 << 30


class HangError(BaseException):
    """A case took too long."""


@dataclass
class Outcome:
    """Of one parser. failures: kind → how often, and the case's number."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)


def fuzz(
    name: str, cases: int, *, seed: int = 0, keep: Path | None = None, seconds: float = 1e9
) -> Outcome:
    """Read so many damaged files; stop earlier after ``seconds``."""
    parser, outcome = PARSERS[name], Outcome()
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as scratch:
        STATE["scratch"] = STATE.get("scratch") or tempfile.mkdtemp(dir=_memory_folder())
        sound, place = Path(scratch) / "sound", Path(scratch) / "case"
        sound.mkdir()
        parser.build(sound)
        forms = {
            path.name: form
            for pattern, form in parser.damaged.items()
            for path in sorted(sound.glob(pattern))
        }
        contents = {file: (sound / file).read_bytes() for file in forms}
        shutil.copytree(sound, place)
        parser.read(place)  # the sound files are read
        began = time.monotonic()
        for number in range(cases):
            if time.monotonic() - began > seconds:
                break
            draw = random.Random(f"{name} {seed} {number}")
            file = draw.choice(list(forms))
            (place / file).write_bytes(mutated(forms[file], contents[file], draw))
            outcome.cases += 1
            try:
                failure = _failure(parser.read, place, outcome)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if failure is not None:
                kind = describe(failure)
                outcome.failures[kind] += 1
                if outcome.first.setdefault(kind, number) == number and keep is not None:
                    kept = keep / f"{name}-{number}"
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(place / file, kept)
                    text = "".join(traceback.format_exception(failure))
                    (kept / "failure.txt").write_text(f"{kind}\n{text}")
            for each, content in contents.items():
                if each == file or each == "manifest.json":
                    (place / each).write_bytes(content)
        outcome.seconds = time.monotonic() - began
    return outcome


def _failure(read: Callable[[Path], object], place: Path, outcome: Outcome) -> BaseException | None:
    signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CASE)
    try:
        read(place)
    except GemquantError:
        outcome.refused += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
        return error
    return None


def describe(error: BaseException) -> str:
    """The class of an error and the last line of ours that it passed."""
    if isinstance(error, DefectError) and error.__cause__ is not None:
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/gemquant/" in f.filename]
    where = f"{frames[-1].filename.split('/gemquant/')[-1]}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} {where}"


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise HangError


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=100_000, help="over all parsers")
    options.add_argument("--parser", action="append", choices=list(PARSERS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options.add_argument("--seconds", type=float, default=1e9, help="at most, for each parser")
    given = options.parse_args()
    if given.parser and len(given.parser) == 1:
        _one(given)
        return
    chosen = given.parser or list(PARSERS)
    shares = sum(PARSERS[name].share for name in chosen)
    for name in chosen:  # each in a process of its own, so that one that dies is counted
        cases = -(-given.cases * PARSERS[name].share // shares)
        line = [sys.executable, "-m", "tests.fuzz.fuzz", "--parser", name, "--cases", str(cases)]
        line += ["--seed", str(given.seed), "--keep", str(given.keep)]
        code = subprocess.run([*line, "--seconds", str(given.seconds)], check=False).returncode
        if code:
            print(f"{name:20} ended with {code}", flush=True)


def _one(given: argparse.Namespace) -> None:
    (name,) = given.parser
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    outcome = fuzz(name, given.cases, seed=given.seed, keep=given.keep, seconds=given.seconds)
    shutil.rmtree(STATE["scratch"], ignore_errors=True)
    print(
        f"{name:20} {outcome.cases:8} cases {outcome.refused:8} refused "
        f"{len(outcome.failures):3} failures {outcome.seconds:7.1f} s",
        flush=True,
    )
    for kind, count in outcome.failures.most_common():
        print(f"    {count:6} × {kind} (case {outcome.first[kind]})", flush=True)


if __name__ == "__main__":
    main()
