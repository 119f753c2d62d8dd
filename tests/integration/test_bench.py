"""``gemquant bench`` as a user runs it, on tiny models, in processes of their own.

No test looks at how long something took.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.runtimes.llamacpp_library import missing
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.unit.cli.conftest import Run

SHORT = ("--prompt-tokens", "16", "--new-tokens", "4", "--threads", "1", "--repetitions", "2")
needs_llamacpp = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.slow
@needs_llamacpp
def test_artifacts_are_measured_side_by_side(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "gemma3_text")
    given = ("model.gguf", str(tiny_folders["gemma3_text"]), *SHORT)
    result = run("bench", *given, "--modes", "default,eager", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert [(row["runtime"], row["mode"]) for row in document["rows"]] == [
        ("llama.cpp", "default"),
        ("transformers", "eager"),
    ]
    for row in document["rows"]:
        measured = row["figures"]["measured"]
        for name in ("first_token_seconds", "prefill_tokens_per_second"):
            assert len(measured[name]["values"]) == 2
            assert measured[name]["minimum"] > 0
        assert len(row["figures"]["warm_up"]["first_token_seconds"]["values"]) == 2
        assert len(row["figures"]["greedy_tokens"]) == 4
    assert document["settings"]["threads"] == 1
    assert document["environment"]["machine"]["fingerprint"]


@needs_llamacpp
def test_a_saved_benchmark_is_compared_and_printed(run: Run, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "gemma")
    saved = run("bench", "model.gguf", *SHORT, "--json")
    assert saved.code == 0, saved.err
    (tmp_path / "before.json").write_text(saved.out)
    table = run("bench", "before.json")
    assert table.code == 0, table.err
    assert "16 prompt tokens, 4 new ones; median [range] of 2 runs after 2" in table.out
    again = run("bench", "model.gguf", *SHORT, "--compare", "before.json")
    assert again.code == 0, again.err
    assert "decode tokens per second" in again.out
    itself = json.loads(run("bench", "--compare", "before.json", "before.json", "--json").out)
    assert {change["ratio"] for change in itself["rows"][0]["changes"].values()} == {1.0}
    document = json.loads(saved.out)
    document["environment"]["machine"] |= {"processor": "Another", "fingerprint": "0"}
    (tmp_path / "elsewhere.json").write_text(json.dumps(document))
    refused = run("bench", "--compare", "elsewhere.json", "before.json")
    assert refused.code == 4
    assert "different machines" in refused.err


def test_a_dry_run_says_what_would_be_measured_and_why_not(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    (Path.cwd() / "model").symlink_to(tiny_folders["gemma2"])
    result = run("bench", "model", "--dry-run")
    assert result.code == 0, result.err
    assert "not run: needs an NVIDIA GPU" in result.out
    listed = json.loads(run("bench", "model", "--dry-run", "--json").out)
    assert [each["mode"] for each in listed if each["not_run"] is None] == ["eager", "static"]


def test_everything_that_is_wrong_is_said_at_once(run: Run) -> None:
    result = run(
        *("bench", "absent", "--new-tokens", "1", "--repetitions", "0", "--compute-dtype", "int3"),
        *("--device", "tpu"),
    )
    assert result.code == 2
    for said in (
        "--new-tokens 1: must be",
        "--repetitions 0",
        "--compute-dtype int3",
        "--device tpu",
    ):
        assert said in result.err


def test_every_path_that_holds_nothing_is_named(run: Run) -> None:
    result = run("bench", "absent", "missing.gguf")
    assert result.code == 6
    assert "absent: neither" in result.err
    assert "missing.gguf: neither" in result.err


def test_a_saved_benchmark_stands_alone(run: Run) -> None:
    result = run("bench", "before.json", "artifact")
    assert result.code == 2
    assert "a saved benchmark cannot be combined with artifacts" in result.err
