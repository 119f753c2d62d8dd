"""``gemquant run``: one pass makes what single commands make, byte for byte."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gemquant.convert import pipeline, prepare, resume
from gemquant.convert.job import JobWriter
from gemquant.convert.resume import ResumePolicy
from gemquant.convert.run_recipe import PRESETS
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.helpers.tiny_job import contents
from tests.unit.cli.conftest import Run

SHARED = 'samples = 2\nseq_len = 32\neval_windows = 1\neval_slices = ["english"]\n'
FLAGS = ("--samples", "2", "--seq-len", "32", "--eval-windows", "1", "--eval-slices", "english")
JOBS = """
[[jobs]]
quantizer = "awq"
group_size = [32, 64]

[[jobs]]
quantizer = "nf4"

[[jobs]]
quantizer = "gguf"
type = ["Q4_0", "Q8_0"]
importance = true

[[jobs]]
quantizer = "rtn"
target = "mps"
group_size = 64
name = "for-mlx"
"""
ALONE = {
    "model-awq-w4-g32": ("awq", "--group-size", "32"),
    "model-awq-w4-g64": ("awq", "--group-size", "64"),
    "model-nf4-g64": ("nf4",),
    "model-gguf-Q4_0": ("gguf", "--type", "Q4_0", "--importance"),
    "model-gguf-Q8_0": ("gguf", "--type", "Q8_0", "--importance"),
    "for-mlx": ("rtn", "--target", "mps", "--group-size", "64"),
}
"""Folder of each of the jobs, and the command that makes the same alone."""

Recipe = Callable[..., str]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Write a recipe for a tiny Gemma 2; return its path."""

    def write(jobs: str = JOBS, shared: str = SHARED, model: str = 'model = "model"\n') -> str:
        write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"])
        file = tmp_path / "recipe.toml"
        file.write_text(f'{model}output = "out"\n{shared}{jobs}', encoding="utf-8")
        return str(file)

    return write


def job(**values: object) -> str:
    return "[[jobs]]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in values.items())


