"""Commands are listed from summaries that agree with the commands themselves."""

from __future__ import annotations

import inspect
import json
import re

import click
import pytest

from gemquant.cli import COMMANDS, _summary, cli
from gemquant.convert.plugins import OWN, quantizer_type
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize("plugin", OWN["quantizer"], ids=lambda plugin: plugin.name)
def test_a_quantizers_summary_is_the_first_line_of_its_docstring(plugin: object) -> None:
    cls = quantizer_type(plugin.name)
    assert inspect.cleandoc(cls.__doc__ or "").split("\n")[0] == plugin.summary


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_summary_is_the_first_line_of_its_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert inspect.cleandoc(command.help or "").split("\n")[0] == _summary(name)


@pytest.mark.parametrize("name", ["awq", "rtn", *COMMANDS])
def test_every_help_has_examples(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert (result.code, "Examples:" in result.out) == (0, True)


def test_help_lists_commands_by_what_they_are_for(run: Run) -> None:
    out = run("--help").out
    order = ["Start:", "doctor", "Make:", "awq", "rkllm", "Measure:", "eval", "Run:", "chat"]
    places = [out.index(f"\n  {word} " if word[-1] != ":" else word) for word in order]
    assert places == sorted(places)
    assert out.index("Publish:") < out.index("\n  verify ")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("trgets", "No such command 'trgets'. Did you mean targets?"),
        ("models/x awq --bits 4", "The command comes first: gemquant awq models/x --bits 4"),
        ("quantize X", "Quantizers are commands: gemquant awq X. All of them: gemquant quantizers"),
        ("awq X --grop-size 64", "No such option '--grop-size'. Did you mean '--group-size'?"),
        ("awq X --outfile y", "No such option '--outfile'.\n"),
        ("awq X --q-bits 4", "No such option '--q-bits'. Did you mean '--bits'?"),
        ("awq X --w_bit 4", "No such option '--w_bit'. Did you mean '--bits'?"),
    ],
)
def test_a_wrong_word_is_answered_with_what_is_alike(run: Run, typed: str, answer: str) -> None:
    result = run(*typed.split())
    assert result.code == 2
    assert answer in result.err


def test_help_is_a_command_too(run: Run) -> None:
    assert run("help").out == run("--help").out
    assert run("help", "awq").out == run("awq", "--help").out


def test_targets_are_listed(run: Run) -> None:
    result = run("targets")
    names = [line.split()[0] for line in result.out.splitlines() if line[0] != " "]
    npus = ["rk3562", "rk3576", "rk3588", "rv1126b"]
    assert names == ["target", "cpu", "cuda", "mps", *npus]


def test_a_target_is_described_with_its_sources(run: Run) -> None:
    out = run("targets", "cuda").out
    assert re.search("gemma3_text +compressed-tensors", out)
    assert "https://github.com/vllm-project/vllm/pull/14211" in out


def test_targets_as_json_are_one_document(run: Run) -> None:
    assert [target["name"] for target in json.loads(run("targets", "--json").out)] == [
        "cpu",
        "cuda",
        "mps",
        "rk3562",
        "rk3576",
        "rk3588",
        "rv1126b",
    ]


def test_a_target_of_several_containers_says_when_to_choose_which(run: Run) -> None:
    out = run("targets", "mps").out
    assert "The default: for mlx-lm and programs built on it" in out
    assert "For programs that are written for transformers." in out
    assert "For llama.cpp and programs built on it" in out
    assert "For training, for further conversion, or where memory is no concern" in out


def test_quantizers_are_listed_with_their_options(run: Run) -> None:
    listed = {q["name"]: q for q in json.loads(run("quantizers", "--json").out)}
    assert listed["awq"]["options"][0] == {
        "flag": "--bits",
        "default": 4,
        "help": "Bits per weight.",
        "minimum": None,
        "maximum": None,
        "choices": [2, 3, 4, 6, 8],
        "repeated": False,
        "size": False,
        "formerly": None,
        "each": False,
    }


def test_defaults_of_quantizers_are_written_as_they_are_typed(run: Run) -> None:
    out = run("quantizers").out
    assert re.search(r"--type +Q4_K_M ", out)
    assert re.search(r"--scale +yes ", out)
    assert " ()" not in out
    assert "True" not in out
