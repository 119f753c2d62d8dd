from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gemquant.convert.plugins import exporter
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.models.structure import HEAD
from tests.helpers.tiny_artifact import TinyArtifact, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def write(
    folder: Path, kind: Kind = "gemma2", *, tied: bool = True, **options: Any
) -> TinyArtifact:
    """Everything in one type: the tiny layout with no layer quantized."""
    plain = PlainSafetensors().configured(options)
    names = tiny_header(plain, kind, tied=tied).layout
    header = tiny_header(plain, kind, tied=tied, schemes=dict.fromkeys(names))
    return write_tiny_weights(folder, plain, header, tied=tied)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_tensor_reads_back_in_the_type_asked_for(
    tmp_path: Path, generation: Kind, dtype: str
) -> None:
    made = write(tmp_path, generation, dtype=dtype)
    weights = PlainSafetensors().open(tmp_path)
    assert list(weights.names()) == list(made.header.layout)
    for name, value in made.decoded.items():
        assert weights.stored_dtype(name) == getattr(torch, dtype)
        assert torch.equal(weights.tensor(name, torch.float32), value), name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_loads_it_with_no_flags_and_computes_the_same(
    tmp_path: Path, generation: Kind, tied: bool
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    made = write(tmp_path, generation, tied=tied, dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**made.header.config), dtype=torch.float32
    )
    state = dict(made.decoded)
    state.setdefault(HEAD, state["model.embed_tokens.weight"])
    expected.load_state_dict(state)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded.eval()(ids).logits, expected.eval()(ids).logits)


def test_the_configuration_names_the_type_and_no_quantization(tmp_path: Path) -> None:
    write(tmp_path, dtype="float16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float16", "float16")
    assert "quantization_config" not in config


def test_shards_are_no_larger_than_asked_for_but_for_a_single_tensor(tmp_path: Path) -> None:
    write(tmp_path, dtype="bfloat16", shard_size="200kB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    for shard in shards:
        with safe_open(shard, "pt") as file:
            names = list(file.keys())
            data = sum(file.get_tensor(name).nbytes for name in names)
        assert data <= 200_000 or len(names) == 1


def test_a_quantized_layer_has_no_place() -> None:
    plain = PlainSafetensors()
    (problem,) = plain.problems(tiny_header(plain))
    assert isinstance(problem, UnsupportedError)
    assert "safetensors holds nothing quantized" in problem.message


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[UP_PROJ]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=f"lacks {UP_PROJ}"):
        PlainSafetensors().open(tmp_path)


def test_integers_under_a_weights_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[UP_PROJ] = tensors[UP_PROJ].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=f"{UP_PROJ}: not stored as floating-point numbers"):
        PlainSafetensors().open(tmp_path)


def test_options_of_other_quantizers_change_nothing() -> None:
    assert exporter("safetensors", {"bits": 4}) == PlainSafetensors()
    assert exporter("compressed-tensors", {"dtype": "float16"}).name == "compressed-tensors"
