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
from gemquant.models.structure import FULL, SLIDING  # noqa: E402
from tests.helpers.tiny_gemma import write_tiny_tokenizer  # noqa: E402
from tests.helpers.tiny_sentencepiece import tiny_bpe_files  # noqa: E402

SHAPE: Mapping[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


_GEMMA4: Mapping[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "sliding_window": 1024,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 262144,
    "torch_dtype": "bfloat16",
}
_E2B_TABLE = 35 * 256
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gemma-2-2b": {**SHAPE, "num_hidden_layers": 26},
    "gemma-2-9b": {
        **SHAPE,
        "num_hidden_layers": 42,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "gemma-2-27b": {
        **SHAPE,
        "num_hidden_layers": 46,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "gemma-4-26b-a4b": {
        **_GEMMA4,
        "num_hidden_layers": 30,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "gemma-4-31b": {
        **_GEMMA4,
        "num_hidden_layers": 60,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
    },
    "gemma-4-e2b": {
        **_GEMMA4,
        "num_hidden_layers": 35,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "attention_k_eq_v": False,
        "use_double_wide_mlp": True,
    },
}
"""As published, with the true number of layers."""

NUMBERS = 16_777_259
"""So many random ones are drawn; a prime, so that rows of every width differ."""


def shape_of(name: str, layers: int) -> dict[str, Any]:
    """One of ``SHAPES`` with another number of layers, but E2B's second table as wide as ever."""
    shape = {**SHAPES[name], "num_hidden_layers": layers}
    if name == "gemma-4-e2b":
        if _E2B_TABLE % layers or layers % 5:
            raise SystemExit(f"{layers} layers of E2B: must be 10, 20, 35, 40 or 70.")
        shape["layer_types"] = [FULL if n % 5 == 4 else SLIDING for n in range(layers)]
        shape["num_kv_shared_layers"] = 20 * layers // 35
        shape["hidden_size_per_layer_input"] = _E2B_TABLE // layers
    return shape


def write_checkpoint(folder: Path, layers: int, shape: Mapping[str, Any] = SHAPE) -> None:
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
