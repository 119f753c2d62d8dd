"""What `gemquant onnx` refuses and asks for, without running the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemquant.convert import onnx
from gemquant.convert.external_options import OnnxOptions
from gemquant.errors import RuntimeMissingError, UnsupportedError, UsageError
from gemquant.models.config import text_config
from gemquant.runtimes.worker import Interpreter
from tests.helpers.tiny_gemma import GEMMA4, Kind, tiny_config, write_tiny_gemma
from tests.unit.cli.conftest import Result, Run, run

__all__ = ["run"]


def linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        "model.layers.0.mlp.up_proj.weight": (config["intermediate_size"], config["hidden_size"]),
        "model.layers.0.mlp.down_proj.weight": (config["hidden_size"], config["intermediate_size"]),
    }


def problems(kind: Kind, options: OnnxOptions, provider: str = "cpu", **changed: Any) -> list[str]:
    config = dict(text_config({**tiny_config(kind), **changed}))
    return [str(p) for p in onnx.problems(config, linears(config), options, provider)]


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_generation_can_be_asked_for(generation: Kind, bits: int) -> None:
    assert problems(generation, OnnxOptions(bits=bits)) == []


def test_a_vocabulary_as_large_as_the_feed_forward_layer_is_refused() -> None:
    vocabulary = tiny_config("gemma2")["vocab_size"]
    (problem,) = problems(
        "gemma2", OnnxOptions(group_size=16, bits=32), intermediate_size=vocabulary
    )
    assert f"{vocabulary} tokens in the vocabulary, as many as outputs of up_proj" in problem


@pytest.mark.parametrize(
    ("provider", "bits", "message"),
    [
        ("cpu", 16, "--bits 16 for cpu: onnxruntime computes bfloat16 on GPUs only"),
        ("cuda", 32, "--bits 32 for cuda: its attention has no float32 kernel there."),
    ],
)
def test_bits_that_a_provider_lacks_are_refused_with_those_it_has(
    provider: str, bits: int, message: str
) -> None:
    (problem,) = problems("gemma2", OnnxOptions(bits=bits), provider)
    assert message in problem
    assert "hint: Use --bits" in problem


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    (problem,) = problems("gemma2", OnnxOptions(group_size=128), intermediate_size=352)
    assert problem == (
        "--group-size 128: does not divide 352 input channels.\n  hint: Use --group-size 16 or 32."
    )


def test_rotary_scaling_that_was_not_tested_is_refused_by_name() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    config = dict(text_config(tiny_config("gemma2")))
    config["rope_parameters"] = {**config["rope_parameters"], **scaling}
    (problem,) = onnx.problems(config, linears(config), OnnxOptions(), "cpu")
    assert isinstance(problem, UnsupportedError)
    assert "rotary scaling 'yarn': not tested with the builder for a gemma2." in problem.message


@pytest.mark.parametrize("kind", GEMMA4)
def test_gemma_4_is_refused_with_the_reason(kind: Kind) -> None:
    config = text_config(tiny_config(kind))
    (problem,) = onnx.problems(config, linears(config), OnnxOptions(), "cpu")
    assert "heads differ between layers, with transformers 5.23" in problem.message
    assert problem.hint is not None


def test_gemma_3_tells_the_builder_both_rotary_tables() -> None:
    assert onnx.rope_facts(text_config(tiny_config("gemma3_text"))) == {
        "type": "linear",
        "factor": 8.0,
        "global_theta": 1e6,
        "local_theta": 1e4,
    }
    assert onnx.rope_facts(text_config(tiny_config("gemma2"))) is None


def test_a_missing_extra_is_named_with_its_command() -> None:
    ours = Interpreter(Path("python"), "3.11.7", {"onnxruntime-genai": None, "onnx": "1.23.2"})
    (problem,) = onnx.missing(ours, None)
    assert isinstance(problem, RuntimeMissingError)
    assert problem.message.startswith("onnxruntime-genai: not installed in this environment")
    assert problem.hint is not None
    assert problem.hint.startswith("pip install 'gemquant[onnx]'; or name a Python that has them")


def test_an_environment_without_the_tool_is_named() -> None:
    theirs = Interpreter(Path("v/python"), "3.11.7", {"onnx": None, "torch": None})
    (problem,) = onnx.missing(theirs, "v/python")
    assert problem.hint is not None
    assert problem.hint.startswith("v/python -m pip install onnx torch; or")


def test_other_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="--target mps: gemquant onnx makes models for cpu and"):
        onnx.provider_of("mps")


def refused(result: Result, code: int, *messages: str) -> None:
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    for message in messages:
        assert message in result.err


def test_everything_that_is_wrong_is_said_at_once(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma2")
    (tmp_path / "out").mkdir()
    options = ("--bits", "16", "--group-size", "256", "--python", "/nowhere/python", "-o", "out")
    result = run("onnx", str(model), *options)
    refused(
        result,
        8,
        "--python /nowhere/python: no such program.",
        "--bits 16 for cpu",
        "out exists.",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_options_are_checked_before_the_model_is_opened(run: Run) -> None:
    refused(
        run("onnx", "model", "--bits", "5", "--tool-minutes", "0", "--tool-memory", "much"),
        2,
        "--bits 5: must be one of 4, 8, 16, 32.",
        "--tool-minutes 0: must be at least 1.",
        "--tool-memory much: must be a number and kB, MB, GB, KiB, MiB or GiB",
    )


def test_an_onnx_container_is_not_written_by_other_quantizers(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    result = run("rtn", str(tiny_folders["gemma2"]), "--target", "cpu", "--exporter", "onnx")
    refused(result, 4, "onnxruntime-genai's builder writes this container", "gemquant onnx MODEL")
