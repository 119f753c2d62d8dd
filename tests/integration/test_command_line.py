"""From a checkpoint to a measured artifact, as a user does it, on tiny Gemmas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.models.chat_templates import VARIANTS
from tests.helpers.tiny_gemma import Kind
from tests.unit.cli.conftest import Result, Run

FEW = "--threads 1 --samples 2 --seq-len 24 --eval-windows 2 --group-size 32".split()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Calibration text of the user's own."""
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog and it is for you\n" * 40)
    return file


def make(run: Run, quantizer: str, model: Path, *more: str) -> Result:
    return run(quantizer, str(model), *FEW, "--eval-slices", "english,code", "-o", "out", *more)


@pytest.mark.parametrize("quantizer", ["rtn", "awq"])
def test_an_artifact_is_made_and_its_certificate_printed(
    run: Run, tiny_folder: Path, text: Path, quantizer: str
) -> None:
    result = make(run, quantizer, tiny_folder, "--calib", str(text))
    assert (result.code, result.out.splitlines()[0]) == (0, "out"), result.err
    slices = [line.split()[0] for line in result.out.splitlines() if " [" in line]
    assert slices[:2] == ["english", "code"]


@pytest.mark.parametrize("quantizer", ["int8", "nf4", "fp4"])
def test_a_bitsandbytes_artifact_is_made_verified_and_shown(
    run: Run, tiny_folder: Path, quantizer: str
) -> None:
    few = [flag for flag in FEW if flag not in ("--group-size", "32")]
    made = run(quantizer, str(tiny_folder), *few, "--eval-slices", "english", "-o", "out")
    assert made.code == 0, made.err
    assert "container  bitsandbytes, bfloat16" in made.out
    assert run("verify", "out").code == 0
    assert run("show", "out").out == made.out
    codes = {"int8": "llm.int8"}.get(quantizer, quantizer)
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert [scheme["codes"] for scheme in manifest["quantization"]["schemes"]] == [codes]


def test_the_artifact_verifies_until_a_byte_changes(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    make(run, "rtn", tiny_folders["gemma2"])
    assert run("verify", "out").code == 0
    file = tmp_path / "out" / "config.json"
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    result = run("verify", "out")
    assert result.code == 6
    assert "config.json is not the file the manifest describes" in result.err


def test_show_prints_what_was_printed_when_it_was_made(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    made = make(run, "rtn", tiny_folders["gemma3_text"])
    assert run("show", "out").out == made.out


def test_the_manifest_as_recipe_makes_the_same_bytes_again(
    run: Run, tiny_folders: dict[Kind, Path], text: Path, tmp_path: Path
) -> None:
    make(run, "awq", tiny_folders["gemma2"], "--calib", str(text))
    again = run("awq", "--recipe", "out/manifest.json", "--threads", "1", "-o", "again")
    assert again.code == 0, again.err
    files = [p.relative_to(tmp_path / "out") for p in sorted((tmp_path / "out").rglob("*"))]
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_eval_finds_the_certificates_numbers_again(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    made = json.loads(make(run, "rtn", tiny_folders["gemma2"], "--json").out)
    again = json.loads(run("eval", "out", "--threads", "1", "--json").out)
    first = made["manifest"]["certificates"][0]["slices"]
    second = again["artifacts"][0]["levels"][0]["slices"]
    assert [s["slice"] for s in second] == ["english", "code"]
    for before, after in zip(first, second, strict=True):
        for figure in ("perplexity_original", "perplexity_quantized", "kl_mean", "top1"):
            assert after[figure] == pytest.approx(before[figure], rel=1e-4)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    result = make(run, "rtn", tiny_folders["gemma2"], "--dry-run")
    assert result.code == 0, result.err
    assert "compressed-tensors, for cuda" in result.out
    assert list(tmp_path.iterdir()) == []


def test_a_container_that_no_runtime_loads_is_made_with_a_caution(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    result = make(run, "rtn", tiny_folders["gemma3_text"], "--exporter", "awq-gemm", "--dry-run")
    assert result.code == 0
    assert "caution: no runtime of target cuda is known to load awq-gemm" in result.err


def test_no_eval_makes_no_certificate(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    made = json.loads(make(run, "rtn", tiny_folders["gemma2"], "--no-eval", "--json").out)
    assert [c["slices"] for c in made["manifest"]["certificates"]] in ([], [[]])


@pytest.mark.usefixtures("clipped")
def test_the_documented_plug_in_makes_an_artifact(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    result = make(run, "clipped", tiny_folders["gemma2"], "--keep", "0.9", "--json")
    assert result.code == 0, result.err
    manifest = json.loads(result.out)["manifest"]
    assert manifest["quantization"]["quantizer"] == "clipped"
    assert manifest["recipe"]["options"] == {"group_size": 32, "keep": 0.9}


def test_a_chat_template_chosen_by_name_is_written_where_both_readers_look(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    made = make(run, "rtn", tiny_folders["gemma2"], "--no-eval", "--chat-template", "system")
    assert made.code == 0, made.err
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == template == VARIANTS["system"]
