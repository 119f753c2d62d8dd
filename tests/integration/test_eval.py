"""``gemquant eval`` as a user runs it: suites, several artifacts, the document, bad input."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from gemquant.__main__ import main
from gemquant.core.artifact import read_manifest
from gemquant.core.artifact.evaluation import EvaluationDocument
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_sentencepiece import write_convertible_gemma
from tests.unit.cli.conftest import Result, Run

SHORT = ("--eval-windows", "3", "--seq-len", "24")
FEW = (*SHORT, "--eval-slices", "english,code", "--no-native", "--threads", "1", "--quiet")


def make(run: Run, model: Path, out: str, *more: str) -> None:
    made = run(
        *("rtn", str(model), "--group-size", "32", "--no-eval", "--threads", "1", "-q"),
        *("-o", out, *more),
    )
    assert made.code == 0, made.err


@pytest.fixture(scope="module")
def rounded(tiny_folders: dict[Kind, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Gemma 2 rounded to four bits, made once."""
    out = tmp_path_factory.mktemp("artifacts") / "out"
    few = ("--group-size", "32", "--no-eval", "--threads", "1", "-q")
    assert main(["rtn", str(tiny_folders["gemma2"]), *few, "-o", str(out)]) == 0
    return str(out)


def evaluate(run: Run, *given: str) -> Result:
    return run("eval", *given, *FEW)


def document(run: Run, *given: str) -> EvaluationDocument:
    result = evaluate(run, *given, "--output", "e.json")
    assert result.code == 0, result.err
    return EvaluationDocument.read(Path("e.json"))


def test_several_artifacts_are_measured_in_one_document(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, tiny_folders["gemma2"], "four")
    make(run, tiny_folders["gemma2"], "eight", "--bits", "8")
    found = document(run, "four", "eight", "--suite", "default")
    assert (found.suite.name, found.suite.version) == ("default", 1)
    assert found.original.architecture == "gemma2"
    assert [(each.name, each.scheme) for each in found.artifacts] == [
        ("four", "4 bits, groups of 32, zero points"),
        ("eight", "8 bits, groups of 32, zero points"),
    ]
    four, eight = (each.levels[0].slices for each in found.artifacts)
    assert [each.slice for each in four] == ["english", "code"]
    for coarse, fine in zip(four, eight, strict=True):
        assert coarse.windows.tokens == (23, 23, 23)
        assert coarse.token_stream == fine.token_stream
        assert coarse.windows.nll_original == fine.windows.nll_original
        assert fine.kl_mean.value < coarse.kl_mean.value
        assert fine.top5.value > coarse.top5.value
        assert coarse.kl_mean.low <= coarse.kl_mean.value <= coarse.kl_mean.high
        assert coarse.kl_median.value < coarse.kl_p99.value < coarse.kl_max
    for each in found.artifacts:
        assert len(each.levels[0].layers_accumulated[1].relative) == 3
        assert each.levels[0].layers_own == ()


def test_the_same_artifact_gives_the_same_bytes(run: Run, rounded: str) -> None:
    first = document(run, rounded).to_json()
    assert document(run, rounded).to_json() == first


def test_json_prints_the_document_that_output_writes(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, tiny_folders["gemma"], "out")
    printed = evaluate(run, "out", "--by-layer", "--output", "e.json", "--json").out
    assert json.loads(printed) == json.loads(Path("e.json").read_text())
    (own, _) = json.loads(printed)["artifacts"][0]["levels"][0]["layers_own"]
    assert [error > 0 for error in own["relative"]] == [True, True]


