"""Gemma 4: its configurations, its checkpoints, and the streamed model against the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Gemma4TextConfig, PreTrainedConfig
from transformers.models.gemma4_unified import Gemma4UnifiedTextConfig

from gemquant.calibration.stream import Stream, carried_bytes, embed_windows, layer_weights
from gemquant.errors import CheckpointError, GemquantError, Problems, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.architecture import layer_parameters, layer_structure
from gemquant.models.config import text_config
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, FINAL_NORM, PER_LAYER_TABLE, layer_prefix
from tests.helpers.tiny_gemma import (
    GEMMA4,
    Kind,
    stacked,
    tiny_config,
    write_shards,
    write_tiny_gemma,
)
from tests.helpers.tiny_windows import tiny_windows

IDS = tiny_windows(3, 45, seed=5).ids
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture(params=GEMMA4)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def folder(kind: Kind, tmp_path: Path) -> Path:
    return write_tiny_gemma(tmp_path / kind, kind)


def text_part(raw: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = raw.get("text_config", raw)
    return part


def refusal(kind: Kind, **changes: Any) -> GemquantError:
    raw = tiny_config(kind)
    text_part(raw).update(changes)
    with pytest.raises(GemquantError) as caught:
        text_config(raw)
    return caught.value


# ---------------------------------------------------------------- configuration


def essential(config: PreTrainedConfig) -> dict[str, Any]:
    left_out = ("_name_or_path", "architectures", "transformers_version", "dtype")
    content = config.to_dict()
    return {key: value for key, value in content.items() if key not in left_out}


def test_the_published_spelling_reads_as_in_transformers(kind: Kind) -> None:
    raw = tiny_config(kind)
    library = Gemma4UnifiedTextConfig if kind == "gemma4_unified" else Gemma4TextConfig
    assert essential(library(**text_config(raw))) == essential(library(**text_part(raw)))


def test_the_spelling_of_transformers_reads_the_same(kind: Kind) -> None:
    raw = tiny_config(kind)
    library = Gemma4UnifiedTextConfig if kind == "gemma4_unified" else Gemma4TextConfig
    written = json.loads(library(**text_part(raw)).to_json_string())
    left_out = ("dtype",)
    ours, theirs = (
        {key: value for key, value in text_config(each).items() if key not in left_out}
        for each in (raw, written)
    )
    assert ours == theirs


def test_reading_a_configuration_again_changes_nothing(kind: Kind) -> None:
    config = text_config(tiny_config(kind))
    assert text_config(config) == config


def test_a_published_e2b_has_the_sizes_of_its_paper() -> None:
    config = text_config(
        {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "text_config": {
                "hidden_size": 1536,
                "intermediate_size": 6144,
                "num_hidden_layers": 35,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "num_kv_shared_layers": 20,
                "use_double_wide_mlp": True,
                "layer_types": ([SLIDING] * 4 + [FULL]) * 7,
            },
        }
    )
    first, shared, full = (layer_structure(config, index).shapes for index in (0, 15, 19))
    assert first["self_attn.k_proj.weight"] == (256, 1536)
    assert first["mlp.up_proj.weight"] == (6144, 1536)
    assert "self_attn.k_proj.weight" not in shared
    assert shared["mlp.up_proj.weight"] == (12288, 1536)
    assert full["self_attn.q_proj.weight"] == (8 * 512, 1536)
    assert layer_structure(config, 19).cache_values == 0
    assert layer_structure(config, 14).cache_values == 2 * 512


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma4_text", {"layer_types": [FULL]}, f"must be 4 times {SLIDING} or {FULL}"),
        (
            "gemma4_e",
            {"layer_types": [FULL] * 4 + [SLIDING, FULL, FULL]},
            f"num_kv_shared_layers 3: the layers before have no {SLIDING} to share",
        ),
        ("gemma4_e", {"num_kv_shared_layers": 7}, "must be from 0 to 6"),
        ("gemma4_text", {"attention_k_eq_v": 1}, "attention_k_eq_v 1: must be true or false"),
        ("gemma4_moe", {"num_experts": None}, "num_experts None: must be given"),
        ("gemma4_moe", {"top_k_experts": 9}, "top_k_experts 9: must be at most num_experts 8"),
        ("gemma4_text", {"global_head_dim": 33}, "layer 1: head_dim 33: must be even"),
        (
            "gemma4_text",
            {"per_layer_config": {"1": {"num_key_value_heads": 3}}},
            "num_key_value_heads 3: must divide num_attention_heads 4",
        ),
        ("gemma4_text", {"per_layer_config": {"9": {}}}, "layer 9: must be a layer's number"),
        (
            "gemma4_text",
            {"per_layer_config": {"1": {"intermediate_size": 8}}},
            "intermediate_size: only head_dim, num_key_value_heads differ",
        ),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "embedding model"),
    ],
)
def test_a_contradictory_configuration_is_refused(
    kind: Kind, changes: dict[str, Any], message: str
) -> None:
    error = refusal(kind, **changes)
    problems = error.problems if isinstance(error, Problems) else [error]
    assert any(message in problem.message for problem in problems)


def test_an_unknown_generation_lists_the_supported() -> None:
    with pytest.raises(UnsupportedError, match=r"Gemma5ForCausalLM: supported are Gemma.*Gemma4"):
        text_config({"architectures": ["Gemma5ForCausalLM"], "model_type": "gemma5"})
    with pytest.raises(UnsupportedError, match=r"model_type 'gemma5'\): supported are .*Gemma4"):
        text_config({"model_type": "gemma5"})


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma3n_text"])
def test_gemma_3n_is_refused_with_what_it_has_besides(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=r"Gemma 3n is not read: .*AltUp.*LAuReL"):
        text_config({"architectures": ["Gemma3nForCausalLM"], "model_type": model_type})


# ---------------------------------------------------------------- checkpoints


def test_towers_and_dead_tensors_are_none_of_the_text_models(
    folder: Path, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    names = open_checkpoint(str(folder)).names()
    assert caplog.messages == []
    assert [name for name in names if "tower" in name or "embed_vision" in name] == []
    if kind == "gemma4_e":
        assert "model.layers.3.self_attn.k_proj.weight" in names
        assert "model.layers.4.self_attn.k_proj.weight" not in names
        assert names[1] == PER_LAYER_TABLE


def changed(folder: Path, **tensors: Tensor | None) -> str:
    """Replace or remove tensors, whose names are given by their ends."""
    stored = load_file(folder / "model.safetensors")
    for end, value in tensors.items():
        (name,) = (each for each in stored if each.endswith(end))
        del stored[name]
        if value is not None:
            stored[name] = value
    write_shards(folder, stored)
    return str(folder)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_e")
    with pytest.raises(CheckpointError, match=f"1 tensors are missing: {PER_LAYER_TABLE}"):
        open_checkpoint(changed(folder, **{"embed_tokens_per_layer.weight": None}))


def test_experts_of_a_wrong_number_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_moe")
    wrong = changed(folder, **{"layers.2.experts.down_proj": torch.zeros(7, 128, 64)})
    with pytest.raises(
        CheckpointError, match=r"down_proj: shape \(7, 128, 64\), .* implies \(8, 128, 64\)"
    ):
        open_checkpoint(wrong)


def test_a_nan_in_one_expert_names_the_expert(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_moe")
    down = torch.ones(8, 128, 64)
    down[5, 3, 2] = float("nan")
    checkpoint = open_checkpoint(changed(folder, **{"layers.2.experts.down_proj": down}))
    checkpoint.tensor("model.layers.2.experts.4.down_proj.weight")
    with pytest.raises(CheckpointError, match=r"layers\.2\.experts\.5\.down_proj\.weight: 1 of"):
        checkpoint.tensor("model.layers.2.experts.5.down_proj.weight")


def test_experts_are_the_parts_of_the_stored_tensors(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_moe")
    whole = load_file(folder / "model.safetensors")
    checkpoint = open_checkpoint(str(folder))
    fused = whole["model.language_model.layers.1.experts.gate_up_proj"]
    prefix = "model.layers.1.experts.3."
    assert torch.equal(checkpoint.tensor(f"{prefix}gate_proj.weight"), fused[3, :64])
    assert torch.equal(checkpoint.rows(f"{prefix}up_proj.weight", 2, 5), fused[3, 66:69])


# ---------------------------------------------------------------- the streamed model


def whole_model(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**checkpoint.config), dtype=dtype, attn_implementation="sdpa"
    )
    model.set_experts_implementation("eager")
    state = {name: checkpoint.tensor(name, dtype) for name in checkpoint.names()}
    report = model.load_state_dict(stacked(checkpoint.config, state), strict=False)
    assert (report.unexpected_keys, report.missing_keys) == ([], ["lm_head.weight"])
    model.tie_weights()
    return model.eval()


def advanced(stream: Stream, checkpoint: Checkpoint, first: int, last: int) -> None:
    for index in range(first, last):
        names = layer_parameters(checkpoint.config, index)
        weights = layer_weights(checkpoint, layer_prefix(index), names, stream.skeleton)
        stream.advance(index, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_are_those_of_the_library(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(str(folder))
    skeleton = Skeleton(checkpoint.config, dtype=dtype)
    stream = embed_windows(skeleton, checkpoint, IDS)
    advanced(stream, checkpoint, 0, skeleton.layers)
    hidden = skeleton.final_norm(checkpoint.tensor(FINAL_NORM, dtype), stream.hidden)
    cap = skeleton.logit_softcap
    assert cap == 3.0
    found = torch.tanh(hidden @ checkpoint.tensor(EMBEDDING, dtype).T / cap) * cap
    with torch.no_grad():
        expected = whole_model(checkpoint, dtype)(IDS).logits
    assert torch.equal(found, expected)


def test_what_crosses_layers_is_enough_to_go_on(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path, "gemma4_e")))
    skeleton = Skeleton(checkpoint.config)
    stream = embed_windows(skeleton, checkpoint, IDS)
    advanced(stream, checkpoint, 0, 4)
    state = {name: tensor.clone() for name, tensor in stream.state("it").items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "it": (3, 45, 128),
        f"it.{SLIDING}.k": (3, 1, 45, 32),
        f"it.{SLIDING}.v": (3, 1, 45, 32),
        f"it.{FULL}.k": (3, 1, 45, 64),
        f"it.{FULL}.v": (3, 1, 45, 64),
    }
    advanced(stream, checkpoint, 4, 7)
    other = embed_windows(skeleton, checkpoint, IDS)
    other.restore("it", state)
    advanced(other, checkpoint, 4, 7)
    assert torch.equal(other.hidden, stream.hidden)


def test_a_copy_shares_no_keys_with_the_original(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path, "gemma4_e")))
    stream = embed_windows(Skeleton(checkpoint.config), checkpoint, IDS)
    advanced(stream, checkpoint, 0, 4)
    before = {name: tensor.clone() for name, tensor in stream.state("it").items()}
    copy = stream.copy(torch.randn_like(stream.hidden))
    advanced(copy, checkpoint, 3, 4)
    assert all(torch.equal(before[name], each) for name, each in stream.state("it").items())
    assert not torch.equal(copy.state("it")[f"it.{FULL}.k"], before[f"it.{FULL}.k"])


def test_truncated_windows_give_the_beginnings(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path, "gemma4_e")))
    stream = embed_windows(Skeleton(checkpoint.config), checkpoint, IDS)
    advanced(stream, checkpoint, 0, 5)
    shorter = stream.beginnings([0, 2], 20)
    advanced(shorter, checkpoint, 5, 7)
    advanced(stream, checkpoint, 5, 7)
    torch.testing.assert_close(shorter.hidden, stream.hidden[[0, 2], :20])


def test_what_windows_carry_is_foretold() -> None:
    config = text_config(tiny_config("gemma4_e"))
    # Hidden 128; keys and values of one sliding layer (2 · 32) and one full (2 · 64); and of every
    # token that may occur its rows of both embeddings, 7 · 32 and 128 wide.
    assert carried_bytes(config, 10, torch.float32) == 10 * 4 * (128 + 64 + 128 + 7 * 32 + 128)
    dense = text_config(tiny_config("gemma4_text"))
    assert carried_bytes(dense, 10, torch.bfloat16) == 10 * 2 * 128


def test_the_second_embedding_is_read_where_tokens_occur(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path, "gemma4_e")))
    read: list[tuple[int, int]] = []
    rows = Checkpoint.rows

    def counted(self: Checkpoint, name: str, start: int, stop: int, *rest: Any) -> Tensor:
        read.extend([(start, stop)] if name == PER_LAYER_TABLE else [])
        return rows(self, name, start, stop, *rest)

    monkeypatch.setattr(Checkpoint, "rows", counted)
    stream = embed_windows(Skeleton(checkpoint.config), checkpoint, torch.tensor([[3, 40, 41, 3]]))
    assert read == [(3, 4), (40, 42)]
    assert stream.inputs is not None
    assert stream.inputs.rows.shape == (3, 7 * 32)
