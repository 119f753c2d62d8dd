"""Every mode of every runtime generates what the plain one does, and says how long it took."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.core.protocols import AffineScheme
from gemquant.errors import ArtifactError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.mlx import MLX
from gemquant.runtimes.llamacpp_library import missing
from gemquant.runtimes.mlx import Mlx
from gemquant.runtimes.runtime import (
    RUNTIMES,
    SPEED_RUNTIMES,
    LoadOptions,
    LogitsRuntime,
    Mode,
    SpeedRuntime,
    speed_runtime,
    speed_runtimes,
)
from tests.helpers.tiny_artifact import tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_windows import tiny_windows

PROMPT = tiny_windows(1, 40).ids[0].tolist()
needs_llamacpp = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def load(name: str, path: Path, container: str, mode: str, dtype: str = "float32") -> SpeedRuntime:
    options = LoadOptions(dtype=dtype, threads=1, mode=mode, max_tokens=len(PROMPT) + 9)
    return speed_runtime(name).load(path, container, options)


def assert_measured(engine: SpeedRuntime) -> list[int]:
    """Two runs are alike, their times are in order."""
    first, again = (engine.time(PROMPT, 9) for _ in range(2))
    assert list(first.tokens) == list(again.tokens)
    assert len(first.tokens) == 9
    for run in (first, again):
        assert 0 < run.prefill_seconds <= run.first_token_seconds < run.total_seconds
    assert engine.peak_device_bytes() is None
    return list(first.tokens)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_modes_of_transformers_agree(tiny_folders: dict[Kind, Path], kind: Kind) -> None:
    folder = tiny_folders[kind]
    found = {
        mode.name: assert_measured(load("transformers", folder, "safetensors", mode.name))
        for mode in speed_runtime("transformers").modes(folder, "cpu")
        if mode.not_run is None
    }
    assert list(found) == (["eager", "static"] if kind == "gemma2" else ["eager", "sdpa", "static"])
    assert len({tuple(tokens) for tokens in found.values()}) == 1


def test_what_transformers_cannot_do_is_said_why(tiny_folders: dict[Kind, Path]) -> None:
    modes = speed_runtime("transformers").modes(tiny_folders["gemma2"], "cpu")
    reasons = {mode.name: mode.not_run for mode in modes}
    assert reasons["compiled"] == "transformers compiles on accelerators only, not on cpu"
    assert reasons["flash-attention-2"] == "needs an NVIDIA GPU"
    assert "softcap" in str(reasons["sdpa"])


def test_the_files_own_type_is_taken_unless_another_is_asked(
    tiny_folders: dict[Kind, Path],
) -> None:
    folder = tiny_folders["gemma2"]
    stored = load("transformers", folder, "safetensors", "eager", dtype="auto")
    assert "bfloat16 on cpu" in stored.software


@needs_llamacpp
def test_llamacpp_generates_what_transformers_does(tmp_path: Path) -> None:
    packed = gguf.GGMLQuantizationType.F32
    path = write_tiny_gguf(
        tmp_path / "model.gguf", "gemma", packed=packed, overrides=LLAMACPP["gemma"]
    )
    engine = load("llama.cpp", path, "gguf", "default")
    assert "llama.cpp" in engine.software
    tokens = assert_measured(engine)
    checkpoint = open_checkpoint(str(path))
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**checkpoint.config), dtype=torch.float32
    )
    state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    ids = list(PROMPT)
    with torch.no_grad():
        while len(ids) < len(PROMPT) + 9:
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokens == ids[len(PROMPT) :]


@pytest.mark.filterwarnings("ignore")  # mlx-lm's own
def test_mlx_generates_what_its_runner_does(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="MLX is not installed")
    scheme = AffineScheme(4, 64, symmetric=False)
    write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", scheme))
    tokens = assert_measured(load("mlx-lm", tmp_path, "mlx", "default"))
    assert Mlx.load(tmp_path, "mlx").generate(PROMPT, max_new_tokens=9) == tokens


def genai_folder(folder: Path, providers: list[dict[str, object]]) -> Path:
    """The configuration that the builder writes, as far as it is looked at."""
    config = {"model": {"decoder": {"session_options": {"provider_options": providers}}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_an_onnx_folder_runs_on_the_device_that_it_was_made_for(tmp_path: Path) -> None:
    onnx = speed_runtime("onnxruntime-genai")
    assert onnx.modes(genai_folder(tmp_path, []), "cpu") == [Mode("default")]
    for_gpu = genai_folder(tmp_path, [{"cuda": {}}])
    assert onnx.modes(for_gpu, "cuda:0") == [Mode("default")]
    assert onnx.modes(for_gpu, "cpu") == [Mode("default", "made for cuda, not for cpu")]


def test_an_onnx_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text('{"model": []}')
    with pytest.raises(ArtifactError, match="not as the builder writes it"):
        speed_runtime("onnxruntime-genai").modes(tmp_path, "cpu")


def test_every_container_has_its_runtimes() -> None:
    assert speed_runtimes("onnx") == ["onnxruntime-genai"]
    assert speed_runtimes("gguf") == ["llama.cpp"]
    assert speed_runtimes("mlx") == ["mlx-lm"]
    assert speed_runtimes("compressed-tensors") == ["transformers", "vllm"]
    assert speed_runtimes("gptq") == ["transformers", "vllm"]
    assert speed_runtimes("bitsandbytes") == ["transformers"]
    assert speed_runtimes("unheard-of") == []


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_called_what_it_is_listed_as(name: str) -> None:
    runtime = RUNTIMES[name].load_class()
    assert runtime.name == name
    assert bool(runtime.packages) == (name != "vllm")  # which has an interpreter of its own
    assert issubclass(runtime, SpeedRuntime) == (name in SPEED_RUNTIMES)
    assert issubclass(runtime, LogitsRuntime) == RUNTIMES[name].logits