def test_tables_name_suite_slices_and_layers(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    make(run, tiny_folders["gemma"], "out")
    lines = evaluate(run, "out", "--suite", "default", "--by-layer").out.splitlines()
    assert lines[0] == f"Against {tiny_folders['gemma']}, on suite default, version 1."
    first = [line.split()[0] for line in lines if line]
    assert [name for name in first if name in ("english", "code", "0", "1")] == [
        *("english", "code", "0", "1")
    ]


def test_a_model_that_a_mixture_breaks_is_found_and_mended_by_what_is_printed(
    run: Run, tmp_path: Path
) -> None:
    """As E4B, whose perplexity goes from 7.1 to 23 in stock Q4_K_M (llama.cpp #22407)."""
    model = write_convertible_gemma(tmp_path, "gemma4_e")
    text = ("--samples", "2", "--eval-windows", "2", "--seq-len", "48", "--eval-slices", "english")
    make = ("gguf", str(model), "--type", "Q4_K_M", *text, "--threads", "1", "-q")
    broken = run(*make, "-o", "broken")
    assert broken.code == 0, broken.err
    assert "This divergence is large. gemquant eval broken --by-layer names the" in broken.out
    found = run("eval", "broken", "--by-layer", "--no-native", "--threads", "1", "-q").out
    assert "Most costly tensors, one at a time" in found
    (advice,) = (line for line in found.splitlines() if line.startswith("To lose less"))
    flags = shlex.split(advice.partition(" with ")[2])
    assert run(*make, *flags, "-o", "mended").code == 0
    losses = [
        read_manifest(Path(each)).certificates[0].slices[0].kl_mean.value
        for each in ("broken", "mended")
    ]
    assert losses[0] > 1
    assert losses[1] < 0.85 * losses[0]


def test_a_dry_run_names_the_very_tokens_and_writes_nothing(run: Run, rounded: str) -> None:
    asked = (rounded, "--suite", "default", "--output", "e.json")
    planned = evaluate(run, *asked, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    told = json.loads(planned.out)
    assert not Path("e.json").exists()
    found = document(run, *asked[:-2])
    assert told["suite"] == found.suite.model_dump(mode="json")
    levels = [{"level": "reference", "runtime": "torch", "not_run": None}]
    assert told["artifacts"] == [{"name": "out", "path": rounded, "levels": levels}]
    (level,) = found.artifacts[0].levels
    assert [(each["slice"], each["tokens"]) for each in told["slices"]] == [
        (each.slice, sum(each.windows.tokens)) for each in level.slices
    ]
    assert "Nothing was measured (--dry-run)." in evaluate(run, *asked, "--dry-run").out


@pytest.mark.parametrize("text", [("--suite", "default"), ()], ids=["suite", "recipe"])
def test_windows_are_added_until_the_interval_is_as_narrow_as_asked(
    run: Run, rounded: str, text: tuple[str, ...]
) -> None:
    before = document(run, rounded, *text)
    found = document(run, rounded, *text, "--precision", "0.06")
    pairs = zip(*(each.artifacts[0].levels[0].slices for each in (before, found)), strict=True)
    for few, many in pairs:
        low, high = many.kl_mean.bounds
        assert (high - low) / 2 <= 0.06 * many.kl_mean.value
        assert many.window_count > few.window_count == 3
        # The first windows are the same, and so is what is measured of them.
        assert many.windows.kl_mean[:3] == pytest.approx(few.windows.kl_mean, rel=1e-4)


def test_windows_are_added_up_to_the_end_of_the_text(run: Run, rounded: str) -> None:
    Path("mine.txt").write_text("the quick brown fox jumps over the lazy dog and it\n" * 9)
    given = ("--suite", "mine.txt", "--seq-len", "24", "--eval-windows", "2", "--no-native")
    made = run("eval", rounded, *given, "--precision", "0.0001", "-t", "1", "-o", "e.json")
    assert made.code == 0, made.err
    assert "the text ends before KL of mine is known to 0%" not in made.err
    assert "the text ends before KL of mine is known to 0.01%" in made.err
    (only,) = EvaluationDocument.read(Path("e.json")).artifacts[0].levels[0].slices
    assert only.window_count > 2


def test_a_file_of_the_users_own_is_a_suite_of_one_slice(run: Run, rounded: str) -> None:
    text = "the quick brown fox jumps over the lazy dog and it is for you\n" * 3
    Path("mine.txt").write_text(text)
    given = ("--suite", "mine.txt", "--seq-len", "24", "--no-native", "--threads", "1", "-q")
    assert run("eval", rounded, *given, "-o", "e.json").code == 0
    found = EvaluationDocument.read(Path("e.json"))
    (only,) = found.artifacts[0].levels[0].slices
    assert (found.suite.name, only.slice) == ("mine.txt", "mine")
    # All of its text: as many windows as it fills.
    assert 1 < len(only.windows.tokens) < 16


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (("--suite", "klingon"), 2, "--suite klingon: neither a file nor one of default, long"),
        (("--suite", "none.txt"), 5, "--suite none.txt: cannot be read: No such file"),
        (("--suite", "empty.txt"), 5, "--suite empty.txt: holds no text"),
        (("--suite", "short.txt"), 5, "tokens do not fill one window of 256"),
        (
            ("--suite", "default", "--eval-windows", "0"),
            2,
            "6 slices of 0 windows are nothing to measure on",
        ),
        (("--precision", "1.5"), 2, "--precision 1.5: must be between 0 and 1."),
        (("--eval-windows", "0"), 2, "an empty suite; nothing would be measured"),
        (("--suite", "code", "--eval-slices", "cobol"), 2, "suite code has python, go, typescript"),
        (("--output", "short.txt"), 7, "short.txt exists and is not an earlier evaluation"),
    ],
)
def test_bad_input_is_refused(
    run: Run, rounded: str, given: tuple[str, ...], code: int, message: str
) -> None:
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("too short")
    result = run("eval", rounded, *given, "--no-native", "--threads", "1", "-q")
    assert result.code == code
    assert message in " ".join(result.err.split())


