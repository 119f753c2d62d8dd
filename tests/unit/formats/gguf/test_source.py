"""A GGUF opens as the model that it was made from, decoded as gguf-py decodes it."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemquant.cli import cli
from gemquant.errors import CheckpointError, GemquantError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.gguf.names import is_norm
from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import Kind, tiny_config
from tests.helpers.tiny_gguf import (
    OLLAMA,
    tiny_gguf_tensors,
    write_ollamas_gguf,
    write_tiny_gguf,
)

Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "gemma2", packed=Q4_0)


def changed(tmp_path: Path, original: Path, position: int, replacement: bytes) -> str:
    data = bytearray(original.read_bytes())
    data[position : position + len(replacement)] = replacement
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    return str(path)


def refusal(path: str) -> GemquantError:
    with pytest.raises(GemquantError) as caught:
        open_checkpoint(path)
    return caught.value


def test_the_configuration_is_that_of_the_folder(tmp_path: Path, generation: Kind) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gguf(tmp_path / "m.gguf", generation)))
    expected = text_config(tiny_config(generation))
    if generation != "gemma":
        expected["query_pre_attn_scalar"] = 32  # llama.cpp keeps none below 27B: the head's own
    if generation == "gemma3_text":  # nor a pattern: every sixth layer of a Gemma 3
        expected["layer_types"] = ["sliding_attention"] * 3
    assert checkpoint.config == expected


def test_every_tensor_is_within_the_packed_types_error(tmp_path: Path, generation: Kind) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gguf(tmp_path / "m.gguf", generation)))
    original = tiny_gguf_tensors(generation)
    assert list(checkpoint.names()) == list(original)
    for name, tensor in original.items():
        error = (checkpoint.tensor(name).float() - tensor).abs().max()
        assert error <= tensor.abs().max() / 200


def test_packed_weights_decode_as_in_gguf_py(tiny_gguf: Path) -> None:
    original = tiny_gguf_tensors("gemma2")[DOWN].numpy()
    expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(original, Q4_0), Q4_0))
    assert torch.equal(open_checkpoint(str(tiny_gguf)).tensor(DOWN), expected)


def test_norms_come_back_without_the_one(tiny_gguf: Path) -> None:
    expected = (tiny_gguf_tensors("gemma2")[NORM] + 1) - 1
    assert torch.equal(open_checkpoint(str(tiny_gguf)).tensor(NORM), expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(EMBEDDING, torch.float16), (DOWN, torch.float32), (NORM, torch.float32)],
)
def test_the_declared_type_holds_the_tensor_without_loss(
    tiny_gguf: Path, name: str, dtype: torch.dtype
) -> None:
    checkpoint = open_checkpoint(str(tiny_gguf))
    assert checkpoint.stored_dtype(name) == dtype
    assert checkpoint.tensor(name).dtype == dtype


@pytest.mark.parametrize("name", [EMBEDDING, DOWN, NORM])
def test_rows_are_those_of_the_tensor(tiny_gguf: Path, name: str) -> None:
    checkpoint = open_checkpoint(str(tiny_gguf))
    part = checkpoint.rows(name, 3, 40, torch.bfloat16)
    assert torch.equal(part, checkpoint.tensor(name, torch.bfloat16)[3:40])


def test_decoding_in_chunks_changes_nothing(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny_gguf))
    whole = checkpoint.tensor(DOWN)
    monkeypatch.setattr("gemquant.formats.gguf.source._CHUNK_VALUES", 3000)
    assert torch.equal(checkpoint.tensor(DOWN), whole)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    assert "this is not a GGUF file" in refusal(str(tmp_path / "a.gguf")).message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert "the file is empty" in refusal(str(tmp_path / "a.gguf")).message


@pytest.mark.parametrize("kept", [10, 100, 3000, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, tiny_gguf: Path, kept: int) -> None:
    (tmp_path / "a.gguf").write_bytes(tiny_gguf.read_bytes()[:kept])
    assert "truncated" in refusal(str(tmp_path / "a.gguf")).message


def test_an_older_version_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    path = changed(tmp_path, tiny_gguf, 4, struct.pack("<I", 1))
    assert "GGUF version 1; read are 2 and 3" in refusal(path).message


def test_a_count_above_the_limit_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    path = changed(tmp_path, tiny_gguf, 8, struct.pack("<Q", 2**60))
    assert "claims 1152921504606846976 tensors" in refusal(path).message


def test_a_name_that_never_ends_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    path = changed(tmp_path, tiny_gguf, 24, struct.pack("<Q", 2**40))
    assert "a name of 1099511627776 bytes" in refusal(path).message


def test_an_array_longer_than_the_file_is_truncated(tmp_path: Path, tiny_gguf: Path) -> None:
    key = b"tokenizer.ggml.tokens"
    position = tiny_gguf.read_bytes().index(key) + len(key) + 8
    path = changed(tmp_path, tiny_gguf, position, struct.pack("<Q", 2**60))
    assert "truncated" in refusal(path).message


def test_a_tensor_of_unknown_type_is_named(tmp_path: Path, tiny_gguf: Path) -> None:
    position = _description(tiny_gguf, b"blk.0.attn_q.weight") + 4 + 16
    path = changed(tmp_path, tiny_gguf, position, struct.pack("<I", 999))
    assert "blk.0.attn_q.weight: tensor type 999 is not known" in refusal(path).message


def test_tensors_that_overlap_are_named(tmp_path: Path, tiny_gguf: Path) -> None:
    position = _description(tiny_gguf, b"blk.0.attn_q.weight") + 4 + 16 + 4
    path = changed(tmp_path, tiny_gguf, position, struct.pack("<Q", 0))
    assert "overlaps" in str(refusal(path))


def test_a_shape_that_the_metadata_does_not_imply_is_named(tmp_path: Path, tiny_gguf: Path) -> None:
    position = _description(tiny_gguf, b"blk.0.attn_q.weight") + 4
    path = changed(tmp_path, tiny_gguf, position, struct.pack("<QQ", 256, 128))
    assert "self_attn.q_proj.weight: shape (128, 256)" in refusal(path).message


def test_a_part_whose_name_does_not_say_so_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", metadata={"split.count": 2})
    assert "split.count is 2, which its name does not end in" in refusal(str(path)).message


def test_a_split_gguf_is_opened_at_its_first_part(tmp_path: Path) -> None:
    for name, number in (("a-00001-of-00002.gguf", 0), ("a-00002-of-00002.gguf", 1)):
        write_tiny_gguf(tmp_path / name, metadata={"split.count": 2, "split.no": number})
    (tmp_path / "b-00001-of-00002.gguf").write_bytes(
        (tmp_path / "a-00001-of-00002.gguf").read_bytes()
    )
    second = refusal(str(tmp_path / "a-00002-of-00002.gguf"))
    assert "one of 2 parts; the metadata is in the first" in second.message
    assert second.hint == f"Open {tmp_path / 'a-00001-of-00002.gguf'}."
    alone = refusal(str(tmp_path / "b-00001-of-00002.gguf"))
    assert "1 of 2 parts are missing: b-00002-of-00002.gguf" in alone.message
    twice = str(refusal(str(tmp_path / "a-00001-of-00002.gguf")))
    assert "is in another part already" in twice
    assert "35 tensors, and None are announced" in twice


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 12000), value=st.binary(min_size=1, max_size=8))
def test_a_changed_header_is_read_or_refused(
    tmp_path: Path, tiny_gguf: Path, position: int, value: bytes
) -> None:
    path = changed(tmp_path, tiny_gguf, position, value)
    try:
        checkpoint = open_checkpoint(path)
    except GemquantError:
        return
    assert checkpoint.config["vocab_size"] > 0


def _description(path: Path, name: bytes) -> int:
    """Position after a tensor's name, where its rank stands."""
    return path.read_bytes().index(name) + len(name)


