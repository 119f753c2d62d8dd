"""`gemquant rkllm` as a user runs it, up to the toolkit; a stand-in checks how that is called.

The stand-in is no toolkit and what it writes is no model: conversions are tested in
test_rkllm_toolkit.py, with the vendor's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gemquant.calibration.prompts import calibration_prompts
from gemquant.checkpoint import open_checkpoint
from gemquant.gemma.chat_templates import STOCK
from gemquant.toolkit import ToolkitVersion, load_toolkit
from tests.signature_checker import signature_checker
from tests.tiny_gemma import write_tiny_gemma
from tests.tiny_rkllm import write_npu_gemma
from tests.unit.cli.conftest import Result, Run

FEW = "--threads 1 --samples 2 --seq-len 32 --calib text.jsonl".split()
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    lines = [{"messages": TALK}, {"text": "the quick brown fox"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return write_npu_gemma(tmp_path / "tiny-gemma")


@pytest.fixture
def release() -> ToolkitVersion:
    found = load_toolkit("rkllm-toolkit").version("1.2.3")
    assert found is not None
    return found


def rkllm(run: Run, model: Path, python: Path, *more: str) -> Result:
    return run("rkllm", str(model), "--toolkit", str(python), "-o", "out", *FEW, *more)


def test_what_is_prepared_is_what_the_toolkit_reads(run: Run, model: Path) -> None:
    wanted = "--prepare-only -o ready --toolkit-version 1.2.0 --hybrid-rate 0.5".split()
    made = run("rkllm", str(model), *FEW, *wanted)
    assert made.code == 0, made.err
    assert "nothing was converted" in made.out
    ready = Path("ready")
    files = ["calibration.json", "convert.py", "job.json", "model"]
    assert sorted(path.name for path in ready.iterdir()) == files
    assert sorted(path.name for path in (ready / "model").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    config = json.loads((ready / "model/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == 10000.0
    stored = load_file(ready / "model/model.safetensors")
    assert stored.keys() == load_file(model / "model.safetensors").keys()
    merges = json.loads((ready / "model/tokenizer.json").read_text())["model"]["merges"]
    assert all(isinstance(merge, str) for merge in merges)
    prompts = json.loads((ready / "calibration.json").read_text())
    turn = "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    assert {"input": turn, "target": "world"} in prompts
    assert {"input": "the quick brown fox", "target": ""} in prompts
    job = json.loads((ready / "job.json").read_text())
    assert job["file"] == "tiny-gemma-rk3588-w8a8-opt-0-hybrid-ratio-0.5.rkllm"
    assert job["calls"][1]["arguments"]["hybrid_rate"] == 0.5
    assert job["calls"][1]["arguments"]["dataset"] == "calibration.json"


def test_the_manifest_and_the_card_say_what_was_passed_on(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    (model / "README.md").write_text("---\nlicense: gemma\n---\n# The original card\n")
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1_200_000)
    made = rkllm(run, model, python, "--optimization-level", "1")
    assert made.code == 0, made.err
    manifest = json.loads(Path("out/manifest.json").read_text())
    conversion = manifest["conversion"]
    assert conversion["version"] == "1.2.3"
    assert conversion["driver"] == "0.9.8"
    arrived = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [call["arguments"] for call in conversion["calls"]] == [
        {k: v for k, v in values.items() if k != "max_context"} for _, values in arrived[1:]
    ]
    name = "tiny-gemma-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm"
    assert set(manifest["files"]) == {name, "README.md", "NOTICE"}
    card = Path("out/README.md").read_text()
    for part in ("rk3588", "w8a8", "rkllm-toolkit 1.2.3", "0.9.8 or newer", "# The original card"):
        assert part in card
    assert run("verify", "out").code == 0
    assert "optimization_level=1" in run("show", "out").out.replace("\n", "")


def test_a_failed_conversion_leaves_nothing(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    log = tmp_path / "log"
    python = signature_checker(tmp_path / "venv", release, log=log, fails={"build": -1})
    before = {path.name for path in tmp_path.iterdir()}
    made = rkllm(run, model, python)
    assert made.code == 9
    assert "build returned -1, not 0" in made.err
    assert {path.name for path in tmp_path.iterdir()} == before | {"log"}


def test_a_file_of_the_wrong_size_is_no_artifact(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1000)
    made = rkllm(run, model, python)
    assert made.code == 6
    assert "has 1000 bytes" in made.err
    assert not Path("out").exists()


def test_without_a_toolkit_the_next_steps_are_given(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    made = run("rkllm", str(model), "-o", "out", *FEW)
    assert made.code == 8
    for part in (
        "rkllm-toolkit: not found on this machine.",
        "rkllm_toolkit-1.3.0-*-linux_x86_64.whl from https://github.com/airockchip/rknn-llm/releases",
        "it is not on PyPI; rkllm there is something else",
        "--toolkit rkllm-venv/bin/python; or with --prepare-only, without a toolkit.",
    ):
        assert part in made.err
    assert not Path("out").exists()


def test_auto_finds_an_environment_beside(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    signature_checker(tmp_path / "rkllm-venv", release, log=tmp_path / "log")
    made = run("rkllm", str(model), *FEW, "--dry-run", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["toolkit"] == "rkllm-toolkit 1.2.3"


def test_every_problem_is_reported_at_once(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    bad = "--quantized-dtype w4a16 --hybrid-rate 1.0 --npu-cores 4 --max-context 5000"
    made = run("rkllm", str(model), "--toolkit", "python3", *bad.split(), "--calib", "none.txt")
    assert made.code == 2
    for part in (
        "--quantized-dtype w4a16",
        "--hybrid-rate 1",
        "--npu-cores 4",
        "--max-context 5000",
        "rkllm-toolkit is not installed in it",
        "none.txt",
    ):
        assert part in made.err


def test_an_old_release_for_a_new_gemma_is_refused(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    made = run("rkllm", str(model), "--prepare-only", "--toolkit-version", "1.1.4")
    assert "rkllm-toolkit 1.1.4 does not read gemma3_text." in made.err
    assert made.code == 4


def test_a_target_without_an_npu_is_refused(run: Run, model: Path) -> None:
    made = run("rkllm", str(model), "--target", "cuda", *FEW)
    assert made.code == 2
    assert "--target cuda: has no NPU." in made.err


def test_the_model_may_come_from_gemquant_toml(run: Run, model: Path) -> None:
    Path("gemquant.toml").write_text(f'model = "{model}"\n[rkllm]\nhybrid_rate = 0.25\n')
    made = run("rkllm", *FEW, "--prepare-only", "--dry-run", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["job"]["calls"][1]["arguments"]["hybrid_rate"] == 0.25


def test_a_long_text_becomes_several_prompts(run: Run, model: Path) -> None:
    Path("long.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    tokenizer = open_checkpoint(str(model)).tokenizer()
    pairs = calibration_prompts(
        tokenizer, source="long.txt", samples=4, seq_len=20, seed=0, chat_template=STOCK
    )
    assert len(pairs) == 4
    for pair in pairs:
        assert 10 < len(tokenizer.encode(pair["input"], add_special_tokens=False).ids) <= 20


def test_mixtures_become_templated_prompts(model: Path) -> None:
    tokenizer = open_checkpoint(str(model)).tokenizer()
    pairs = calibration_prompts(
        tokenizer, source="chat", samples=10, seq_len=200, seed=0, chat_template=STOCK
    )
    assert len(pairs) == 10
    templated = [pair for pair in pairs if pair["target"]]
    assert len(templated) >= 5
    assert all(pair["input"].startswith("<bos><start_of_turn>user\n") for pair in templated)
    assert all(pair["input"].endswith("<start_of_turn>model\n") for pair in templated)
