"""Random checkpoints of Gemma 2 2B's shape, and a sampler of memory, for the benchmarks."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gemquant.core.protocols import PlainSpec, RowChunks  # noqa: E402
from gemquant.formats.safetensors_writer import SafetensorsWriter  # noqa: E402
from gemquant.models.architecture import tensor_shapes  # noqa: E402
from gemquant.models.config import text_config  # noqa: E402
from tests.helpers.tiny_gemma import write_tiny_tokenizer  # noqa: E402

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


def write_checkpoint(folder: Path, layers: int, shape: Mapping[str, Any] = SHAPE) -> None:
    """Write seeded normal weights of a Gemma's usual spread, run of rows by run of rows."""
    folder.mkdir(parents=True)
    raw = {**shape, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(raw))
    write_tiny_tokenizer(folder)
    shapes = tensor_shapes(text_config(raw))
    specs = {name: PlainSpec(shape, torch.bfloat16) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)

    def runs(shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        for start in range(0, shape[0], 8192):
            rows = min(8192, shape[0] - start)
            yield (torch.randn(rows, shape[1], generator=generator) * 0.02).to(torch.bfloat16)

    with SafetensorsWriter(folder, specs) as writer:
        for name, each in shapes.items():
            if len(each) == 2:
                matrix = RowChunks((each[0], each[1]), torch.bfloat16, lambda s=each: runs(s))
                writer.write_chunks(name, matrix)
            else:
                writer.write(name, torch.zeros(each, dtype=torch.bfloat16))
        writer.finish()


class PeakSampler(threading.Thread):
    """Samples a process's anonymous memory every 20 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0

    def run(self) -> None:
        """Sample until the process is gone."""
        while True:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.02)
