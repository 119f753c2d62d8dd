"""Every runtime's logits, window by window, against transformers on the decoded weights."""

from __future__ import annotations

import subprocess
import sys
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
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.llamacpp import ContextSize, LlamaContext, LlamaCpp
from gemquant.runtimes.mlx import Mlx
from gemquant.runtimes.runtime import LoadOptions, LogitsRuntime, Window
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_artifact import tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_windows import tiny_windows
from tests.helpers.window_logits import wanted_logits

IDS = tiny_windows(3, 200).ids.tolist()
WINDOWS = [
    Window(tuple(IDS[0][:40]), 35),
    Window(tuple(IDS[1][:200]), 3),
    Window(tuple(IDS[2][:150]), 149),
    Window(tuple(IDS[0][:129]), 128),
]
"""Short, longer than a chunk, and with their wanted positions beyond the first chunk."""


def joined(runtime: LogitsRuntime) -> list[Tensor]:
    """All wanted logits of every window."""
    return wanted_logits(runtime, WINDOWS)


def whole(model: Any) -> list[Tensor]:
    """The same from plain calls of a model of transformers."""
    with torch.no_grad():
        return [model(torch.tensor([w.ids])).logits[0, w.first :].float() for w in WINDOWS]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
def test_transformers_logits_are_those_of_plain_calls_in_any_batch(
    tiny_folder: Path, batch: int
) -> None:
    options = LoadOptions(dtype="float32", batch_size=batch)
    runtime = Transformers.load(tiny_folder, "safetensors", options)
    assert_close(joined(runtime), whole(runtime.model), 1e-4)


def test_transformers_continues_as_its_own_generate_does(tiny_folder: Path) -> None:
    runtime = Transformers.load(tiny_folder, "safetensors", LoadOptions(dtype="float32"))
    expected = runtime.model.generate(
        torch.tensor([IDS[0][:30]]),
        attention_mask=torch.ones((1, 30), dtype=torch.int64),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 30:].tolist()
    assert list(runtime.tokens(IDS[0][:30], limit=20)) == expected


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing()))
class TestLlamaCpp:
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> LlamaCpp:
        kind: Kind = "gemma3_text"
        packed = gguf.GGMLQuantizationType.F32
        path = write_tiny_gguf(
            tmp_path / "model.gguf", kind, packed=packed, overrides=LLAMACPP[kind]
        )
        return LlamaCpp.load(path, "gguf")

    def test_logits_are_those_of_whole_windows(self, runtime: LlamaCpp) -> None:
        found = joined(runtime)
        for window, logits in zip(WINDOWS, found, strict=True):
            ids = torch.tensor([[*window.ids, 5]])
            plain = torch.cat([chunk.clone() for chunk in runtime.logit_chunks(ids)])
            # The same kernels; other numbers of rows at once may add up in another order.
            assert_close([logits], [plain[window.first :]], 1e-3)

    def test_windows_that_begin_alike_give_what_they_give_alone(self, runtime: LlamaCpp) -> None:
        context = IDS[0][:90]
        alike = [Window((*context, *IDS[n][100:106]), 89) for n in range(3)]
        found = {chunk.window: chunk.logits.clone() for chunk in runtime.logits(alike)}
        size = ContextSize(tokens=96, batch=96, outputs=7)
        alone = LlamaContext(runtime.model, size, threads=runtime.threads)
        for number, window in enumerate(alike):
            alone.clear()
            ids = np.array(window.ids, dtype=np.int32)
            alone.decode(ids[:89], start=0, outputs=1)
            logits = torch.from_numpy(alone.decode(ids[89:], start=89, outputs=7))
            # Keys and values of other numbers of tokens at once add up in another order.
            assert_close([found[number]], [logits], 0.02)

    def test_it_continues_with_the_likeliest_token(self, runtime: LlamaCpp) -> None:
        tokens = list(runtime.tokens(IDS[0][:150], limit=10))
        ids = torch.tensor([IDS[0][:150] + tokens])
        likeliest = torch.cat([chunk.argmax(-1) for chunk in runtime.logit_chunks(ids)])
        assert tokens == likeliest[149:].tolist()


@pytest.mark.filterwarnings("ignore")
class TestMlx:
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Mlx:
        pytest.importorskip("mlx_lm", reason="the runtime under test is not installed")
        scheme = AffineScheme(4, 64, symmetric=False)
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", scheme))
        return Mlx.load(tmp_path, "mlx")

    def test_logits_are_those_of_whole_windows(self, runtime: Mlx) -> None:
        import mlx.core as mx

        expected = [
            torch.from_numpy(np.array(runtime.model(mx.array([w.ids]))[0, w.first :]))
            for w in WINDOWS
        ]
        assert_close(joined(runtime), expected, 3e-4)

    def test_it_continues_with_the_likeliest_token(self, runtime: Mlx) -> None:
        tokens = list(runtime.tokens(IDS[0][:30], limit=8))
        ids = torch.tensor([IDS[0][:30] + tokens])
        likeliest = torch.cat([chunk.argmax(-1) for chunk in runtime.logit_chunks(ids)])
        assert tokens == likeliest[29:].tolist()


def test_importing_llamacpp_does_not_import_torch() -> None:
    """Its memory would count in a benchmark."""
    program = (
        "import sys, gemquant.measure.bench.child\n"
        "from gemquant.runtimes.runtime import speed_runtime\n"
        "speed_runtime('llama.cpp')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_original_is_the_checkpoint_in_transformers(tiny_folder: Path) -> None:
    from gemquant.formats.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(str(tiny_folder))
    runtime = Transformers.load_checkpoint(checkpoint, LoadOptions(dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    assert_close(joined(runtime), whole(plain), 1e-4)
    assert len(list(runtime.tokens(IDS[0][:9], limit=3))) == 3
