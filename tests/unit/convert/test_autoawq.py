"""What `gemquant awq --engine autoawq` refuses before AutoAWQ is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.convert import autoawq
from gemquant.convert.external_options import AutoAwqOptions
from gemquant.errors import RuntimeMissingError, UnsupportedError
from gemquant.models.config import text_config
from gemquant.runtimes.worker import Interpreter
from tests.helpers.tiny_gemma import Kind, tiny_config
from tests.unit.cli.conftest import Result, Run, run

__all__ = ["run"]

LINEARS = {"model.layers.0.mlp.down_proj.weight": (128, 384)}
FEW = "--threads 1 --samples 2 --seq-len 24 --eval-windows 1 --eval-slices english".split()


def interpreter(**packages: str | None) -> Interpreter:
    found = {"autoawq": "0.2.9", "torch": "2.13.0", "transformers": "5.23.0", "triton": "3.9.0"}
    return Interpreter(Path("v/python"), "3.11.7", {**found, **packages})


@pytest.mark.parametrize(
    ("kind", "refused"), [("gemma", False), ("gemma2", False), ("gemma3_text", True)]
)
def test_gemma_3_is_refused_as_autoawq_refuses_it(kind: Kind, refused: bool) -> None:
    found = list(autoawq.problems(text_config(tiny_config(kind)), LINEARS, AutoAwqOptions()))
    assert [type(problem) for problem in found] == [UnsupportedError] * refused
    if refused:
        assert found[0].message == "gemma3_text: AutoAWQ 0.2.9 quantizes Gemma 1 and Gemma 2 only."


def test_groups_that_do_not_divide_are_refused() -> None:
    config = text_config(tiny_config("gemma2"))
    (problem,) = autoawq.problems(config, {"a.weight": (64, 96)}, AutoAwqOptions())
    assert "96 input channels are not a multiple of the group size 128" in problem.message


def test_rows_that_autoawq_cannot_clip_are_refused_with_the_way_out() -> None:
    config = text_config(tiny_config("gemma"))
    narrow = {"model.layers.0.self_attn.v_proj.weight": (32, 128)}
    (problem,) = autoawq.problems(config, narrow, AutoAwqOptions())
    assert (
        problem.message == "outputs of v_proj (32): AutoAWQ searches ranges for 64 rows at a time."
    )
    assert problem.hint == "Use --no-clip."
    assert not list(autoawq.problems(config, narrow, AutoAwqOptions(clip=False)))


def test_an_environment_that_has_everything_is_accepted() -> None:
    assert not list(autoawq.interpreter_problems(interpreter()))


def test_an_environment_without_triton_is_told_how_to_be_made() -> None:
    (problem,) = autoawq.interpreter_problems(interpreter(triton=None))
    assert isinstance(problem, RuntimeMissingError)
    assert problem.message == "triton: not installed for v/python."
    assert problem.hint is not None
    assert "pip install torch==2.13.0 transformers==5.23.0 autoawq==0.2.9" in problem.hint


def test_another_version_is_refused() -> None:
    (problem,) = autoawq.interpreter_problems(interpreter(autoawq="0.2.8"))
    assert problem.message == "AutoAWQ 0.2.8 at v/python: 0.2.9 is the one that was tested."


def refused(result: Result, code: int, *messages: str) -> None:
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    for message in messages:
        assert message in result.err, result.err


def test_everything_that_is_wrong_is_said_at_once(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    options = ("--engine", "autoawq", "--eval-slices", "klingon")
    refused(
        run("awq", str(tiny_folders["gemma3_text"]), *FEW, *options),
        2,
        "--engine autoawq: needs --python, an environment that has AutoAWQ.",
        "AutoAWQ 0.2.9 quantizes Gemma 1 and Gemma 2 only.",
        "evaluation slice klingon",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--engine", "autoawq", "--cd-passes", "3"],
            "--cd-passes: AutoAWQ has no such option",
        ),
        (["--engine", "autoawq", "--bits", "3"], "--bits 3: must be one of 4."),
        (["--engine", "autoawq", "--exporter", "mlx"], "AutoAWQ writes awq-gemm only."),
        (["--engine", "autoawk"], "--engine autoawk: must be one of gemquant, autoawq."),
        (["--python", "python3"], "--python: needs --engine autoawq."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_one_engine_are_refused_by_the_other(
    run: Run, options: list[str], message: str
) -> None:
    refused(run("awq", "model", *options), 2, message)


def test_our_own_recipe_says_nothing_of_engines(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    result = run("awq", str(tiny_folders["gemma2"]), *FEW, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert "engine" not in result.out
