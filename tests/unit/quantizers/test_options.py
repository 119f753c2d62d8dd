from __future__ import annotations

import pytest

from gemquant.errors import UnsupportedError, UsageError
from gemquant.quantizers.options import indivisible, is_skipped, unused_patterns

LINEARS = {
    "model.layers.0.self_attn.q_proj.weight": (256, 640),
    "model.layers.0.mlp.up_proj.weight": (96, 640),
    "model.layers.0.mlp.down_proj.weight": (640, 96),
    "model.layers.1.mlp.down_proj.weight": (640, 100),
}


@pytest.mark.parametrize(
    ("name", "skip", "skipped"),
    [
        ("model.layers.3.mlp.down_proj.weight", "", False),
        ("model.layers.3.mlp.down_proj.weight", "*.down_proj", True),
        ("model.layers.3.mlp.down_proj.weight", "layers.3.*", True),
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3.*", True),
        ("model.layers.30.mlp.down_proj.weight", "layers.3.*", False),
        ("model.layers.3.mlp.down_proj.weight", " layers.9.* , *.mlp.* ", True),
        ("model.layers.3.mlp.down_proj.weight", "down_proj", False),
        ("model.layers.3.mlp.down_proj.weight", "*.DOWN_PROJ", False),
        ("lm_head.weight", "lm_head", True),
    ],
)
def test_patterns_name_whole_modules(name: str, skip: str, skipped: bool) -> None:
    assert is_skipped(name, skip) is skipped


def test_every_undividable_layer_is_named_with_the_group_sizes_that_fit() -> None:
    problems = indivisible(LINEARS, 128, "")
    assert [(type(p), p.message, p.hint) for p in problems] == [
        (
            UnsupportedError,
            (
                "96 input channels are not a multiple of the group size 128, in 1 layer: "
                "model.layers.0.mlp.down_proj."
            ),
            "Use --group-size 32, -1 (per channel), or leave the layers out with --skip.",
        ),
        (
            UnsupportedError,
            (
                "100 input channels are not a multiple of the group size 128, in 1 layer: "
                "model.layers.1.mlp.down_proj."
            ),
            "Use --group-size -1 (per channel), or leave the layers out with --skip.",
        ),
    ]


def test_layers_of_one_width_are_named_together() -> None:
    linears = {f"model.layers.{n}.mlp.down_proj.weight": (8, 96) for n in range(3)}
    (problem,) = indivisible(linears, 64, "")
    assert "in 3 layers: model.layers.0.mlp.down_proj, model.layers.1" in problem.message


@pytest.mark.parametrize(
    ("group_size", "skip"), [(-1, ""), (128, "*.down_proj"), (32, "layers.1.*")]
)
def test_a_layer_that_is_left_out_or_whole_needs_no_divisor(group_size: int, skip: str) -> None:
    assert indivisible(LINEARS, group_size, skip) == []


def test_a_pattern_that_names_nothing_is_a_mistake() -> None:
    problems = unused_patterns(LINEARS, "*.down_proj, layers.7.*, mlp")
    assert [type(problem) for problem in problems] == [UsageError, UsageError]
    assert [problem.message for problem in problems] == [
        "--skip layers.7.*: no linear layer has this name.",
        "--skip mlp: no linear layer has this name.",
    ]
