"""`gemquant rkllm` as a user runs it, up to the toolkit; a stand-in checks how that is called.

The stand-in is no toolkit and what it writes is no model: conversions are tested in
test_rkllm_toolkit.py, with the vendor's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemquant.calibration.prompts import calibration_prompts
from gemquant.calibration.windows import Packer
from gemquant.core.targets import ToolkitVersion, load_toolkit
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.gptq import Gptq
from gemquant.models.chat import ChatTemplate
from gemquant.models.chat_templates import VARIANTS
from tests.helpers.signature_checker import signature_checker
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_rkllm import write_npu_gemma
from tests.helpers.tiny_sentencepiece import VOCABULARY
from tests.unit.cli.conftest import Result, Run

GEMMA = ChatTemplate(VARIANTS["stock"])

FEW = "--threads 1 --samples 2 --seq-len 32 --calib text.jsonl --no-smooth --emulate 0".split()
SMOOTHED = "--threads 1 --samples 16 --seq-len 32 --calib long.txt --emulate 1".split()
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    lines = [{"messages": TALK}, {"text": "the quick brown fox"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "long.txt").write_text("the quick brown fox jumps over the lazy dog " * 400)
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
    beside = ["NOTICE", "README.md", "convert.py", "job.json", "model", "prepared.json"]
    assert sorted(path.name for path in ready.iterdir()) == sorted([*beside, "calibration.json"])
    assert (
        "Gemma is provided under and subject to the Gemma Terms" in (ready / "NOTICE").read_text()
    )
    readme = (ready / "README.md").read_text()
    assert "prepared for rkllm-toolkit 1.2.0" in readme
    assert "no toolkit was executed here" in readme
    assert "gemquant rkllm ready --converted ready/tiny-gemma-rk3588" in made.out
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


def test_codes_made_here_are_prepared_as_a_gptq_checkpoint(run: Run, model: Path) -> None:
    Path("long.txt").write_text("the quick brown fox jumps over the lazy dog " * 400)
    wanted = "--prepare-only -o ready --gptq --quantized-dtype w8a8_g128 --calib long.txt".split()
    made = run("rkllm", str(model), "--threads", "1", "--samples", "16", "--seq-len", "32", *wanted)
    assert made.code == 0, made.err
    ready = Path("ready")
    beside = ["NOTICE", "README.md", "convert.py", "job.json", "model", "prepared.json"]
    assert sorted(path.name for path in ready.iterdir()) == beside
    noted = json.loads((ready / "model/quantize_config.json").read_text())
    asked = {"bits": 8, "group_size": 128, "sym": True, "desc_act": False}
    assert {key: noted[key] for key in asked} == asked
    config = json.loads((ready / "model/config.json").read_text())
    assert config["quantization_config"].items() <= noted.items()
    job = json.loads((ready / "job.json").read_text())
    assert job["calls"][0]["arguments"]["dtype"] == "float16"
    assert job["calls"][1]["arguments"]["dataset"] is None
    name = "model.layers.0.mlp.down_proj.weight"
    stored = Gptq().open(ready / "model").tensor(name)
    original = load_file(model / "model.safetensors")[name].float()
    assert 0 < (stored - original).norm() < 0.05 * original.norm()


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


def test_a_file_of_another_size_is_not_verified_even_if_its_hash_agrees(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1_200_000)
    assert rkllm(run, model, python).code == 0
    (file,) = Path("out").glob("*.rkllm")
    file.write_bytes(b"short")
    manifest = json.loads(Path("out/manifest.json").read_text())
    digest = hashlib.sha256(b"short").hexdigest()
    manifest["files"][file.name] = {"bytes": 5, "sha256": digest}
    Path("out/manifest.json").write_text(json.dumps(manifest))
    made = run("verify", "out")
    assert made.code == 6
    assert "has 5 bytes" in made.err


def test_an_interrupt_ends_the_toolkit_and_leaves_nothing(
    model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", hangs=True)
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "gemquant", "rkllm", str(model), "--toolkit", str(python)]
    process = subprocess.Popen(
        [*command, "-o", "out", *FEW],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have had SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    noted, deadline = tmp_path / "log.pid", time.monotonic() + 60
    while not noted.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
    assert {path.name for path in tmp_path.iterdir()} == before | {"log", "log.pid"}


@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
def test_the_simulators_logits_become_a_certificate_of_their_own_level(
    run: Run, model: Path, tmp_path: Path, version: str
) -> None:
    found = load_toolkit("rkllm-toolkit").version(version)
    assert found is not None
    made_of = {"size": 1_200_000, "vocabulary": VOCABULARY}
    python = signature_checker(tmp_path / "venv", found, log=tmp_path / "log", **made_of)
    made = rkllm(run, model, python, "--simulate", "2")
    assert made.code == 0, made.err
    (certificate,) = json.loads(Path("out/manifest.json").read_text())["certificates"]
    assert certificate["level"] == "vendor-sim"
    assert certificate["runtime"].startswith(f"rkllm-toolkit {version}, get_logits")
    for found_of in certificate["slices"]:
        assert found_of["windows"]["tokens"] == [31, 31]
        # Every token equally likely: exactly as many choices as there are tokens.
        assert found_of["perplexity_quantized"]["value"] == pytest.approx(VOCABULARY, rel=1e-5)
    arrived = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    asked = [values for function, values in arrived if function == "get_logits"]
    assert asked == [{"keys": ["input_ids"], "shape": [1, 32]}] * 2 * len(certificate["slices"])
    names = [function for function, _ in arrived]
    assert names.index("build") < names.index("get_logits") < names.index("export_rkllm")
    assert "### Level `vendor-sim`" in Path("out/README.md").read_text()


def test_logits_over_another_vocabulary_are_no_certificate(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    log = tmp_path / "log"
    python = signature_checker(tmp_path / "venv", release, log=log, size=1_200_000, vocabulary=7)
    made = rkllm(run, model, python, "--simulate", "1")
    assert made.code == 9
    assert f"the simulator returned logits (31, 7); the model has {VOCABULARY} tokens." in made.err
    assert not Path("out").exists()


def test_nothing_is_simulated_where_nothing_is_run(run: Run, model: Path) -> None:
    made = run("rkllm", str(model), *FEW, "--prepare-only", "--simulate", "1")
    assert made.code == 2
    assert "--simulate 1: nothing is run with --prepare-only." in made.err


def convert(python: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the prepared folder's program as its README says."""
    return subprocess.run([python, *args], capture_output=True, text=True, check=False)


