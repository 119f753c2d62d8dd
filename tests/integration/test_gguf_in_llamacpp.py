"""A GGUF artifact measured again as a user does it: both levels, in tables that stay apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.skeleton import Skeleton
from gemquant.runtimes.llamacpp import LlamaCpp
from gemquant.runtimes.llamacpp_library import missing
from gemquant.runtimes.runtime import LoadOptions
from tests.helpers.tiny_gemma import GEMMA4, Kind, stacked, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP, write_ollamas_gguf
from tests.helpers.tiny_windows import tiny_windows
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
        assert theirs["windows"]["tokens"] == ours["windows"]["tokens"] == [48]
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


def test_eval_compares_the_12b_with_its_gguf_which_is_named_as_the_others(
    run: Run, tmp_path: Path
) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma4_unified")
    made = run("gguf", "model", "--type", "BF16", "-o", "out", "--no-eval", "--threads", "1")
    assert made.code == 0, made.err
    given = ("--eval-windows", "1", "--eval-slices", "english", "--seq-len", "64", "--no-native")
    result = run("eval", "out", *given, "--threads", "1", "--json")
    assert result.code == 0, result.err
    (level,) = json.loads(result.out)["artifacts"][0]["levels"]
    assert abs(level["slices"][0]["kl_mean"]["value"]) < 1e-9


IDS = tiny_windows(2, 40).ids
NEAR = 1e-3
"""Nats per token: keys, values and the head's inputs are float16 in llama.cpp."""


def librarys_logits(checkpoint: Checkpoint) -> Tensor:
    """What transformers computes from a checkpoint's weights, in float32."""
    config = Skeleton(checkpoint.config).config
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(stacked(checkpoint.config, tensors), strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits: Tensor = model(IDS).logits[:, :-1]
    return logits.reshape(-1, logits.shape[-1])


def divergences(first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence of every token."""
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (first, second))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("kind", GEMMA4)
def test_llamacpp_computes_what_transformers_does(run: Run, kind: Kind, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", kind)))
    made = run("gguf", "model", "--type", "F32", "-o", "out", "--no-eval", "--threads", "1")
    assert made.code == 0, made.err
    (path,) = (tmp_path / "out").glob("model-*.gguf")
    runner = LlamaCpp.load(path, "gguf", LoadOptions(threads=1))
    found = torch.cat([chunk.clone() for chunk in runner.logit_chunks(IDS)])
    expected = librarys_logits(checkpoint)
    each = divergences(expected, found)
    # A router's near tie may fall the other way for a few tokens, and then all differs after it.
    assert (each.median() if kind == "gemma4_moe" else each.mean()) < NEAR
    assert each.mean() < divergences(expected, torch.zeros_like(expected)).mean() / 20