def test_everything_that_is_wrong_is_told_at_once(run: Run, rounded: str) -> None:
    Path("taken.txt").write_text("words")
    result = run("eval", rounded, "none", "--suite", "klingon", "--seed", "-1", "-o", "taken.txt")
    assert result.code == 6
    for message in (
        "error: 4 problems:",
        "none: no such file or folder",
        "taken.txt exists",
        "--suite klingon",
        "--seed -1",
    ):
        assert message in result.err


def test_an_original_with_other_files_is_named(run: Run, tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma2")
    make(run, Path("model"), "out")
    write_tiny_gemma(tmp_path / "model", "gemma2", seed=7)
    given = [flag for flag in FEW if flag != "--quiet"]
    result = run("eval", "out", *given)
    assert result.code == 0, result.err
    assert "caution: out was made from other weight files than those of model" in result.err


def test_artifacts_of_different_originals_need_one_to_be_named(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    write_tiny_gemma(tmp_path / "other", "gemma2", seed=5)
    make(run, tiny_folders["gemma2"], "first")
    make(run, Path("other"), "second")
    refused = evaluate(run, "first", "second", "--suite", "default")
    assert refused.code == 2
    assert "second has other; artifacts of one run share it" in " ".join(refused.err.split())
    assert "--against MODEL" in refused.err
    found = document(run, "first", "second", "--suite", "default", "--against", "other")
    assert found.original.ref == "other"


def test_artifacts_with_other_text_in_their_recipes_need_a_suite(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, tiny_folders["gemma2"], "first", "--seed", "1")
    make(run, tiny_folders["gemma2"], "second")
    refused = evaluate(run, "first", "second")
    assert refused.code == 2
    assert "seed: first has 1, second has 0" in " ".join(refused.err.split())


def test_two_artifacts_of_one_name_cannot_be_told_apart(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, tiny_folders["gemma2"], "a/out")
    make(run, tiny_folders["gemma2"], "b/out")
    refused = evaluate(run, "a/out", "b/out")
    assert refused.code == 2
    assert "a/out, b/out: one name, out" in refused.err


def test_an_artifact_with_nan_in_it_is_refused_and_nothing_is_written(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    from safetensors.torch import load_file, save_file

    make(run, tiny_folders["gemma2"], "out")
    make(run, tiny_folders["gemma2"], "sound")
    file, scale = Path("out/model.safetensors"), "model.layers.1.mlp.up_proj.weight_scale"
    tensors = load_file(file)
    tensors[scale][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    reseal(Path("out"))
    result = run("eval", "sound", "out", *FEW, "--output", "e.json")
    assert result.code == 6
    assert "out: its values stop being finite in decoder layer 1 (slice english)" in result.err
    assert "nan" not in result.out.lower()
    assert not Path("e.json").exists()


def reseal(folder: Path) -> None:
    """Let the manifest describe the files as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, record in manifest["files"].items():
        content = (folder / name).read_bytes()
        record |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