@pytest.fixture
def prepared(run: Run, model: Path) -> Path:
    (model / "README.md").write_text("---\nlicense: gemma\n---\n# The original card\n")
    wanted = "--prepare-only -o ready --toolkit-version 1.2.3".split()
    made = run("rkllm", str(model), *FEW, *wanted)
    assert made.code == 0, made.err
    return Path("ready")


NAME = "tiny-gemma-rk3588-w8a8-opt-0-hybrid-ratio-0.0.rkllm"


def test_what_another_machine_converted_becomes_the_same_artifact(
    run: Run, model: Path, prepared: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1_200_000)
    done = convert(python, "ready/convert.py")
    assert done.returncode == 0, done.stderr
    assert f"--converted {tmp_path / prepared / NAME}" in done.stdout
    made = run("rkllm", "ready", "--converted", f"ready/{NAME}", "-o", "sealed")
    assert made.code == 0, made.err
    assert rkllm(run, model, python).code == 0
    sealed, direct = (
        json.loads(Path(each, "manifest.json").read_text()) for each in ("sealed", "out")
    )
    assert sealed == direct
    assert Path("sealed/README.md").read_text() == Path("out/README.md").read_text()
    assert run("verify", "sealed").code == 0


def test_a_file_converted_otherwise_is_not_sealed(
    run: Run, prepared: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    Path(NAME).write_bytes(bytes(1_200_000))
    missing = run("rkllm", "ready", "--converted", NAME, "-o", "sealed")
    assert missing.code == 2
    assert "converted.json: cannot be read: No such file" in missing.err
    assert "convert.py writes it; bring it back with the file, into ready." in missing.err
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1_200_000)
    assert convert(python, "ready/convert.py").returncode == 0
    answer = json.loads((prepared / "converted.json").read_text())
    answer["versions"]["rkllm-toolkit"] = "1.2.1"
    (prepared / "converted.json").write_text(json.dumps(answer))
    other = run("rkllm", "ready", "--converted", f"ready/{NAME}", "-o", "sealed")
    assert other.code == 6
    assert "converted by rkllm-toolkit 1.2.1, prepared for 1.2.3." in other.err
    answer["calls"][1]["arguments"]["optimization_level"] = 1
    (prepared / "converted.json").write_text(json.dumps(answer))
    assert "not the calls of ready/job.json" in run("rkllm", "ready", "--converted", NAME).err
    assert not Path("sealed").exists()


def test_a_prepared_record_that_was_changed_is_refused(run: Run, prepared: Path) -> None:
    Path("x.rkllm").touch()
    record = json.loads((prepared / "prepared.json").read_text())
    for changed, words in (
        ({"file": "../../x.rkllm"}, "file: "),
        ({"weights": 0}, "weights: "),
        ({"manifest": {**record["manifest"], "conversion": None}}, "has no conversion"),
    ):
        (prepared / "prepared.json").write_text(json.dumps({**record, **changed}))
        made = run("rkllm", "ready", "--converted", "x.rkllm", "-o", "sealed")
        assert made.code == 2, made.err
        assert words in made.err
    made = run("rkllm", "ready", "--converted", "x.rkllm", "--dry-run")
    assert "--converted and --dry-run exclude each other." in made.err
    assert not Path("sealed").exists()


