"""Metadata and tensor names equal what llama.cpp's converter wrote for the same folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.checkpoint import Checkpoint
from gemquant.formats.gguf.metadata import converted_metadata, quantized_metadata
from gemquant.formats.gguf.names import (
    from_gguf,
    gguf_shapes,
    is_norm,
    places,
    stored_order,
    to_gguf,
)
from gemquant.formats.gguf.values import GgufValue, uint32
from gemquant.models.architecture import architecture_of, stored_shapes
from tests.helpers.gguf_records import recorded
from tests.helpers.tiny_gemma import GEMMA4, KINDS, Kind
from tests.helpers.tiny_sentencepiece import Layout, tiny_sentencepiece, write_convertible_gemma

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "gguf_metadata.json").read_text(encoding="utf-8")
)
BF16 = 32


@pytest.fixture(scope="module", params=(*KINDS, *GEMMA4))
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def checkpoint(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_convertible_gemma(tmp_path_factory.mktemp("convertible"), kind)
    return open_checkpoint(str(folder))


def converted(checkpoint: Checkpoint, **changes: Any) -> dict[str, GgufValue]:
    files = {**checkpoint.tokenizer_files(), **changes.pop("files", {})}
    arguments = {"file_type": BF16, **changes}
    return converted_metadata(checkpoint.config, files, checkpoint.provenance, **arguments)


@pytest.mark.parametrize("layout", ["gemma", "gemma3"])
def test_the_golden_file_is_of_these_tokenizers(layout: Layout) -> None:
    digest = hashlib.sha256(tiny_sentencepiece(layout)).hexdigest()
    assert digest == GOLDEN["tokenizer.model"][layout]


def test_every_key_its_type_and_value_are_the_converters_in_its_order(
    kind: Kind, checkpoint: Checkpoint
) -> None:
    ours = [[key, *recorded(value)] for key, value in converted(checkpoint).items()]
    assert ours == GOLDEN[kind]["metadata"]


def test_the_tokenizer_is_the_same_without_tokenizer_model(
    kind: Kind, checkpoint: Checkpoint
) -> None:
    files = {k: v for k, v in checkpoint.tokenizer_files().items() if k != "tokenizer.model"}
    ours = converted_metadata(checkpoint.config, files, checkpoint.provenance, file_type=BF16)
    assert [[key, *recorded(value)] for key, value in ours.items()] == GOLDEN[kind]["metadata"]


def test_every_tensors_name_shape_type_and_bytes_are_the_converters(
    kind: Kind, checkpoint: Checkpoint
) -> None:
    config, parts = checkpoint.config, dict[str, list[Tensor]]()
    architecture, shapes = architecture_of(config), gguf_shapes(config)
    for name, (stored, _) in places(config).items():
        wide = len(shapes[stored]) == 1 or stored.split(".")[-2] in architecture.gguf.in_float32
        tensor = checkpoint.tensor(name, torch.float32 if wide else torch.bfloat16)
        parts.setdefault(stored, []).append(
            tensor + architecture.norm_offset if is_norm(name) else tensor
        )
    if factors := architecture.gguf.rope_factors(config):
        parts["rope_freqs.weight"] = [torch.tensor(factors)]
    ours = {}
    for stored, tensors in parts.items():
        whole = torch.cat(tensors)
        digest = hashlib.sha256(whole.contiguous().view(torch.uint8).numpy().tobytes())
        kind_of = {torch.float32: "F32", torch.bfloat16: "BF16"}[whole.dtype]
        ours[stored] = [list(shapes[stored]), kind_of, digest.hexdigest()]
    assert ours == {name: rest for name, *rest in GOLDEN[kind]["tensors"]}


def test_names_lead_back(checkpoint: Checkpoint) -> None:
    generation, names = checkpoint.config["model_type"], [*stored_shapes(checkpoint.config)]
    assert [from_gguf(to_gguf(name, generation), generation) for name in names] == names


def test_the_quantizer_stores_what_belongs_to_no_layer_first_then_layers_by_name() -> None:
    names = ["blk.10.attn_k.weight", "token_embd.weight", "blk.2.ffn_up.weight",
             "blk.2.attn_v.weight", "output_norm.weight"]  # fmt: skip
    assert stored_order(names) == [
        "output_norm.weight",
        "token_embd.weight",
        "blk.2.attn_v.weight",
        "blk.2.ffn_up.weight",
        "blk.10.attn_k.weight",
    ]


def test_the_quantizer_puts_version_and_type_last(checkpoint: Checkpoint) -> None:
    before = converted(checkpoint)
    after = quantized_metadata(before, file_type=15)
    assert list(after)[-2:] == ["general.quantization_version", "general.file_type"]
    assert after["general.file_type"].value == 15
    assert set(after) == set(before)


def test_requantizing_keeps_every_key_but_those_of_a_split_file(checkpoint: Checkpoint) -> None:
    before = converted(checkpoint)
    part = {"split.no": uint32(0), "split.count": uint32(2), **before}
    assert quantized_metadata(part, file_type=15) == quantized_metadata(before, file_type=15)


def test_a_chosen_template_replaces_the_files(checkpoint: Checkpoint) -> None:
    assert converted(checkpoint, chat_template="X")["tokenizer.chat_template"].value == "X"


def test_a_chosen_name_replaces_the_models(checkpoint: Checkpoint) -> None:
    assert converted(checkpoint, name="Mine")["general.name"].value == "Mine"
