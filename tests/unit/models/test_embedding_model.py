"""EmbeddingGemma: opened from its folder, and streamed with attention to both sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from gemquant.errors import GemquantError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import FINAL_NORM
from tests.helpers.tiny_gemma import PROMPTS, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows
from tests.unit.models.test_skeleton import streamed

IDS = tiny_windows(3, 45, seed=5).ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_gemma(tmp_path / "model", "embedding")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_final_hidden_states_are_those_of_the_whole_model(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(str(folder))
    skeleton = Skeleton(checkpoint.config, dtype=dtype)
    norm = checkpoint.tensor(FINAL_NORM, dtype)
    found = skeleton.final_norm(norm, streamed(checkpoint, skeleton, IDS).hidden)
    model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        expected = model(IDS)[0]
    assert torch.equal(found, expected)


def test_a_sliding_layer_sees_half_its_window_to_each_side(tmp_path: Path) -> None:
    only = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
    checkpoint = open_checkpoint(
        str(write_tiny_gemma(tmp_path / "model", "embedding", overrides=only))
    )
    skeleton = Skeleton(checkpoint.config)
    changed = IDS.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 400
    before, after = (streamed(checkpoint, skeleton, ids).hidden for ids in (IDS, changed))
    differs = (before != after).any(2).all(0).nonzero().flatten().tolist()
    assert differs == list(range(16, 25))  # a window of 8: four to each side


def test_it_is_opened_with_dense_modules_and_its_own_prompts(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.shape("dense_2.weight") == (192, 128)
    assert checkpoint.shape("dense_3.weight") == (128, 192)
    assert checkpoint.prompts == PROMPTS
    assert sorted(checkpoint.source_digest()) == [
        "2_Dense/model.safetensors",
        "3_Dense/model.safetensors",
        "model.safetensors",
    ]


def edited(path: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / path
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, **changes}))

    return edit


def removed(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def without_pooling(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], *modules[2:]]))


WRONG: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "causal": (edited("config.json", use_bidirectional_attention=False), "read as an embedding"),
    "no modules": (removed("modules.json"), "modules.json is missing"),
    "no pooling": (without_pooling, "Transformer, Dense, Dense, Normalize: read are"),
    "no weights": (removed("2_Dense/model.safetensors"), "2_Dense/model.safetensors is missing"),
    "maximum": (
        edited(
            "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True
        ),
        "only the mean is computed",
    ),
    "without prompt": (edited("1_Pooling/config.json", include_prompt=False), "of all tokens"),
    "bias": (edited("2_Dense/config.json", bias=True), "2_Dense: bias True"),
    "activation": (
        edited("3_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
        "activation torch.nn.modules.activation.Tanh",
    ),
    "widths": (edited("3_Dense/config.json", in_features=128), "must read 192 features"),
    "no size": (edited("3_Dense/config.json", out_features=None), "must read 192 features"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_would_be_computed_otherwise_is_refused(folder: Path, wrong: str) -> None:
    spoil, message = WRONG[wrong]
    spoil(folder)
    with pytest.raises(GemquantError, match=message):
        open_checkpoint(str(folder))


def test_a_language_model_that_attends_to_both_sides_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    edited("config.json", use_bidirectional_attention=True)(folder)
    with pytest.raises(GemquantError, match="this is an embedding model"):
        open_checkpoint(str(folder))
