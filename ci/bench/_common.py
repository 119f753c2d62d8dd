"""What the benchmarks share: their options, the text they read, a clock, and tables."""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from gemquant.calibration.windows import (
    Packer,
    TokenWindows,
    calibration_windows,
    evaluation_windows,
)
from gemquant.convert.plan import Job
from gemquant.convert.prepare import calibration_dtype
from gemquant.core.options import options_of
from gemquant.core.protocols import Quantizer
from gemquant.core.recipe import DEFAULT_CALIBRATION, Recipe
from gemquant.core.resources import default_threads
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate, choose_template

SAMPLE = "sample:gemma-3-270m"
LIBRARIES = ("gemquant", "torch", "transformers", "tokenizers")


def parser_of(doc: str | None, *, eval_windows: int) -> argparse.ArgumentParser:
    """Parser with the options that every benchmark has; ``doc`` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=SAMPLE, help=f"default: {SAMPLE}")
    add("--samples", type=int, default=16, help="calibration windows (default: 16)")
    add("--seq-len", type=int, default=512, help="tokens in a window (default: 512)")
    add("--seed", type=int, default=0, help="order of the text (default: 0)")
    add(
        "--eval-windows",
        type=int,
        default=eval_windows,
        help=f"evaluation windows per slice (default: {eval_windows})",
    )
    add("--eval-slices", nargs="+", metavar="SLICE", help="default: all slices")
    add("--scratch", type=Path, help="folder for scratch files (default: the system's)")
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "--threads",
        type=int,
        default=default_threads(),
        help="threads for torch (default: physical cores)",
    )


@contextmanager
def scratch_folder(args: argparse.Namespace) -> Iterator[Path]:
    """Yield a new folder in ``--scratch`` that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="gemquant-bench-", dir=args.scratch) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Text:
    """The same tokens for everybody."""

    calibration: TokenWindows
    evaluation: Sequence[TokenWindows]


def read_text(args: argparse.Namespace, checkpoint: Checkpoint) -> Text:
    """Tokenize the default calibration mixture and the evaluation slices."""
    chat = architecture_of(checkpoint.config).chat
    template = ChatTemplate(choose_template(None, checkpoint.chat_template(), chat))
    bos = checkpoint.config["bos_token_id"]
    packer = Packer(checkpoint.tokenizer(), args.seq_len, bos, template, args.seed)
    return Text(
        calibration=calibration_windows(packer, DEFAULT_CALIBRATION, args.samples),
        evaluation=evaluation_windows(packer, args.eval_slices, args.eval_windows),
    )


def job_of(args: argparse.Namespace, quantizer: Quantizer, out: Path, *, eval_windows: int) -> Job:
    """A job for compressed-tensors, with the recipe that its manifest will hold."""
    exporter = CompressedTensors()
    recipe = Recipe(
        model=args.model,
        quantizer=quantizer.name,
        options={o.name: getattr(quantizer, o.name) for o in options_of(quantizer)},
        exporter=exporter.name,
        samples=args.samples,
        seq_len=args.seq_len,
        seed=args.seed,
        eval_windows=eval_windows,
        eval_slices=None if args.eval_slices is None else tuple(args.eval_slices),
    )
    return Job(quantizer, exporter, out, recipe)


def tracing_dtype(args: argparse.Namespace) -> torch.dtype:
    """The type that the command line would trace calibration windows in, on this machine."""
    recipe = Recipe(model=args.model, quantizer="")
    dtype: torch.dtype = getattr(torch, calibration_dtype(recipe))
    return dtype


class Stopwatch:
    """Progress that says nothing and notes when every task began and last advanced."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def start(self, task: str, total: int) -> None:  # noqa: ARG002 (protocol)
        """Note the time."""
        self._began[task] = self._last[task] = time.perf_counter()

    def advance(self, task: str, amount: int = 1) -> None:  # noqa: ARG002 (protocol)
        """Note the time."""
        self._last[task] = time.perf_counter()

    def note(self, text: str) -> None:
        """Say nothing."""

    def seconds(self, task: str) -> float:
        """From the start of a task to its last step."""
        return self._last[task] - self._began[task]


def print_setting(
    args: argparse.Namespace, *, threads: str, stored: str = "w4 g128 with zero points"
) -> None:
    """Print what a figure depends on: machine, threads, versions, model and text."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"machine  {cpu_model()}, {default_threads()} cores, {platform.platform(terse=True)}")
    print(f"threads  {threads}; calibration traced in {tracing_dtype(args)}")
    print(f"versions Python {platform.python_version()}, {versions}")
    print(
        f"model    {args.model}, {stored}; calibration {args.samples} × "
        f"{args.seq_len} tokens, evaluation {args.eval_windows} × {args.seq_len} per slice, "
        f"seed {args.seed}",
        flush=True,
    )


def cpu_model() -> str:
    """Name of the processor, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """Print columns as wide as their widest cell; ``words`` columns to the left, the rest right."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    print()
    for row in [head, *rows]:
        left = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([*left[:words], *right[words:]]).rstrip())
    print(flush=True)


def with_threads(threads: int) -> None:
    """Set torch's threads for this process."""
    torch.set_num_threads(threads)
