"""Random checkpoints of Gemmas' true shapes, and what a process takes, for the benchmarks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gemquant.core.protocols import PlainSpec  # noqa: E402
from gemquant.formats.safetensors_writer import SafetensorsWriter  # noqa: E402
from gemquant.models.architecture import architecture_of, stored_shapes  # noqa: E402
from gemquant.models.config import text_config  # noqa: E402
from tests.helpers.published_gemma import PUBLISHED  # noqa: E402
from tests.helpers.tiny_gemma import write_tiny_tokenizer  # noqa: E402
from tests.helpers.tiny_sentencepiece import tiny_bpe_files  # noqa: E402

NUMBERS = 16_777_259
"""So many random ones are drawn; a prime, so that rows of every width differ."""


def write_checkpoint(
    folder: Path, layers: int, shape: Mapping[str, Any] = PUBLISHED["gemma-2-2b"]
) -> None:
    """Write seeded normal weights of a Gemma's usual spread, the same ``NUMBERS`` over and over."""
    folder.mkdir(parents=True)
    raw = {**shape, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(raw))
    config = text_config(raw)
    offset = architecture_of(config).norm_offset
    if offset:
        write_tiny_tokenizer(folder)
    else:
        for name, content in tiny_bpe_files().items():
            (folder / name).write_bytes(content)
    specs = {name: PlainSpec(each, torch.bfloat16) for name, each in stored_shapes(config).items()}
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0)) * 0.02
    numbers, place = numbers.to(torch.bfloat16).repeat(2), 0
    with SafetensorsWriter(folder, specs) as writer:
        for name, spec in specs.items():
            if len(spec.shape) == 1:
                writer.write(name, torch.full(spec.shape, 1 - offset, dtype=torch.bfloat16))
                continue
            rows, columns = math.prod(spec.shape[:-1]), spec.shape[-1]
            for first in range(0, rows, NUMBERS // columns):
                count = min(NUMBERS // columns, rows - first) * columns
                writer.write_rows(name, first, numbers[place : place + count].view(-1, columns))
                place = (place + count) % NUMBERS
        writer.finish()


class Run(NamedTuple):
    """What a command took: seconds, anonymous memory in bytes, processor time, bytes from disk."""

    seconds: float
    peak: int
    processor: float
    read: int


def timed(command: Sequence[str | Path]) -> Run:
    """Run a command to its end."""
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    sampler = PeakSampler(process.pid)
    sampler.start()
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: code {process.returncode}\n{errors}")
    sampler.join()
    after = os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    return Run(time.monotonic() - began, sampler.peak, processor, sampler.read)


def forget(folder: Path) -> None:
    """Write a folder's files to disk and drop them from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class PeakSampler(threading.Thread):
    """Samples a process's anonymous memory, and what it has read from disk, every 20 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = self.read = 0

    def run(self) -> None:
        """Sample until the process is gone."""
        while True:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
                disk = Path(f"/proc/{self.pid}/io").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            for line in disk.splitlines():
                if line.startswith("read_bytes:"):
                    self.read = int(line.split()[1])
            time.sleep(0.02)
