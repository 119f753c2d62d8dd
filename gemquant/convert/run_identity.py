"""What a run must share with an interrupted one to go on where that stopped."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemquant.convert.manifest_facts import library_versions
from gemquant.numerics import native

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.convert.plan import Job
    from gemquant.formats.checkpoint import Checkpoint


def run_identity(
    jobs: Sequence[Job],
    checkpoint: Checkpoint,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
) -> str:
    """Digest everything that decides bytes, hexadecimal.

    Recipes, the model's configuration, tokens, library versions, threads and what the processor
    can do. Files, the weights and those that an option names, by place, size and time of change:
    hashing a checkpoint takes minutes.
    """
    adapter = checkpoint.adapter
    files = [*checkpoint.source.files, *(adapter.files if adapter is not None else ())]
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
        elif isinstance(value, str) and name not in {"model", "lora"} and Path(value).is_file():
            yield Path(value)
