"""Gemma 4 as a GGUF: types of its own tensors, and a file that reads back as the folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from gemquant.convert.plan import Job
from gemquant.core.recipe import Recipe
from gemquant.core.weights import ChunkedWeight, Stackable
from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.gguf.config import gguf_config, unrepresentable
from gemquant.formats.gguf.exporter import GGUF
from gemquant.formats.gguf.mixtures import file_type
from gemquant.formats.gguf.types import TypeRequest, choose_types
from gemquant.measure.quality.measure import compare
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, PER_LAYER_TABLE
from gemquant.quantizers.gguf import KQuant
from tests.helpers.tiny_gemma import GEMMA4, Kind, tiny_config
from tests.helpers.tiny_job import EVALUATION, run_tiny
from tests.helpers.tiny_sentencepiece import write_convertible_gemma

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Kind, Path]:
    root = tmp_path_factory.mktemp("convertible")
    return {kind: write_convertible_gemma(root, kind) for kind in GEMMA4}


def written(checkpoint: Checkpoint, out: Path, kind: str) -> Path:
    quantizer = KQuant(type=kind).for_model(checkpoint.config)
    recipe = Recipe(model="tiny", quantizer="gguf", exporter="gguf")
    run_tiny(checkpoint, [Job(quantizer, GGUF(), out / kind, recipe)], evaluation=())
    (path,) = (out / kind).glob("*.gguf")
    return path


def test_a_certificate_holds_no_codes_of_the_per_layer_table(
    folders: Mapping[Kind, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, held = open_checkpoint(str(folders["gemma4_e"])), list[tuple[int, ...]]()
    append = ChunkedWeight.append

    def recorded(chunked: ChunkedWeight, chunk: Stackable) -> None:
        held.append(chunk.shape)
        append(chunked, chunk)

    monkeypatch.setattr(ChunkedWeight, "append", recorded)
    quantizer = KQuant(type="Q4_0").for_model(checkpoint.config)
    recipe = Recipe(model="tiny", quantizer="gguf", exporter="gguf")
    (artifact,) = run_tiny(checkpoint, [Job(quantizer, GGUF(), tmp_path / "out", recipe)])
    table = artifact.manifest.per_layer_embedding
    assert table is not None
    assert table.bits_per_weight == 8.5  # Q8_0
    assert table.weights == checkpoint.shape(PER_LAYER_TABLE)[0] * 7 * 32
    # The embedding and the projection alone: the table has 7 · 32 columns.
    assert {columns for _, columns in held} == {128}
    (again,) = compare(checkpoint, GGUF().open(artifact.path), EVALUATION)
    recorded_slices = artifact.manifest.certificates[0].slices
    for measured, said in zip(again.slices, recorded_slices, strict=True):
        assert measured.kl_mean.value == pytest.approx(said.kl_mean.value, rel=1e-5)


def with_more(
    path: Path, target: Path, tensors: Mapping[str, np.ndarray], without: Collection[str] = ()
) -> Path:
    """The same file with other or further tensors, or without some."""
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(target, "gemma4")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            element = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        if tensor.name not in tensors and tensor.name not in without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", GEMMA4)
def test_a_file_in_bfloat16_reads_back_as_its_folder(
    folders: Mapping[Kind, Path], kind: Kind, tmp_path: Path
) -> None:
    folder = open_checkpoint(str(folders[kind]))
    read = open_checkpoint(str(written(folder, tmp_path, "BF16")))
    own = {"architectures", "model_type", "dtype", "use_bidirectional_attention"}
    ours, theirs = (
        {key: value for key, value in each.config.items() if key not in own}
        for each in (read, folder)
    )
    # As a text model the 12B computes what the others do, and llama.cpp gives it their name.
    assert {key: ours[key] for key in theirs} == theirs
    assert read.names() == folder.names()
    for name in folder.names():
        assert torch.equal(read.tensor(name, torch.float32), folder.tensor(name, torch.float32))
    tokenizers = [json.loads(each.tokenizer_files()["tokenizer.json"]) for each in (read, folder)]
    for part in ("model", "added_tokens", "normalizer", "decoder"):
        assert tokenizers[0][part] == tokenizers[1][part], part
    ends = read.tokenizer_source.end_tokens
    assert ends == {1, tokenizers[1]["model"]["vocab"]["<turn|>"]}
    generation = json.loads(read.tokenizer_files()["generation_config.json"])
    assert generation.get("suppress_tokens") == ([7, 11] if kind == "gemma4_unified" else None)


def test_gate_and_up_of_experts_in_tensors_of_their_own_are_read(
    folders: Mapping[Kind, Path], tmp_path: Path
) -> None:
    folder = open_checkpoint(str(folders["gemma4_moe"]))
    path, older = written(folder, tmp_path, "F16"), {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.endswith("ffn_gate_up_exps.weight"):
            for part, values in zip(("gate", "up"), np.split(tensor.data, 2, axis=1), strict=True):
                older[tensor.name.replace("gate_up", part)] = np.ascontiguousarray(values)
    dropped = {name.replace("gate_exps", "gate_up_exps") for name in older}
    again = with_more(path, tmp_path / "older.gguf", older, without=dropped)
    read, whole = open_checkpoint(str(again)), open_checkpoint(str(path))
    assert len(older) == 8
    for name in whole.names():
        assert torch.equal(read.tensor(name), whole.tensor(name)), name
    first, second = (
        written(each, tmp_path / out, "Q8_0") for each, out in ((read, "a"), (whole, "b"))
    )
    assert first.read_bytes() == second.read_bytes()


def test_keys_and_values_that_no_layer_reads_are_passed_over(
    folders: Mapping[Kind, Path], tmp_path: Path
) -> None:
    path = written(open_checkpoint(str(folders["gemma4_e"])), tmp_path, "Q8_0")
    dead = {f"blk.6.attn_{part}.weight": np.ones((64, 128), np.float32) for part in "kv"}
    dead["blk.6.attn_k_norm.weight"] = np.ones(64, np.float32)
    more = open_checkpoint(str(with_more(path, tmp_path / "more.gguf", dead)))
    assert more.names() == open_checkpoint(str(path)).names()


def test_other_rotary_factors_are_refused(folders: Mapping[Kind, Path], tmp_path: Path) -> None:
    path = written(open_checkpoint(str(folders["gemma4_text"])), tmp_path, "Q8_0")
    wrong = {"rope_freqs.weight": np.full(32, 2.0, np.float32)}
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight: other factors than 1"):
        open_checkpoint(str(with_more(path, tmp_path / "wrong.gguf", wrong)))


def test_a_list_of_another_length_than_the_layers_is_named() -> None:
    sizes = {
        "block_count": 4, "context_length": 512, "embedding_length": 128,
        "feed_forward_length": [384] * 3, "attention.head_count": 4,
        "attention.head_count_kv": 1, "attention.key_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window_pattern": [True, False, True, False],
    }  # fmt: skip
    metadata = {f"gemma4.{key}": value for key, value in sizes.items()}
    metadata["general.architecture"] = "gemma4"
    with pytest.raises(CheckpointError, match="feed_forward_length: 3 values for 4 layers"):
        gguf_config(metadata, vocab_size=8, tied=True)


# ---------------------------------------------------------------- what llama.cpp cannot have


def refusals(kind: Kind, **changes: Any) -> list[GemquantError]:
    raw = tiny_config(kind)
    raw.get("text_config", raw).update(changes)
    return unrepresentable(text_config(raw))


@pytest.mark.parametrize("kind", GEMMA4)
def test_a_published_configuration_is_representable(kind: Kind) -> None:
    assert refusals(kind) == []


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("gemma4_text", {"per_layer_config": {"1": {"head_dim": 64}}}, "per_layer_config"),
        ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config"),
        ("gemma4_e", {"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input"),
        ("gemma4_text", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    ],
)
def test_what_llamacpp_would_compute_otherwise_is_refused(
    kind: Kind, changes: dict[str, Any], key: str
) -> None:
    assert [error.message.split()[1] for error in refusals(kind, **changes)] == [key]


# ---------------------------------------------------------------- types


def types_of(config: Mapping[str, Any], name: str, **options: Any) -> dict[str, str]:
    plan = choose_types(config, TypeRequest(file_type(name), **options), has_importance=False)
    return {tensor.name: tensor.type.name for tensor in plan.tensors}


def published(**sizes: Any) -> dict[str, Any]:
    text = {"layer_types": ([SLIDING] * 5 + [FULL]) * 5, **sizes}
    return text_config({"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text})


A4B = published(
    hidden_size=2816, intermediate_size=2112, num_hidden_layers=30, num_attention_heads=16,
    num_key_value_heads=8, num_global_key_value_heads=2, attention_k_eq_v=True,
    hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=128, top_k_experts=8,
    moe_intermediate_size=704,
)  # fmt: skip
E2B = published(
    hidden_size=1536, intermediate_size=6144, num_hidden_layers=35, num_key_value_heads=1,
    num_kv_shared_layers=20, use_double_wide_mlp=True,
    layer_types=([SLIDING] * 4 + [FULL]) * 7,
)  # fmt: skip


def test_columns_of_704_and_2112_fall_back() -> None:
    types = types_of(A4B, "Q4_K_M")
    assert [types[f"blk.{n}.ffn_down_exps.weight"] for n in (0, 3, 5)] == ["Q8_0", "Q5_0", "Q8_0"]
    assert [types[f"blk.{n}.ffn_down.weight"] for n in (0, 3, 5)] == ["Q8_0", "Q5_0", "Q8_0"]
    assert types["blk.0.ffn_gate_up_exps.weight"] == "Q4_K"


def test_attention_of_a_model_with_eight_experts_has_more_bits() -> None:
    eight = {**A4B, "num_experts": 8}
    types = types_of(eight, "Q4_K_M")
    kinds = {kind: types[f"blk.3.attn_{kind}.weight"] for kind in ("q", "k", "v", "output")}
    assert kinds == {"q": "Q4_K", "k": "Q8_0", "v": "Q8_0", "output": "Q5_K"}
    assert types_of(eight, "Q3_K_L")["blk.3.attn_output.weight"] == "Q3_K"
    assert types_of(A4B, "Q4_K_M")["blk.3.attn_k.weight"] == "Q4_K"


def test_of_layers_without_values_only_those_with_them_are_counted() -> None:
    types = types_of(A4B, "Q4_K_M")
    values = [types[name] for name in types if name.endswith("attn_v.weight")]
    assert len(values) == 25
    more = [n for n, kind in enumerate(values) if kind == "Q6_K"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23, 24]


@pytest.mark.parametrize(
    ("name", "router", "projection"),
    [("Q4_K_M", "F32", "BF16"), ("F16", "F32", "F16"), ("F32", "F32", "F32")],
)
def test_router_and_projection_are_quantized_in_no_file(
    name: str, router: str, projection: str
) -> None:
    override = {"overrides": ()}
    assert types_of(A4B, name, **override)["blk.0.ffn_gate_inp.weight"] == router
    assert types_of(E2B, name, **override)["per_layer_model_proj.weight"] == projection


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("Q4_K_M", None, "Q8_0"),
        ("Q8_0", None, "Q8_0"),
        ("BF16", None, "BF16"),
        ("Q4_K_M", "Q6_K", "Q6_K"),
        ("Q2_K", "F16", "F16"),
    ],
)
def test_the_per_layer_embedding_keeps_eight_bits_unless_asked(
    name: str, asked: str | None, expected: str
) -> None:
    options = {} if asked is None else {"per_layer_embedding_type": asked}
    quantizer = KQuant(type=name, **options).for_model(E2B)
    scheme = quantizer.scheme_for("model.embed_tokens_per_layer.weight", (262144, 8960))
    assert scheme is not None
    assert scheme.type.name == expected
    embedding = quantizer.scheme_for(EMBEDDING, (262144, 1536))
    assert embedding is not None
    assert embedding.type.name == {"Q4_K_M": "Q6_K", "Q2_K": "Q6_K"}.get(name, name)


def test_its_flag_without_such_an_embedding_is_noted() -> None:
    quantizer = KQuant(per_layer_embedding_type="Q6_K").for_model(A4B)
    assert quantizer.notes == ["--per-layer-embedding-type: this model has no such embedding."]


def test_a_fallback_of_experts_is_recorded_once_a_layer() -> None:
    modules = [fallback.module for fallback in KQuant().for_model(A4B).fallbacks]
    assert modules.count("model.layers.3.experts.down_proj") == 1
    assert len(modules) == 60