def test_a_model_is_no_prepared_folder(run: Run, model: Path) -> None:
    Path("x.rkllm").touch()
    made = run("rkllm", str(model), "--converted", "x.rkllm")
    assert made.code == 2
    assert "prepared.json: cannot be read" in made.err
    assert "gemquant rkllm FOLDER --converted x.rkllm" in made.err


def test_the_program_says_what_a_python_lacks(prepared: Path, tmp_path: Path) -> None:
    done = convert(Path(sys.executable), "ready/convert.py")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "has no rkllm-toolkit (No module named 'rkllm'): install rkllm_toolkit-1.2.3-*.whl from"
        in done.stderr
    )
    assert (
        "https://github.com/airockchip/rknn-llm/releases (rkllm on PyPI is something else)"
        in done.stderr
    )


def test_the_flag_that_named_a_missing_program_is_named(run: Run, model: Path) -> None:
    made = run("rkllm", str(model), *FEW, "--toolkit", "./nowhere/bin/python")
    assert made.code == 8
    assert "--toolkit ./nowhere/bin/python: no such program." in made.err


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
        "not on PyPI, where rkllm is another package",
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


@pytest.mark.parametrize("toolkit", ["python3", "stand-in"])
def test_every_problem_is_reported_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolkit: str
) -> None:
    monkeypatch.setattr("gemquant.cli.external.total_memory", lambda: 100_000)
    model = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    old = load_toolkit("rkllm-toolkit").version("1.1.4")
    assert old is not None
    python = str(signature_checker(tmp_path / "venv", old, log=tmp_path / "log"))
    named = toolkit if toolkit == "python3" else python
    bad = "--quantized-dtype w4a16 --hybrid-rate 1.0 --npu-cores 4 --max-context 5000"
    more = ["--toolkit-version", "1.1.4", "--calib", "none.txt"]
    made = run("rkllm", str(model), "--toolkit", named, *bad.split(), *more)
    assert made.code == 2
    absent = ["rkllm-toolkit is not installed in it"] if toolkit == "python3" else []
    for part in (
        "--quantized-dtype w4a16: rk3588 supports w8a8",
        "--hybrid-rate 1: must be at least 0 and below 1.",
        "--npu-cores 4: rk3588 supports 1, 2, 3.",
        "--max-context 5000: must be a multiple of 32",
        "rkllm-toolkit 1.1.4 does not read gemma3_text.",
        "converting needs about",
        "none.txt",
        *absent,
    ):
        assert part in made.err


