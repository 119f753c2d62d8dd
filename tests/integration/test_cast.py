"""`gemquant cast` as a user runs it: nothing quantized, everything else as for other artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.plain_safetensors import PlainSafetensors
from tests.helpers.tiny_gemma import Kind, tiny_tokenizer, write_tiny_gemma
from tests.integration.test_pipeline import write_adapter
from tests.unit.cli.conftest import Result, Run

FEW = "--threads 1 --samples 2 --seq-len 24 --eval-windows 1 --eval-slices english".split()
NORM = "model.layers.1.post_feedforward_layernorm.weight"


def cast(run: Run, model: Path, dtype: str, *more: str) -> Result:
    text = Path("text.txt")
    text.write_text("the quick brown fox jumps over the lazy dog and it is for you\n" * 40)
    return run("cast", str(model), "--dtype", dtype, *FEW, "--calib", str(text), *more)


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """A tiny Gemma 2 whose second layer leaves a residual stream beyond float16."""
    folder = write_tiny_gemma(tmp_path / "model", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM][7] = 60000.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_bfloat16_keeps_every_byte_of_a_bfloat16_checkpoint(run: Run, tiny_folder: Path) -> None:
    made = cast(run, tiny_folder, "bfloat16", "-o", "out")
    assert made.code == 0, made.err
    stored = load_file("out/model.safetensors")
    original = load_file(tiny_folder / "model.safetensors")
    assert stored.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(stored[name], tensor)
    manifest = json.loads(Path("out/manifest.json").read_text())
    (certificate,) = manifest["certificates"]
    assert [s["kl_mean"]["value"] for s in certificate["slices"]] == [0.0]
    assert manifest["quantization"]["schemes"] == []
    assert manifest["activation_range"] is None
    assert "everything in bfloat16" in made.out
    assert run("verify", "out").code == 0


def test_float16_comes_with_the_verdict_of_a_trace(run: Run, tiny_folder: Path) -> None:
    made = cast(run, tiny_folder, "float16", "-o", "out")
    assert made.code == 0, made.err
    seen = json.loads(Path("out/manifest.json").read_text())["activation_range"]
    assert seen["fits_float16"]
    assert 1 < seen["largest"] < 65504
    assert "fits: largest activation" in made.out


def test_float16_is_refused_where_it_overflows_and_nothing_is_written(
    run: Run, overflowing: Path, tmp_path: Path
) -> None:
    refused = cast(run, overflowing, "float16", "-o", "out")
    assert refused.code == 4
    assert "model.layers.1 overflows in float16, which ends at 65,504: its residual" in refused.err
    assert "Use --dtype bfloat16; or --allow-overflow" in refused.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "text.txt"]


def test_overflow_can_be_allowed_and_is_recorded(run: Run, overflowing: Path) -> None:
    made = cast(run, overflowing, "float16", "--allow-overflow", "-o", "out")
    assert made.code == 0, made.err
    seen = json.loads(Path("out/manifest.json").read_text())["activation_range"]
    assert not seen["fits_float16"]
    assert "does not fit; use bfloat16" in made.out
    card = Path("out/README.md").read_text()
    assert "Activations were seen to overflow in float16: compute in bfloat16." in card


def test_a_weight_beyond_float16_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma2")
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM][7] = 2.0**17
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused = cast(run, folder, "float16", "--allow-overflow", "--no-eval", "-o", "out")
    assert refused.code == 4
    assert f"{NORM} holds 131072; the largest float16 is 65504." in refused.err


def test_an_adapter_is_merged_without_quantizing(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    base = tiny_folders["gemma3_text"]
    made = cast(run, base, "float32", "--lora", str(adapter), "-o", "out")
    assert made.code == 0, made.err
    merged = load_file("out/model.safetensors")
    original = load_file(base / "model.safetensors")
    update = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.2.self_attn.q_proj"
    low, high = (update[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = original[f"{name}.weight"].float() + 2.0 * high @ low
    assert torch.allclose(merged[f"{name}.weight"], expected, rtol=1e-6, atol=1e-6)
    norm = "model.layers.2.input_layernorm.weight"
    assert torch.equal(merged[norm], original[norm].float())


def test_the_text_model_is_taken_out_of_a_multimodal_one(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    options = ("--text-only", "--no-eval", "-o", "out")
    made = cast(run, tiny_folders["gemma3"], "bfloat16", *options)
    assert made.code == 0, made.err
    tower = load_file("out/model.safetensors")
    text = load_file(tiny_folders["gemma3_text"] / "model.safetensors")
    assert tower.keys() == text.keys()
    assert all(torch.equal(tower[name], text[name]) for name in text)
    model = AutoModelForCausalLM.from_pretrained("out")
    assert (type(model).__name__, model.dtype) == ("Gemma3ForCausalLM", torch.bfloat16)


def test_what_is_cast_can_be_cast_and_quantized_again(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    assert cast(run, tiny_folders["gemma2"], "float32", "--no-eval", "-o", "wide").code == 0
    assert cast(run, Path("wide"), "bfloat16", "--no-eval", "-o", "narrow").code == 0
    original = open_checkpoint(str(tiny_folders["gemma2"]))
    again = PlainSafetensors().open(Path("narrow"))
    assert all(torch.equal(again.tensor(n), original.tensor(n)) for n in original.names())


def test_level_native_computes_in_the_type_that_is_stored(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    cast(run, tiny_folders["gemma2"], "float16", "-o", "out")
    result = run("eval", "out", "--threads", "1", "--json")
    assert result.code == 0, result.err
    _, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert native["runtime"].startswith("transformers ")
    assert native["runtime"].endswith("float16 on cpu")
    assert 0 < native["kl_from_reference"]["value"] < 1e-3


def test_shards_are_as_small_as_asked_for(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    from transformers import AutoModelForCausalLM

    options = ("--shard-size", "300kB", "--no-eval", "-o", "out")
    assert cast(run, tiny_folders["gemma3_text"], "bfloat16", *options).code == 0
    assert len(list(Path("out").glob("model-*-of-*.safetensors"))) > 2
    assert run("verify", "out").code == 0
    AutoModelForCausalLM.from_pretrained("out")


def test_the_type_stored_is_not_the_type_computed_in(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    Path("gemquant.toml").write_text('dtype = "bfloat16"\n\n[cast]\nshard_size = "1GB"\n')
    made = cast(run, tiny_folders["gemma2"], "float32", "--no-eval", "-o", "out")
    assert made.code == 0, made.err
    recipe = json.loads(Path("out/manifest.json").read_text())["recipe"]
    assert recipe["options"] == {"dtype": "float32", "shard_size": "1GB", "allow_overflow": False}
    assert recipe["dtype"] == "bfloat16"
    again = run("cast", "--recipe", "out/manifest.json", "--threads", "1", "-o", "again")
    assert again.code == 0, again.err
    for file in sorted(Path("out").iterdir()):
        assert file.read_bytes() == (Path("again") / file.name).read_bytes()


def test_the_folder_is_named_after_the_type(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    made = cast(run, tiny_folders["gemma"], "float16", "--no-eval", "--target", "mps")
    assert made.out.splitlines()[0] == "gemma-cast-float16"


def test_a_shard_size_without_a_unit_is_refused(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    result = cast(run, tiny_folders["gemma2"], "float32", "--shard-size", "2", "--dry-run")
    assert result.code == 2
    assert "--shard-size 2: 2 what?\n  hint: As in: --shard-size 2GB" in result.err


@pytest.mark.parametrize("count", [1, 6])
def test_tokens_without_a_row_are_named_everywhere_and_not_refused(
    run: Run, tmp_path: Path, count: int
) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([f"<beyond{n}>" for n in range(count)])
    tokenizer.save(str(folder / "tokenizer.json"))
    made = cast(run, folder, "bfloat16", "-o", "out")
    assert made.code == 0, made.err
    first = [f"<beyond{n}>" for n in range(min(count, 4))]
    words = "1 token has" if count == 1 else "6 tokens have"
    note = f"{words} no row in the embedding and cannot be used: {', '.join(first)}"
    note += "" if count == 1 else " and 2 more"
    assert f"{note}." in made.err
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["tokens_without_row"] == {"count": count, "first": first}
    assert note in " ".join(run("show", "out").out.split())
    assert run("verify", "out", "-q").out == f"out: valid; note: {note}\n"
    assert json.loads(run("verify", "out", "-q", "--json").out)[0]["notes"] == [note]


def test_a_tokenizer_that_fits_is_not_noted(run: Run, tiny_folder: Path) -> None:
    assert cast(run, tiny_folder, "bfloat16", "-o", "out").code == 0
    assert "tokens_without_row" not in json.loads(Path("out/manifest.json").read_text())
    assert run("verify", "out", "-q").out == "out: valid\n"


def test_the_corrected_scale_of_queries_is_named(run: Run, tmp_path: Path) -> None:
    scale = {"query_pre_attn_scalar": 224}
    folder = write_tiny_gemma(tmp_path / "model", "gemma2", overrides=scale)
    words = "config.json: query_pre_attn_scalar 224: the publisher corrected it to 256; set that"
    made = cast(run, folder, "bfloat16", "-o", "out")
    assert made.code == 0, made.err
    assert f"note: {folder}: {words}" in made.err
    refused = run("gguf", str(folder), "--no-eval", "-o", "gguf")
    assert refused.code == 4
    assert f"hint: {words}" in refused.err


def test_a_folder_without_padding_or_unknown_token_becomes_a_gguf(run: Run, tmp_path: Path) -> None:
    scale = {"query_pre_attn_scalar": 32, "pad_token_id": None}
    folder = write_tiny_gemma(tmp_path / "model", "gemma2", overrides=scale)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"pad_token": None, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["unk_token"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = run("gguf", str(folder), "--type", "F16", "--no-eval", "-o", "out", "--threads", "1")
    assert made.code == 0, made.err
    again = run("cast", str(next(Path("out").glob("*.gguf"))), "--no-eval", "-o", "back")
    assert again.code == 0, again.err
