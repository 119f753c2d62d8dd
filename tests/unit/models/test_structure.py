from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.architecture import (
    layer_parameters,
    layer_structure,
    linear_shapes,
    tensor_shapes,
)
from gemquant.models.structure import InputGroup, NormFold, RowFold
from tests.helpers.tiny_gemma import Kind, tiny_config


def test_gemma_1_folds_the_feed_forward_into_the_norm_after_attention() -> None:
    assert layer_structure(tiny_config("gemma"), 0).groups == (
        InputGroup(
            "qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            NormFold("input_layernorm"),
        ),
        InputGroup("o", ("self_attn.o_proj",), RowFold("self_attn.v_proj", 8, 32)),
        InputGroup(
            "gate_up", ("mlp.gate_proj", "mlp.up_proj"), NormFold("post_attention_layernorm")
        ),
        InputGroup("down", ("mlp.down_proj",), RowFold("mlp.up_proj")),
    )


def test_gemma_2_and_3_fold_it_into_the_norm_before_the_feed_forward() -> None:
    for kind in ("gemma2", "gemma3_text"):
        groups = {g.name: g for g in layer_structure(tiny_config(kind), 1).groups}
        assert groups["gate_up"].fold == NormFold("pre_feedforward_layernorm")
        assert groups["o"].fold == RowFold("self_attn.v_proj", 4, 32)


def test_names_and_shapes_are_those_of_transformers(tiny_folder: Path) -> None:
    config = open_checkpoint(str(tiny_folder)).config
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert tensor_shapes(config) == theirs


def test_an_untied_head_is_the_last_tensor(tiny_folders: dict[Kind, Path]) -> None:
    config = {**open_checkpoint(str(tiny_folders["gemma2"])).config, "tie_word_embeddings": False}
    name, shape = list(tensor_shapes(config).items())[-1]
    assert (name, shape) == ("lm_head.weight", (config["vocab_size"], 128))


def test_a_layers_parameters_are_its_linears_and_norms(tiny_folder: Path) -> None:
    config = open_checkpoint(str(tiny_folder)).config
    prefix = "model.layers.0."
    expected = {n.removeprefix(prefix) for n in tensor_shapes(config) if n.startswith(prefix)}
    assert set(layer_parameters(config, 0)) == expected
    structure = layer_structure(config, 0)
    assert set(structure.linear_shapes) == set(structure.linears)


def test_linears_are_listed_layer_by_layer(tiny_folder: Path) -> None:
    config = open_checkpoint(str(tiny_folder)).config
    matrices = {n: s for n, s in tensor_shapes(config).items() if len(s) == 2}
    del matrices["model.embed_tokens.weight"]
    assert linear_shapes(config) == matrices
