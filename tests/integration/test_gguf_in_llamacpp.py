"""A GGUF artifact measured again as a user does it: both levels, in tables that stay apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gemquant.runtimes.llamacpp_library import missing
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP, write_ollamas_gguf
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def test_eval_measures_the_artifact_in_llamacpp(run: Run, generation: Kind, tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "model", generation, overrides=LLAMACPP[generation])
    made = run("gguf", "model", "--type", "F32", "-o", "out", "--no-eval", "--threads", "1")
    assert made.code == 0, made.err
    given = ("--eval-windows", "1", "--eval-slices", "english,code", "--seq-len", "64")
    result = run("eval", "out", *given, "--threads", "1", "--json")
    assert result.code == 0, result.err
    reference, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert (reference["level"], native["level"]) == ("reference", "native")
    assert native["runtime"].startswith("llama.cpp ")
    for ours, theirs in zip(reference["slices"], native["slices"], strict=True):
        nll, native_nll = (
            math.log(figures["perplexity_quantized"]["value"]) for figures in (ours, theirs)
        )
        assert native_nll == pytest.approx(nll, rel=0.02)
        assert theirs["token_stream"] == ours["token_stream"]
        assert theirs["windows"]["tokens"] == ours["windows"]["tokens"] == [63]
    # Nothing but the runtime's own arithmetic is between the two.
    assert 0 < native["kl_from_reference"]["value"] < 0.01
    assert "llama.cpp" in result.err
    assert "continues 'The capital of France is'" in result.err


@pytest.mark.parametrize("tokens", [3, -5])
def test_a_gguf_of_ollamas_becomes_one_that_llamacpp_computes_alike(
    run: Run, tmp_path: Path, tokens: int
) -> None:
    shape = LLAMACPP["gemma3_text"]
    write_ollamas_gguf(tmp_path / "model.gguf", tokens=tokens, overrides=shape)
    made = run("gguf", "model.gguf", "--type", "F32", "-o", "out", "--no-eval", "--threads", "1")
    assert made.code == 0, made.err
    given = ("--eval-windows", "1", "--eval-slices", "english", "--seq-len", "64")
    result = run("eval", "out", *given, "--threads", "1", "--json")
    assert result.code == 0, result.err
    _, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert 0 < native["kl_from_reference"]["value"] < 0.01