def test_a_toolkit_of_another_release_than_was_named_is_refused(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log")
    made = rkllm(run, model, python, "--toolkit-version", "1.3.0")
    assert made.code == 2
    assert f"--toolkit-version 1.3.0: {python} has 1.2.3." in made.err


def test_an_old_release_for_a_new_gemma_is_refused(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma3_text")
    made = run("rkllm", str(model), "--prepare-only", "--toolkit-version", "1.1.4")
    assert "rkllm-toolkit 1.1.4 does not read gemma3_text." in made.err
    assert made.code == 4


def test_of_a_multimodal_gemma_the_toolkit_gets_the_text_model(
    run: Run, model: Path, tmp_path: Path
) -> None:
    folder = write_tiny_gemma(tmp_path / "multimodal", "gemma3")
    wanted = "--prepare-only -o ready --toolkit-version 1.2.3".split()
    made = run("rkllm", str(folder), *FEW, *wanted)
    assert made.code == 0, made.err
    assert "rkllm: the towers are left out, for rkllm-toolkit loads text models" in made.err
    config = json.loads(Path("ready/model/config.json").read_text())
    assert config["architectures"][0] == "Gemma3ForCausalLM"
    quiet = run("rkllm", str(folder), *FEW, *wanted, "--text-only", "--force")
    assert "towers" not in quiet.err


def test_a_target_without_an_npu_is_refused(run: Run, model: Path) -> None:
    made = run("rkllm", str(model), "--target", "cuda", *FEW)
    assert made.code == 2
    assert "--target cuda: has no NPU." in made.err


def test_the_model_may_come_from_gemquant_toml(run: Run, model: Path) -> None:
    Path("gemquant.toml").write_text(f'model = "{model}"\n[rkllm]\nhybrid_rate = 0.25\n')
    wanted = ["--target", "rk3588", "--prepare-only", "--dry-run", "--json"]
    made = run("rkllm", *FEW, *wanted)
    assert made.code == 0, made.err
    assert json.loads(made.out)["job"]["calls"][1]["arguments"]["hybrid_rate"] == 0.25


def test_a_long_text_becomes_several_prompts(run: Run, model: Path) -> None:
    Path("long.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    tokenizer = open_checkpoint(str(model)).tokenizer()
    pairs = calibration_prompts(Packer(tokenizer, 20, 2, GEMMA), "long.txt", 4)
    assert len(pairs) == 4
    for pair in pairs:
        assert 10 < len(tokenizer.encode(pair["input"], add_special_tokens=False).ids) <= 20


def test_mixtures_become_templated_prompts(model: Path) -> None:
    tokenizer = open_checkpoint(str(model)).tokenizer()
    pairs = calibration_prompts(Packer(tokenizer, 200, 2, GEMMA), "chat", 10)
    assert len(pairs) == 10
    templated = [pair for pair in pairs if pair["target"]]
    assert len(templated) >= 5
    assert all(pair["input"].startswith("<bos><start_of_turn>user\n") for pair in templated)
    assert all(pair["input"].endswith("<start_of_turn>model\n") for pair in templated)


def test_the_prepared_folder_is_smoothed_and_says_so(run: Run, model: Path) -> None:
    made = run("rkllm", str(model), *SMOOTHED, "--prepare-only", "-o", "ready", "--json")
    assert made.code == 0, made.err
    ready, told = Path("ready"), json.loads(made.out)
    before = load_file(model / "model.safetensors")
    after = load_file(ready / "model/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    smoothing = json.loads((ready / "smoothing.json").read_text())
    assert smoothing == told["smoothing"]
    assert smoothing["float_dtype"] == "bfloat16"
    folded = {linear for fold in smoothing["folds"] for linear in fold["linears"]}
    into = {fold["folded_into"] for fold in smoothing["folds"]}
    assert folded
    assert changed == {f"{name}.weight" for name in folded | into}
    emulated = json.loads((ready / "emulated.json").read_text())
    assert emulated == told["certificates"]
    corners = [tuple(each["emulation"].values()) for each in emulated]
    printed = run("rkllm", str(model), *SMOOTHED, "--prepare-only", "-o", "again").out
    assert re.search(
        r"\nwith smoothing +[\d.]+ to [\d.]+ +\d+% to \d+%\nwithout smoothing ", printed
    )
    assert len(printed.splitlines()) < 14
    assert corners == [
        ("w8a8", activations, head, smoothed)
        for smoothed in (True, False)
        for activations in ("per token", "per tensor")
        for head in ("float16", "int8")
    ]
    assert all(each["level"] == "emulated" for each in emulated)
    refused = run("eval", "ready")
    assert refused.code == 2
    assert "prepared for a toolkit, not converted yet" in refused.err
    assert "ready/emulated.json" in refused.err


def test_manifest_card_and_table_hold_the_bracket_with_and_without_smoothing(
    run: Run, model: Path, tmp_path: Path, release: ToolkitVersion
) -> None:
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log", size=1_200_000)
    made = run("rkllm", str(model), "--toolkit", str(python), "-o", "out", *SMOOTHED)
    assert made.code == 0, made.err
    assert "Certificate, level emulated, w8a8, not the device" in made.out
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert len(manifest["certificates"]) == 8
    assert manifest["smoothing"]["folds"]
    assert manifest["calibration"]["windows"] == 16
    card = Path("out/README.md").read_text()
    assert card.count("### Level `emulated`") == 1
    assert "The rows without smoothing are not this artifact" in card
    matter = card.split("---")[1]
    assert "level emulated, activations per tensor, head int8" in matter
    slices = len(manifest["certificates"][0]["slices"])
    assert matter.count("metric_name") + matter.count("name: KL divergence") >= slices
    assert run("verify", "out").code == 0


def test_a_dtype_that_keeps_activations_in_16_bits_is_neither_smoothed_nor_emulated(
    run: Run, model: Path
) -> None:
    wanted = "--target rk3576 --quantized-dtype w4a16 --prepare-only -o ready --json".split()
    made = run("rkllm", str(model), *SMOOTHED, *wanted)
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert told["smoothing"] is None
    (certificate,) = told["certificates"]
    assert certificate["not_run"] == "w4a16 is not 8 bits for both weights and activations"
    assert not Path("ready/emulated.json").exists()


def test_smoothing_says_what_calibration_text_it_misses(run: Run, model: Path) -> None:
    wanted = "--threads 1 --samples 2 --seq-len 32 --calib text.jsonl --prepare-only -o ready"
    made = run("rkllm", str(model), *wanted.split())
    assert made.code == 5
    assert "--calib text.jsonl: 42 tokens, but 2 windows of 32 need 62." in made.err
    assert not Path("ready").exists()
