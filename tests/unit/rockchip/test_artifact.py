"""A file that cannot be what it is said to be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemquant.models.config import text_config
from gemquant.rockchip.artifact import file_problems, size_range
from tests.helpers.tiny_gemma import tiny_config
from tests.unit.rockchip.conftest import Converting

# Real conversions by toolkit 1.0.1: a tiny Gemma 1 of these shapes, 1208 tokens, w8a8, level 0.
SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 2, "head_dim": 256}
MEASURED = [
    ({}, 10438400),
    ({"num_key_value_heads": 2}, 10966784),
    ({"num_hidden_layers": 3}, 14399776),
    ({"vocab_size": 2232}, 12561152),
]


def config(**overrides: Any) -> dict[str, Any]:
    return dict(text_config({**tiny_config("gemma"), "vocab_size": 1208, **SHAPE, **overrides}))


@pytest.mark.parametrize(("overrides", "size"), MEASURED)
def test_what_1_0_1_wrote_is_within_the_sizes_expected_of_it(
    converting: Converting, tmp_path: Path, overrides: dict[str, Any], size: int
) -> None:
    low, high = size_range(converting("1.0.1"), config(**overrides))
    assert low < size < high
    assert (high - low) / size < 0.15


@pytest.mark.parametrize(
    ("begins", "size", "complaint"),
    [
        ("00000000", 10438400, "begins with 00000000; RKLLM files begin with daeeb336"),
        ("daeeb336", 5_000_000, "5000000 bytes"),
        ("daeeb336", 20_000_000, "20000000 bytes"),
    ],
)
def test_another_beginning_or_size_is_refused(
    converting: Converting, tmp_path: Path, begins: str, size: int, complaint: str
) -> None:
    path = tmp_path / "x.rkllm"
    path.write_bytes(bytes.fromhex(begins).ljust(size, b"\0"))
    (problem,) = file_problems(path, converting("1.0.1"), config())
    assert complaint in problem.message


def test_a_release_whose_files_are_unknown_gets_a_wide_range(converting: Converting) -> None:
    low, high = size_range(converting("1.3.0"), config())
    assert low < 7_864_320 < 10_438_400 < high
