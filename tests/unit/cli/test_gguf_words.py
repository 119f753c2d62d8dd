"""`gemquant gguf` in the words of llama.cpp's programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.unit.cli.conftest import Run


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"]))


def planned(run: Run, *args: str) -> list[dict[str, Any]]:
    made = run("gguf", *args, "--dry-run", "--json", "--no-eval", "-t", "1")
    assert made.code == 0, made.err
    found = json.loads(made.out)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    "words", [["--type", "Q8_0"], ["q8_0"], ["--outtype", "q8_0"], ["--outtype=Q8_0"]]
)
def test_a_type_is_named_in_any_way(run: Run, model: str, words: list[str]) -> None:
    (plan,) = planned(run, model, *words)
    assert plan["recipe"]["options"]["type"] == ["Q8_0"]


def test_several_types_follow_the_model(run: Run, model: str) -> None:
    plans = planned(run, model, "Q8_0", "F16", "--type", "BF16")
    types = [plan["recipe"]["options"]["type"] for plan in plans]
    assert types == [["BF16"], ["Q8_0"], ["F16"]]


def test_llamacpps_flags_are_ours(run: Run, model: str) -> None:
    flags = ["--token-embedding-type", "Q8_0", "--output-tensor-type", "F16", "--outfile", "out"]
    (plan,) = planned(run, model, "Q8_0", *flags)
    options = plan["recipe"]["options"]
    assert (options["embedding_type"], options["output_type"]) == ("Q8_0", "F16")
    assert plan["path"] == "out"


def test_a_file_as_output_is_a_folder_and_says_so(run: Run, model: str) -> None:
    made = run("gguf", model, "Q8_0", "-o", "my.gguf", "--dry-run", "--no-eval", "-t", "1")
    assert made.code == 0, made.err
    assert "note: an artifact is a folder; the file will be in my/.\n" in made.err
    assert re.search(r"^folder +my$", made.out, re.MULTILINE)


def test_a_file_between_model_and_type_is_an_output(run: Run, model: str) -> None:
    made = run("gguf", model, "out.gguf", "Q8_0")
    assert made.code == 2
    assert "out.gguf: where to write is named with -o." in made.err


def test_a_type_that_is_not_made_names_the_nearest(run: Run, model: str) -> None:
    made = run("gguf", model, "--type", "IQ3_M")
    assert made.code == 2
    assert "--type IQ3_M: GGUF type IQ3_M: gemquant does not make it" in made.err
    assert "hint: The nearest in size: Q3_K_S." in made.err


def test_benchs_short_flags_are_those_of_llama_bench(run: Run) -> None:
    made = run("bench", "nowhere.gguf", "-p", "1", "-n", "1", "-r", "0", "-t", "0")
    for words in ("--prompt-tokens 1", "--new-tokens 1", "--repetitions 0", "--threads 0"):
        assert words in made.err


def test_llamafile_says_where_its_runtime_is(run: Run) -> None:
    made = run("llamafile", "x.gguf")
    assert made.code == 2
    assert "--runtime: missing." in made.err
    assert "https://github.com/mozilla-ai/llamafile/releases" in made.err