def test_one_pass_makes_the_bytes_of_single_commands(
    run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    assert run("run", recipe()).code == 0
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == ALONE.keys()
    for name, (command, *flags) in ALONE.items():
        assert run(command, "model", *flags, *FLAGS, "-o", f"alone/{name}").code == 0
        alone = tmp_path / "alone" / name
        folder = alone / flags[1] if command == "gguf" and (alone / flags[1]).is_dir() else alone
        assert contents(tmp_path / "out" / name) == contents(folder), name


def test_a_second_run_makes_what_is_missing_alone(
    run: Run, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("run", recipe(job(quantizer="nf4") + job(quantizer="rtn"))).code == 0
    file = tmp_path / "out/model-nf4-g64/model.safetensors"
    before = file.stat().st_mtime_ns
    quantized: list[str] = []
    quantize = JobWriter.quantize

    def watching(writer, block):  # type: ignore[no-untyped-def]
        quantized.append(writer._quantizer.name)
        return quantize(writer, block)

    monkeypatch.setattr(JobWriter, "quantize", watching)
    three = job(quantizer="nf4") + job(quantizer="rtn") + job(quantizer="int8")
    assert run("run", recipe(three)).code == 0
    assert set(quantized) == {"int8"}
    assert file.stat().st_mtime_ns == before


def test_an_artifact_of_another_recipe_is_not_replaced(run: Run, recipe: Recipe) -> None:
    assert run("run", recipe(job(quantizer="rtn", name="x"))).code == 0
    ended = run("run", recipe(job(quantizer="rtn", name="x", group_size=32)))
    assert (ended.code, "x exists" in ended.err) == (7, True)
    assert run("run", recipe(job(quantizer="rtn", name="x", group_size=32)), "--force").code == 0


def test_an_interrupted_run_resumes_to_the_same_bytes(
    run: Run, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe()
    assert run("run", file, "-o", "whole").code == 0
    monkeypatch.setattr(prepare, "ResumePolicy", partial(ResumePolicy, every_seconds=0.0))
    monkeypatch.setattr(resume, "SHARE_OF_TIME", math.inf)
    save = pipeline._save

    def ending(saved, finished, *rest):  # type: ignore[no-untyped-def]
        save(saved, finished, *rest)
        if finished == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_save", ending)
        assert run("run", file).code == 130
    assert "An interrupted pass will be resumed after layer 2." in run("run", file, "--dry-run").out
    assert run("run", file).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_little_memory_takes_more_passes_and_says_why(run: Run, recipe: Recipe) -> None:
    planned = run("run", recipe(), "--dry-run", "--memory", "1MB", "--json")
    document = json.loads(planned.out)
    assert [len(each["jobs"]) for each in document["passes"]] == [1] * len(ALONE)
    assert "6 artifacts in 6 passes, since one would hold" in document["reasons"][0]
    assert run("run", recipe(job(quantizer="rtn")), "--memory", "1MB").code == 0


def test_jobs_with_other_windows_have_a_pass_of_their_own(run: Run, recipe: Recipe) -> None:
    both = job(quantizer="awq") + job(quantizer="awq", samples=3, name="more")
    document = json.loads(run("run", recipe(both), "--dry-run", "--json").out)
    assert [each["jobs"][0]["recipe"]["samples"] for each in document["passes"]] == [2, 3]


@pytest.mark.parametrize(
    ("patterns", "made"),
    [
        (("--only", "awq"), ["model-awq-w4-g32", "model-awq-w4-g64"]),
        (("--only", "AWQ-group_size=64"), ["model-awq-w4-g64"]),
        (("--only", "gguf-*", "--skip", "*q8_0"), ["model-gguf-Q4_0"]),
    ],
)
def test_patterns_choose_jobs(
    run: Run, recipe: Recipe, patterns: tuple[str, ...], made: list[str]
) -> None:
    document = json.loads(run("run", recipe(), *patterns, "--dry-run", "--json").out)
    assert [Path(j["path"]).name for each in document["passes"] for j in each["jobs"]] == made


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (job(quantizer="awq", group_sise=32), "job 1 (awq): no such option: group_sise."),
        (job(quantizer="awq", group_sise=32), "Did you mean group_size?"),
        (job(quantizer="rtn", seq_len=[32, 64]), "seq_len = [32, 64]: only the quantizer's own"),
        (job(quantizer="rtn", bits=[]), "bits = []: needs at least one value."),
        (job(quantizer="rtn", bits=[4, 4]), "bits: 4 is given twice."),
        (job(quantizer="rtn", bits="4"), "bits = '4': must be an integer."),
        (job(quantizer="rtn", bits=[4, 9]), "job 1 (rtn): --bits 9: must be"),
        (job(quantizer="awk"), "awk: no such quantizer."),
        (job(bits=4), "job 1: quantizer is missing."),
        (job(quantizer="rtn", group_size=[32, 64], name="x"), "a name is for one."),
        (job(quantizer="rtn", target="rk9999"), "rk9999"),
        (job(quantizer="rtn", name="x") * 2, "x is the folder of 2 jobs."),
        ("", "has no jobs."),
    ],
)
def test_a_wrong_recipe_is_refused_before_any_work(
    run: Run, recipe: Recipe, tmp_path: Path, jobs: str, message: str
) -> None:
    ended = run("run", recipe(jobs))
    assert ended.code != 0
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_every_problem_is_reported_at_once(run: Run, recipe: Recipe) -> None:
    jobs = job(quantizer="rtn", bits=9) + job(quantizer="awq", grup_size=32) + job(quantizer="x")
    ended = run("run", recipe(jobs), "--threads", "0")
    assert "error: 4 problems:" in ended.err


def test_two_models_share_a_recipe(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    file = recipe(job(quantizer="rtn"), model="")
    assert "names no model" in run("run", file).err
    write_tiny_gemma(tmp_path / "other", "gemma3_text")
    assert run("run", file, "model", "other").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model-rtn-w4-g128", "other-rtn-w4-g128"}


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_preset_is_printed_and_every_job_of_it_is_possible(
    run: Run, recipe: Recipe, file: Path
) -> None:
    recipe()
    assert run("run", "--preset", file.stem, "--show").out == file.read_text(encoding="utf-8")
    planned = run("run", "model", "--preset", file.stem, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    jobs = sum(len(each["jobs"]) for each in json.loads(planned.out)["passes"])
    assert jobs >= len(tomllib.loads(file.read_text(encoding="utf-8"))["jobs"])


RKLLM = job(quantizer="rkllm", prepare_only=True, smooth=False, emulate=0, name="npu")


def test_another_programs_input_is_prepared_after_the_pass_and_not_again(
    run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    file = recipe(job(quantizer="nf4") + RKLLM)
    planned = json.loads(run("run", file, "--dry-run", "--json").out)
    assert planned["steps"] == [{"path": "out/npu", "job": "rkllm", "made": False}]
    assert run("run", file).code == 0
    assert (tmp_path / "out/npu/convert.py").is_file()
    before = (tmp_path / "out/npu/job.json").stat().st_mtime_ns
    again = run("run", file)
    assert (again.code, "rkllm: made already" in again.err) == (0, True)
    assert (tmp_path / "out/npu/job.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (job(quantizer="onnx", python="/nowhere/python"), "/nowhere/python"),
        (job(quantizer="onnx", prepare_only=True), "no such option: prepare_only."),
        (job(quantizer="onnx", tool_memory="lots"), "job 2 (onnx): tool_memory lots"),
        (job(quantizer="awq", engine="autoawq"), "needs --python"),
        (job(quantizer="rkllm", toolkit="/nowhere/python"), "/nowhere/python"),
    ],
)
def test_a_program_that_cannot_run_is_refused_before_the_pass(
    run: Run, recipe: Recipe, tmp_path: Path, step: str, message: str
) -> None:
    ended = run("run", recipe(job(quantizer="nf4") + step))
    assert ended.code != 0
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_finished_artifacts_are_copied_to_a_url_with_the_manifest_last(
    run: Run, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    arrived: list[str] = []
    put_file = MemoryFileSystem.put_file

    def watching(system, source, target, **rest):  # type: ignore[no-untyped-def]
        arrived.append(Path(target).name)
        return put_file(system, source, target, **rest)

    monkeypatch.setattr(MemoryFileSystem, "put_file", watching)
    file = recipe(job(quantizer="rtn", name="x"))
    assert run("run", file, "--copy-to", "memory://shelf/").code == 0
    system = MemoryFileSystem()
    for path in (tmp_path / "out/x").iterdir():
        assert system.cat_file(f"/shelf/x/{path.name}") == path.read_bytes(), path.name
    assert arrived[-1] == "manifest.json"
    arrived.clear()
    assert "memory://shelf/x: copied already" in run("run", file, "--copy-to", "memory://shelf").err
    assert arrived == []


def test_a_url_that_nothing_opens_is_refused_before_work(
    run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    ended = run("run", recipe(job(quantizer="rtn")), "--copy-to", "shelf://x")
    assert (ended.code, "--copy-to shelf://x: Protocol not known: shelf" in ended.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_importance_matrix_lies_beside_the_artifacts_that_used_it(
    run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    file = recipe(job(quantizer="rtn") + job(quantizer="imatrix"))
    assert run("run", file).code == 0
    matrix = tmp_path / "out/model.imatrix.gguf"
    assert run("imatrix", "model", *FLAGS[:4], "-o", "alone.gguf", "--threads", "1").code == 0
    assert matrix.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    assert "imatrix: made already" in run("run", file).err
