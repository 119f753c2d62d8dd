"""The plug-in of docs/new-quantizer.md becomes a command."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from gemquant.convert.plugins import plugins, quantizer_type
from gemquant.core.targets import load_target
from tests.unit.cli.conftest import Run, code_blocks


@pytest.mark.usefixtures("clipped")
def test_an_installed_quantizer_is_listed(run: Run) -> None:
    listed = {q["name"]: q for q in json.loads(run("quantizers", "--json").out)}
    assert listed["clipped"]["package"] == "gemquant-clipped"
    assert [option["flag"] for option in listed["clipped"]["options"]] == ["--group-size", "--keep"]


@pytest.mark.usefixtures("clipped")
def test_its_fields_become_flags(run: Run) -> None:
    out = run("clipped", "--help").out
    assert "Weights rounded after a fixed part of each group's range was cut off." in out
    assert "--keep X" in out


@pytest.mark.usefixtures("clipped")
def test_its_rules_are_checked(run: Run) -> None:
    result = run("clipped", "model", "--keep", "0.1")
    assert (result.code, result.err) == (2, "error: --keep 0.1: must be at least 0.5.\n")


@pytest.mark.usefixtures("clipped")
def test_the_entry_point_of_the_page_is_the_one_installed_here() -> None:
    project = tomllib.loads(code_blocks("new-quantizer.md", "toml")[0])["project"]
    assert project["entry-points"]["gemquant.quantizers"] == {
        "clipped": plugins("quantizer")["clipped"].value
    }


@pytest.mark.usefixtures("clipped")
def test_it_rounds_within_half_a_step_inside_the_kept_range() -> None:
    import torch

    from gemquant.core.protocols import Block, Container
    from gemquant.models.structure import InputGroup, LayerStructure, NormFold

    weight = torch.linspace(-1, 1, 128).repeat(2, 1)
    block = Block(
        index=0,
        prefix="model.layers.0.",
        structure=LayerStructure((InputGroup("only", ("mlp.up_proj",), NormFold("norm")),)),
        weights={"mlp.up_proj.weight": weight},
        statistics={},
    )
    rounded = quantizer_type("clipped")(keep=1.0).quantize(
        block, Container(torch.bfloat16, torch.bfloat16)
    )["mlp.up_proj.weight"]
    steps = rounded.scales.float().repeat_interleave(64, dim=1)
    error = (rounded.scales.float().repeat_interleave(64, 1) * (rounded.codes.float() - 8)) - weight
    assert (error.abs() <= 0.51 * steps).all()


def test_the_target_of_the_page_is_valid(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(code_blocks("new-target.md", "toml")[0])
    assert load_target("board", [tmp_path]).exporters == ("compressed-tensors",)
