"""Every mode of transformers on an NVIDIA GPU; no test looks at how long something took."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemquant.core.protocols import Silence
from gemquant.measure.bench.document import Settings
from gemquant.measure.bench.measure import plan, run
from gemquant.measure.bench.subject import Subject
from tests.helpers.tiny_gemma import Kind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_all_modes_generate_the_same_and_tell_their_memory(
    tiny_folders: dict[Kind, Path], kind: Kind
) -> None:
    subject = Subject.open(str(tiny_folders[kind]))
    settings = Settings(
        prompt_tokens=32,
        new_tokens=8,
        repetitions=2,
        warm_up_runs=2,
        threads=1,
        device="cuda",
        dtype="float32",
    )
    made = run(plan([subject], device="cuda"), settings, Silence())
    rows = {row.mode: row for row in made.rows}
    assert rows["compiled"].figures is not None, rows["compiled"].not_run
    for mode, row in rows.items():
        if mode == "flash-attention-2" or (mode == "sdpa" and kind == "gemma2"):
            continue  # float32 is nothing for the first; Gemma 2's softcap nothing for the second
        assert row.figures is not None, row.not_run
        assert row.figures.repeatable
        assert row.tokens_as_first_mode in {None, 8}
        assert row.figures.peak_device_bytes is not None
        assert row.figures.peak_device_bytes > subject.size_bytes
    (gpu, *_) = made.environment.machine.accelerators
    assert gpu.driver is not None
    assert made.environment.conditions.accelerators
