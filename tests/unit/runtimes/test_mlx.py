from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.core.protocols import AffineScheme
from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.formats.mlx import MLX
from gemquant.measure.quality.native import NativeRuntime
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.runtimes import mlx as mlx_module
from gemquant.runtimes import runtime as runtime_module
from gemquant.runtimes.mlx import Mlx
from tests.helpers.tiny_artifact import TinyArtifact, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind
from tests.helpers.window_logits import window_logits

IDS = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
W4 = AffineScheme(4, 64, symmetric=False)


@pytest.fixture
def installed() -> None:
    """Skip where the runtime under test is not installed; its own warnings are not ours."""
    pytest.importorskip("mlx_lm", reason="the runtime under test is not installed")


needs_mlx = [pytest.mark.usefixtures("installed"), pytest.mark.filterwarnings("ignore")]


def dense_logits(made: TinyArtifact, ids: Tensor) -> Tensor:
    """The decoded weights in transformers, with the two constants that mlx-lm has otherwise."""
    config = dict(made.header.config)
    if config["model_type"] == "gemma":
        config["hidden_act"] = "gelu"  # mlx-lm: exact; transformers: the tanh form
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model.load_state_dict(dict(made.decoded), strict=False)
    model.tie_weights()
    if config["model_type"] == "gemma3_text":
        # mlx-lm rounds √hidden to bfloat16.
        scale = torch.tensor(config["hidden_size"] ** 0.5).bfloat16().float()
        model.model.embed_tokens.embed_scale.copy_(scale)
    with torch.no_grad():
        logits: Tensor = model.eval()(ids).logits
    return logits


def assert_equal_to_float_tolerance(found: Tensor, expected: Tensor) -> None:
    # Tiny models have gains of up to a hundred, which enlarge the last bits of float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-4 * float(expected.abs().max()))


class TestWithMlx:
    pytestmark = needs_mlx

    @pytest.mark.parametrize("kind", ["gemma", "gemma3_text"])
    def test_logits_are_those_of_the_decoded_weights(self, tmp_path: Path, kind: Kind) -> None:
        made = write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), kind, W4))
        found = window_logits(Mlx.load(tmp_path, "mlx"), IDS)
        assert_equal_to_float_tolerance(found, dense_logits(made, IDS))

    def test_suppressed_tokens_are_passed_over(self, tmp_path: Path) -> None:
        made = write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", W4))
        first, second = dense_logits(made, IDS[:1])[0, -1].topk(2).indices.tolist()
        runtime, prompt = Mlx.load(tmp_path, "mlx"), IDS[0].tolist()
        assert list(runtime.tokens(prompt, limit=1)) == [first]
        assert list(runtime.tokens(prompt, limit=1, suppressed={first, 10**6})) == [second]

    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
    def test_every_width_computes(self, tmp_path: Path, bits: int) -> None:
        scheme = AffineScheme(bits, 32, symmetric=False)
        made = write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", scheme))
        found = window_logits(Mlx.load(tmp_path, "mlx"), IDS)
        assert_equal_to_float_tolerance(found, dense_logits(made, IDS))

    def test_gemma_2_is_right_within_its_window_and_wrong_beyond(self, tmp_path: Path) -> None:
        made = write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma2", W4))
        runtime = Mlx.load(tmp_path, "mlx")
        found, expected = window_logits(runtime, IDS), dense_logits(made, IDS)
        assert runtime.max_window == 8
        assert_equal_to_float_tolerance(found[:, :8], expected[:, :8])
        assert (found[:, 8:] - expected[:, 8:]).abs().max() > 0.1

    def test_a_quantized_embedding_is_read_as_head_too(self, tmp_path: Path) -> None:
        header = tiny_header(MLX(), "gemma3_text", W4, schemes={EMBEDDING: W4})
        made = write_tiny_weights(tmp_path, MLX(), header)
        runtime = Mlx.load(tmp_path, "mlx")
        assert_equal_to_float_tolerance(window_logits(runtime, IDS), dense_logits(made, IDS))
        torch.testing.assert_close(runtime.head_rows(5, 90), made.decoded[EMBEDDING][5:90])

    def test_an_untied_quantized_head_is_the_head(self, tmp_path: Path) -> None:
        header = tiny_header(MLX(), "gemma3_text", W4, tied=False, quantized_head=True)
        made = write_tiny_weights(tmp_path, MLX(), header, tied=False)
        runtime = Mlx.load(tmp_path, "mlx")
        torch.testing.assert_close(runtime.head_rows(5, 90), made.decoded[HEAD][5:90])

    def test_hidden_states_are_what_the_head_reads(self, tmp_path: Path) -> None:
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", W4))
        runtime = Mlx.load(tmp_path, "mlx")
        logits = runtime.hidden_states(IDS) @ runtime.head_rows(0, 1000).T
        assert_equal_to_float_tolerance(logits, window_logits(runtime, IDS))

    def test_generation_continues_with_the_likeliest_token(self, tmp_path: Path) -> None:
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", W4))
        runtime = Mlx.load(tmp_path, "mlx")
        prompt = [2, 50, 60]
        first, *rest = runtime.generate(prompt, max_new_tokens=3)
        assert first == int(window_logits(runtime, torch.tensor([prompt]))[0, -1].argmax())
        assert len(rest) == 2

    def test_the_runtime_says_that_it_was_a_cpu(self, tmp_path: Path) -> None:
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma2", W4))
        runtime = NativeRuntime.find(tmp_path, "mlx").runtime
        assert "float32 on CPU, no Apple GPU involved" in runtime
        assert runtime.endswith("; Gemma 2 only within its window of 8 tokens")

    def test_files_that_mlx_lm_refuses_are_an_artifact_error(self, tmp_path: Path) -> None:
        write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma2", W4))
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(ArtifactError, match="mlx-lm refuses"):
            Mlx.load(tmp_path, "mlx")


def test_a_missing_mlx_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "installed_version", lambda package: None)
    with pytest.raises(RuntimeMissingError, match="mlx and mlx-lm not installed") as caught:
        Mlx.load(tmp_path, "mlx")
    assert caught.value.hint == "pip install 'gemquant[mlx]'"
    found = NativeRuntime.find(tmp_path, "mlx")
    assert found.not_run == "mlx and mlx-lm not installed; pip install 'gemquant[mlx]'"


def test_windows_has_no_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_module.sys, "platform", "win32")
    assert Mlx.unavailable("mlx") == (
        "MLX has no build for Windows; run it on macOS, or on Linux's CPU"
    )


def test_another_container_is_not_for_mlx_lm() -> None:
    assert Mlx.unavailable("metal") == "mlx-lm does not load metal"