def test_infinity_in_a_packed_block_is_named(tmp_path: Path, tiny_gguf: Path) -> None:
    reader = gguf.GGUFReader(tiny_gguf)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    path = changed(tmp_path, tiny_gguf, tensor.data_offset, struct.pack("<e", float("inf")))
    with pytest.raises(CheckpointError, match=f"{DOWN}: 32 of 49152 values are NaN or infinite"):
        open_checkpoint(path).tensor(DOWN)


# ---------------------------------------------------------------- ollama's files


def test_the_text_model_is_taken_out_of_ollamas_gguf(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(str(write_ollamas_gguf(tmp_path / "m.gguf")))
    assert "3 tensors for images or sound are left out; the text model is taken" in caplog.text
    for name, tensor in tiny_gguf_tensors("gemma3_text", OLLAMA).items():
        expected = (tensor + 1) - 1 if is_norm(name) else tensor
        assert torch.equal(checkpoint.tensor(name), expected), name


def test_a_gguf_is_known_by_its_beginning(tmp_path: Path) -> None:
    blob = write_ollamas_gguf(tmp_path / "m.gguf").rename(tmp_path / "sha256-0123")
    assert open_checkpoint(str(blob)).config["model_type"] == "gemma3_text"


def test_what_ollama_leaves_out_is_what_its_runner_assumes(tmp_path: Path) -> None:
    config = open_checkpoint(str(write_ollamas_gguf(tmp_path / "m.gguf"))).config
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config["layer_types"].index("full_attention") == 5


def test_ollamas_own_spelling_of_the_rope_bases_is_read(tmp_path: Path) -> None:
    path = write_ollamas_gguf(tmp_path / "m.gguf", local=3e4, vision=False)
    tables = open_checkpoint(str(path)).config["rope_parameters"]
    assert tables["full_attention"]["rope_theta"] == 2e6
    assert tables["sliding_attention"]["rope_theta"] == 3e4


@pytest.mark.parametrize("tokens", [0, 3, -5])
def test_a_gguf_of_ollamas_becomes_one_that_llamacpp_loads(tmp_path: Path, tokens: int) -> None:
    made = tmp_path / "made"
    source = write_ollamas_gguf(tmp_path / "m.gguf", tokens=tokens)
    result = CliRunner().invoke(
        cli, ["gguf", str(source), "--type", "F16", "--no-eval", "-o", str(made)]
    )
    assert result.exit_code == 0, result.output
    reader = gguf.GGUFReader(next(made.glob("*.gguf")))
    stored = {key: field.contents() for key, field in reader.fields.items()}
    assert not [key for key in stored if "vision" in key or ".mm." in key]
    assert stored["gemma3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert stored["gemma3.rope.scaling.factor"] == 8.0
    assert len(stored["tokenizer.ggml.tokens"]) == 465
    assert {len(stored[f"tokenizer.ggml.{key}"]) for key in ("scores", "token_type")} == {465}
    assert not [tensor.name for tensor in reader.tensors if tensor.name[0] in "vm"]
    assert open_checkpoint(str(next(made.glob("*.gguf")))).config == (
        open_checkpoint(str(source)).config
    )


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "a LoRA adapter"), ("imatrix", "an importance matrix")]
)
def test_a_gguf_that_is_no_model_says_what_it_is(tmp_path: Path, kind: str, words: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma2")
    writer.add_type(kind)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(str(tmp_path / "m.gguf")).message == f"This GGUF is no model but {words}."
