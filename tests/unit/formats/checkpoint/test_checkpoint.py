"""A folder's tensors come back as they were written, under the text model's names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.errors import CheckpointError
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gemma import (
    CHAT_TEMPLATE,
    Kind,
    tiny_config,
    tiny_tensors,
    write_tiny_gemma,
)

UP = "model.layers.1.mlp.up_proj.weight"


def test_every_tensor_is_read_as_written(generation: Kind, tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    written = tiny_tensors(tiny_config(generation))
    assert list(checkpoint.names()) == list(written)
    for name, tensor in written.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.stored_dtype(name) == torch.bfloat16
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_shards_hold_the_same_as_one_file(tmp_path: Path, tiny_folders: dict[Kind, Path]) -> None:
    sharded = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma2", shards=3)))
    single = open_checkpoint(str(tiny_folders["gemma2"]))
    assert all(torch.equal(sharded.tensor(n), single.tensor(n)) for n in single.names())


def test_the_text_model_is_taken_out_of_a_multimodal_gemma(tiny_folders: dict[Kind, Path]) -> None:
    whole = open_checkpoint(str(tiny_folders["gemma3"]))
    text = open_checkpoint(str(tiny_folders["gemma3_text"]))
    assert whole.config == text.config
    assert all(torch.equal(whole.tensor(n), text.tensor(n)) for n in text.names())


def test_the_newer_multimodal_naming_is_read_too(
    tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3")
    renamed = {
        name.replace("language_model.model.", "model.language_model.").replace(
            "vision_tower.", "model.vision_tower."
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(renamed, folder / "model.safetensors")
    text = open_checkpoint(str(tiny_folders["gemma3_text"]))
    assert torch.equal(open_checkpoint(str(folder)).tensor(UP), text.tensor(UP))


def test_a_head_of_its_own_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma2", tied=False)))
    assert checkpoint.names()[-1] == "lm_head.weight"


def test_a_tied_head_is_dropped(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": copy}, folder / "model.safetensors")
    assert "lm_head.weight" not in open_checkpoint(str(folder)).names()


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_different_head_is_untied_whatever_the_configuration_declares(
    tmp_path: Path, kind: Kind
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", kind, overrides={"tie_word_embeddings": True})
    prefix = "language_model." if kind == "gemma3" else ""
    tensors = load_file(folder / "model.safetensors")
    head = tensors[f"{prefix}model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    tensors[f"{prefix}lm_head.weight"] = head
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config["tie_word_embeddings"] is False
    assert torch.equal(checkpoint.tensor("lm_head.weight"), head)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_stored_matrix_of_head_and_embedding_is_both(
    tmp_path: Path, stored: str, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_gemma(
        tmp_path / "m", "gemma2", shards=2, overrides={"tie_word_embeddings": tied}
    )
    first, index = (
        folder / "model-00001-of-00002.safetensors",
        folder / "model.safetensors.index.json",
    )
    tensors = load_file(first)
    matrix = tensors.pop("model.embed_tokens.weight")
    save_file({**tensors, stored: matrix}, first)
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = first.name
    index.write_text(json.dumps(content))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in checkpoint.names()
    assert torch.equal(checkpoint.tensor("model.embed_tokens.weight"), matrix)
    assert ("only one of them is stored: it is both" in caplog.text) is not tied


def without_template(folder: Path) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_template_of_a_processor_is_read(tmp_path: Path, name: str) -> None:
    folder = without_template(write_tiny_gemma(tmp_path / "m", "gemma3"))
    (folder / name).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.chat_template() == "{{ messages }}"
    files = checkpoint.tokenizer_files()
    assert files["chat_template.jinja"] == b"{{ messages }}"
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ messages }}"


def test_additional_templates_come_beside_the_default(tmp_path: Path) -> None:
    folder = without_template(write_tiny_gemma(tmp_path / "m", "gemma3"))
    (folder / "chat_template.jinja").write_text("default one")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.chat_template() == "default one"
    config = json.loads(checkpoint.tokenizer_files()["tokenizer_config.json"])
    named = {entry["name"]: entry["template"] for entry in config["chat_template"]}
    assert named == {"default": "default one", "tool_use": "with tools"}


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "model."]
)
def test_prefixes_of_wrappers_are_stripped_with_a_note(
    tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + n: t for n, t in tensors.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(str(folder))
    assert torch.equal(checkpoint.tensor(UP), tensors[UP])
    assert f"{prefix}model.embed_tokens.weight is model.embed_tokens.weight" in caplog.text


def test_a_head_inside_of_a_module_that_holds_the_model_is_the_head(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file({f"model.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config["tie_word_embeddings"] is False
    assert torch.equal(checkpoint.tensor("lm_head.weight"), tensors["lm_head.weight"])


def test_tensors_under_two_names_are_counted_in_one_problem(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    twice = {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file({**tensors, **twice}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    assert caught.value.message.startswith(
        "35 tensors are stored under two names: model.embed_tokens.weight and "
        "module.model.embed_tokens.weight, "
    )


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_of_names_are_stripped(tmp_path: Path, wrapper: str) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    inside = {re.sub(r"(layers\.\d+)", rf"\1.{wrapper}", name): t for name, t in tensors.items()}
    save_file(
        {f"_fsdp_wrapped_module.{n}": t for n, t in inside.items()}, folder / "model.safetensors"
    )
    checkpoint = open_checkpoint(str(folder))
    assert all(torch.equal(checkpoint.tensor(name), t) for name, t in tensors.items())


def test_a_decoder_without_its_prefix_is_read(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    assert torch.equal(open_checkpoint(str(folder)).tensor(UP), tensors[UP])


def test_a_leftover_quantization_is_ignored_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "bitsandbytes"}, "pad_token_id": -1}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(folder)).config["pad_token_id"] is None
    assert "quantization_config is ignored: the weights are not quantized" in caplog.text


def test_rows_are_those_of_the_tensor(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    assert torch.equal(checkpoint.rows(UP, 5, 9), checkpoint.tensor(UP)[5:9])


def test_a_conversion_is_as_torch_converts(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    assert torch.equal(checkpoint.tensor(UP, torch.float32), checkpoint.tensor(UP).float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_nan_or_infinity_is_named(tmp_path: Path, value: float) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=f"{UP}: 1 of 49152 values are NaN or infinite"):
        checkpoint.tensor(UP)
    assert checkpoint.rows(UP, 0, 3).isfinite().all()


def test_reading_leaves_the_file_alone(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    before = (folder / "model.safetensors").read_bytes()
    open_checkpoint(str(folder)).tensor(UP).zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_digest_is_that_of_the_weight_file(tiny_folder: Path) -> None:
    digest = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert open_checkpoint(str(tiny_folder)).source_digest() == {"model.safetensors": digest}


def test_the_tokenizer_adds_no_bos_unless_asked(tiny_folder: Path) -> None:
    tokenizer = open_checkpoint(str(tiny_folder)).tokenizer()
    plain = tokenizer.encode(" hello", add_special_tokens=False).ids
    assert tokenizer.encode(" hello").ids == [2, *plain]
    assert tokenizer.decode(plain) == " hello"


def test_a_tokenizer_that_truncates_is_made_whole(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(open_checkpoint(str(folder)).tokenizer().encode("a b c d e f g").ids) > 4


def test_a_damaged_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        open_checkpoint(str(folder)).tokenizer()


def test_tokenizer_files_are_passed_on_as_they_are(tiny_folder: Path) -> None:
    files = open_checkpoint(str(tiny_folder)).tokenizer_files()
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    assert files["tokenizer.json"] == (tiny_folder / "tokenizer.json").read_bytes()


def test_the_chat_template_is_that_of_the_configuration(tiny_folder: Path) -> None:
    assert open_checkpoint(str(tiny_folder)).chat_template() == CHAT_TEMPLATE


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    assert open_checkpoint(str(folder)).chat_template() == "{{ bos_token }}"


def test_the_default_of_several_templates_is_chosen(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_checkpoint(str(folder)).chat_template() == "d"
