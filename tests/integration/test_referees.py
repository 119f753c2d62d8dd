"""Artifacts that others made, in one table with ours: ``gemquant eval --referee``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gemquant.__main__ import main
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.unit.cli.conftest import Run

FEW = "--threads 1 --eval-windows 1 --seq-len 24 --eval-slices english -q".split()
EVAL = "--no-native --threads 1 -q --json".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two artifacts of it."""
    folder = tmp_path_factory.mktemp("made")
    model = write_tiny_gemma(folder / "tiny", "gemma2", overrides=LLAMACPP["gemma2"])
    for quantizer in ("nf4", "int8"):
        assert main([quantizer, str(model), *FEW, "-o", str(folder / quantizer)]) == 0
    return folder


def test_a_gguf_of_others_stands_beside_ours(run: Run, made: Path) -> None:
    facts = {"llama.attention.head_count": 1}
    file = write_tiny_gguf(Path("theirs-Q8_0.gguf"), overrides=LLAMACPP["gemma2"], metadata=facts)
    result = run("eval", str(made / "nf4"), "--referee", str(file), *EVAL)
    assert result.code == 0, result.err
    ours, theirs = json.loads(result.out)["artifacts"]
    assert (theirs["name"], theirs["container"]) == ("theirs-Q8_0", "gguf")
    assert theirs["made_by"] == "its metadata says nothing of who made it"
    assert "made_by" not in ours
    levels = [each["levels"][0]["slices"][0] for each in (ours, theirs)]
    assert levels[0]["token_stream"] == levels[1]["token_stream"]
    assert levels[1]["kl_mean"]["value"] < levels[0]["kl_mean"]["value"]


def test_the_table_says_who_made_a_referee(run: Run, made: Path) -> None:
    theirs = Path(shutil.copytree(made / "int8", "theirs-int8"))
    (theirs / "manifest.json").unlink()
    (theirs / "README.md").write_text("---\nquantized_by: someone\nbase_model: x/y\n---\n")
    result = run("eval", str(made / "nf4"), "--referee", str(theirs), *EVAL[:-1])
    assert result.code == 0, result.err
    rows = [line.split()[0] for line in result.out.splitlines() if "%" in line][1:3]
    assert rows == ["theirs-int8", "nf4"]
    said = "theirs-int8, bitsandbytes 8 bits LLM.int8, groups of a row, by others: someone."
    assert said in result.out


def test_a_referee_of_another_shape_is_refused(run: Run, made: Path) -> None:
    write_tiny_gemma(Path("other"), "gemma2", overrides={"num_hidden_layers": 2})
    result = run("eval", str(made / "nf4"), "--referee", "other", *EVAL)
    assert result.code == 4
    assert "other and the original cannot be compared: num_hidden_layers 3 and 2." in result.err


def test_a_referee_with_another_vocabulary_is_refused(run: Run, made: Path) -> None:
    theirs = Path(shutil.copytree(made / "int8", "theirs"))
    (theirs / "manifest.json").unlink()
    tokenizer = json.loads((theirs / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    numbers = list(vocabulary.values())
    tokenizer["model"]["vocab"] = dict(zip(vocabulary, numbers[::-1], strict=True))
    (theirs / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = run("eval", str(made / "nf4"), "--referee", "theirs", *EVAL)
    assert result.code == 4
    assert "--referee theirs: of another model: " in result.err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothere.gguf", "nothere.gguf: neither a file or folder, nor a model on the Hub."),
        ("ours", "ours: gemquant made it."),
        ("empty", "empty: holds no GGUF file, nor a config.json: name one file."),
        ("odd", "odd: quant_method 'hqq': not one that is read here."),
    ],
)
def test_what_is_no_referee_is_named(run: Run, made: Path, place: str, message: str) -> None:
    shutil.copytree(made / "int8", "ours")
    Path("empty").mkdir()
    Path("odd").mkdir()
    (Path("odd") / "config.json").write_text('{"quantization_config": {"quant_method": "hqq"}}')
    result = run("eval", str(made / "nf4"), "--referee", place, *EVAL)
    assert message in result.err
    assert result.code in {2, 4}


def test_two_of_one_name_are_refused(run: Run, made: Path) -> None:
    theirs = Path(shutil.copytree(made / "int8", "nf4"))
    (theirs / "manifest.json").unlink()
    result = run("eval", str(made / "nf4"), "--referee", "nf4", *EVAL)
    assert (result.code, "one name, nf4, for several artifacts" in result.err) == (2, True)


@pytest.mark.peer
def test_what_bitsandbytes_stores_measures_like_our_own_of_the_same_codes(
    run: Run, made: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    for name, asked in {
        "bnb4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bnb8": {"load_in_8bit": True},
    }.items():
        model = AutoModelForCausalLM.from_pretrained(
            made / "tiny",
            quantization_config=BitsAndBytesConfig(**asked),
            dtype=torch.bfloat16,
            device_map="cpu",
        )
        model.save_pretrained(name)
    referees = ("--referee", "bnb4", "--referee", "bnb8")
    result = run("eval", str(made / "nf4"), str(made / "int8"), *referees, *EVAL)
    assert result.code == 0, result.err
    artifacts = json.loads(result.out)["artifacts"]
    figures = {a["name"]: a["levels"][0]["slices"][0]["kl_mean"]["value"] for a in artifacts}
    assert figures["bnb4"] == pytest.approx(figures["nf4"], rel=0.02)
    assert figures["bnb8"] == pytest.approx(figures["int8"], rel=0.02)


@pytest.mark.peer
def test_what_mlx_lm_converts_is_measured(run: Run, made: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    mlx_lm.convert(str(made / "tiny"), "mlx4", quantize=True, q_bits=4, q_group_size=64)
    result = run("eval", str(made / "nf4"), "--referee", "mlx4", *EVAL)
    assert result.code == 0, result.err
    theirs = json.loads(result.out[result.out.index("{") :])["artifacts"][1]
    assert theirs["scheme"] == "4 bits, groups of 64, zero points"
    assert theirs["made_by"] == "MLX, by its config.json"
    assert theirs["levels"][0]["not_run"] is None
