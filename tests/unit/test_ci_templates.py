"""The workflows that are meant to be copied: what a reader of theirs relies on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gemquant.cli import cli

CI = Path(__file__).parents[2] / "ci"
GITHUB = CI / "github" / "gemquant.yml"
WHEELS = CI / "github" / "wheels.yml"
GITLAB = CI / "gitlab" / "gemquant.yml"
SCHEMAS = {
    GITHUB: "vendor.github-workflows",
    WHEELS: "vendor.github-workflows",
    GITLAB: "vendor.gitlab-ci",
}


def loaded(file: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def github_steps(file: Path = GITHUB) -> list[dict[str, Any]]:
    return [step for job in loaded(file)["jobs"].values() for step in job["steps"]]


def test_no_input_is_pasted_into_a_script() -> None:
    scripts = [step["run"] for step in github_steps() if "run" in step]
    assert len(scripts) == 6
    assert not [script for script in scripts if "${{" in script]


def test_every_input_is_declared_and_used() -> None:
    # YAML 1.1 reads the key `on` as true.
    declared = set(loaded(GITHUB)[True]["workflow_call"]["inputs"])
    assert set(re.findall(r"inputs\.([a-z-]+)", GITHUB.read_text())) == declared


@pytest.mark.parametrize("file", [GITHUB, WHEELS], ids=["gemquant", "wheels"])
def test_actions_are_pinned_to_a_major_version_or_a_commit(file: Path) -> None:
    used = [step["uses"] for step in github_steps(file) if "uses" in step]
    assert [
        each for each in used if not re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", each)
    ] == []


@pytest.mark.parametrize("file", [GITHUB, WHEELS], ids=["gemquant", "wheels"])
def test_the_workflow_may_only_read(file: Path) -> None:
    assert loaded(file)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_flags_that_are_used_exist(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")
    commands = re.findall(r"^\s+(?:- )?gemquant (eval|gate|report) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in commands] == ["eval", "gate", "report"]
    for name, words in commands:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known = {flag for param in command.params for flag in param.opts}
        assert set(re.findall(r"(--[a-z-]+)", words)) <= known


@pytest.mark.peer
@pytest.mark.parametrize("file", SCHEMAS, ids=["github", "wheels", "gitlab"])
def test_the_schemas_of_schemastore_accept_it(file: Path) -> None:
    if shutil.which("check-jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = ["check-jsonschema", "--builtin-schema", SCHEMAS[file], str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.peer
@pytest.mark.parametrize("file", [GITHUB, WHEELS], ids=["gemquant", "wheels"])
def test_actionlint_accepts_the_workflow(file: Path) -> None:
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run(["actionlint", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
