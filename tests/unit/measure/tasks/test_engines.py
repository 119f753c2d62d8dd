"""Every runtime's logits, window by window, against transformers on the decoded weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gemquant.core.protocols import AffineScheme
from gemquant.formats.mlx import MLX
from gemquant.measure.tasks.engines.engine import Chunk, Engine, Score, Target, Window
from gemquant.measure.tasks.engines.llamacpp import LlamaCppEngine
from gemquant.measure.tasks.engines.mlx import MlxEngine
from gemquant.measure.tasks.engines.transformers import TransformersEngine
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.llamacpp import LlamaCppRunner
from gemquant.runtimes.llamacpp_model import ContextSize, LlamaContext
from gemquant.runtimes.mlx import MlxRunner
from gemquant.runtimes.transformers import TransformersRunner
from tests.helpers.tiny_artifact import tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_windows import tiny_windows

IDS = tiny_windows(3, 200).ids.tolist()
WINDOWS = [
    Window(tuple(IDS[0][:40]), 35),
    Window(tuple(IDS[1][:200]), 3),
    Window(tuple(IDS[2][:150]), 149),
    Window(tuple(IDS[0][:129]), 128),
]
"""Short, longer than a chunk, and with their wanted positions beyond the first chunk."""


def joined(engine: Engine) -> list[Tensor]:
    """All wanted logits of every window; fails where a position is missing or comes twice."""
    found: list[dict[int, Tensor]] = [{} for _ in WINDOWS]
    for chunk in engine.chunks(WINDOWS):
        for row, logits in enumerate(chunk.logits):
            assert chunk.start + row not in found[chunk.window]
            found[chunk.window][chunk.start + row] = logits.clone()
    for window, rows in zip(WINDOWS, found, strict=True):
        assert sorted(rows) == list(range(window.first, len(window.ids)))
    return [torch.stack([rows[n] for n in sorted(rows)]) for rows in found]


def whole(model: Any) -> list[Tensor]:
    """The same from plain calls of a model of transformers."""
    with torch.no_grad():
        return [model(torch.tensor([w.ids])).logits[0, w.first :].float() for w in WINDOWS]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.fixture
def transformers_engine(tiny_folder: Path) -> Callable[[int], TransformersEngine]:
    runner = TransformersRunner.load(tiny_folder, "safetensors", dtype=torch.float32)
    return lambda batch: TransformersEngine(runner.runtime, runner.model, runner.device, batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_transformers_logits_are_those_of_plain_calls_in_any_batch(
    transformers_engine: Callable[[int], TransformersEngine], batch: int
) -> None:
    engine = transformers_engine(batch)
    assert_close(joined(engine), whole(engine.model), 1e-4)


def test_transformers_continues_as_its_own_generate_does(
    transformers_engine: Callable[[int], TransformersEngine],
) -> None:
    engine = transformers_engine(1)
    expected = engine.model.generate(
        torch.tensor([IDS[0][:30]]),
        attention_mask=torch.ones((1, 30), dtype=torch.int64),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 30:].tolist()
    assert list(engine.continuation(IDS[0][:30], most=20)) == expected


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing()))
class TestLlamaCpp:
    @pytest.fixture
    def runner(self, tmp_path: Path) -> LlamaCppRunner:
        kind: Kind = "gemma3_text"
        packed = gguf.GGMLQuantizationType.F32
        path = write_tiny_gguf(
            tmp_path / "model.gguf", kind, packed=packed, overrides=LLAMACPP[kind]
        )
        return LlamaCppRunner.load(path, "gguf")

    def test_logits_are_those_of_its_runner(self, runner: LlamaCppRunner) -> None:
        found = joined(LlamaCppEngine(runner))
        for window, logits in zip(WINDOWS, found, strict=True):
            ids = torch.tensor([[*window.ids, 5]])
            plain = torch.cat([chunk.clone() for chunk in runner.logit_chunks(ids)])
            # The same kernels; other numbers of rows at once may add up in another order.
            assert_close([logits], [plain[window.first :]], 1e-3)

    def test_windows_that_begin_alike_give_what_they_give_alone(
        self, runner: LlamaCppRunner
    ) -> None:
        context = IDS[0][:90]
        alike = [Window((*context, *IDS[n][100:106]), 89) for n in range(3)]
        found = {
            chunk.window: chunk.logits.clone() for chunk in LlamaCppEngine(runner).chunks(alike)
        }
        size = ContextSize(tokens=96, batch=96, outputs=7)
        with LlamaContext(runner.model, size, threads=runner.threads) as alone:
            for number, window in enumerate(alike):
                alone.clear()
                ids = np.array(window.ids, dtype=np.int32)
                alone.decode(ids[:89], start=0, outputs=1)
                logits = torch.from_numpy(alone.decode(ids[89:], start=89, outputs=7))
                # Keys and values of other numbers of tokens at once add up in another order.
                assert_close([found[number]], [logits], 0.02)

    def test_it_continues_as_its_runner_does(self, runner: LlamaCppRunner) -> None:
        expected = runner.generate(IDS[0][:150], max_new_tokens=10)
        found = list(LlamaCppEngine(runner).continuation(IDS[0][:150], most=10))
        assert found[: len(expected)] == expected


@pytest.mark.filterwarnings("ignore")
class TestMlx:
    @pytest.fixture
    def runner(self, tmp_path: Path) -> MlxRunner:
        pytest.importorskip("mlx_lm", reason="the runtime under test is not installed")
        scheme = AffineScheme(4, 64, symmetric=False)
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", scheme))
        return MlxRunner.load(tmp_path, "mlx")

    def test_logits_are_those_of_whole_windows(self, runner: MlxRunner) -> None:
        expected = [
            runner.logits(torch.tensor([w.ids]), range(w.first, len(w.ids)))[0] for w in WINDOWS
        ]
        assert_close(joined(MlxEngine(runner)), expected, 3e-4)

    def test_it_continues_as_its_runner_does(self, runner: MlxRunner) -> None:
        expected = runner.generate(IDS[0][:30], max_new_tokens=8)
        assert list(MlxEngine(runner).continuation(IDS[0][:30], most=8)) == expected


class TestScore:
    def test_it_sums_what_several_chunks_say(self) -> None:
        logits = torch.randn((6, 50), generator=torch.Generator().manual_seed(0))
        target = Target(first=2, ids=(7, 3, int(logits[4].argmax())))
        score = Score()
        for start in (0, 3):
            score.see(Chunk(0, start, logits[start : start + 3]), target)
        told = logits.double().log_softmax(-1)
        expected = told[2, 7] + told[3, 3] + told[4, target.ids[2]]
        assert score.log_likelihood == pytest.approx(float(expected), rel=1e-6)
        assert not score.greedy

    def test_it_is_greedy_where_every_token_is_first(self) -> None:
        logits = torch.randn((2, 50), generator=torch.Generator().manual_seed(1))
        score = Score()
        score.see(Chunk(0, 0, logits), Target(0, tuple(logits.argmax(-1).tolist())))
        assert score.greedy


def test_an_original_is_the_checkpoint_in_transformers(tiny_folder: Path) -> None:
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.measure.tasks.opening import original_engine
    from tests.helpers.tiny_tasks import task_settings

    engine = original_engine(open_checkpoint(str(tiny_folder)), task_settings())
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    assert_close(joined(engine), whole(plain), 1e-4)
    assert len(list(islice(engine.continuation(IDS[0][:9], most=3), 3))) == 3
