"""Our kernels at every level of the processor, and numpy, write ggml's bytes for finite weights."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemquant.numerics.ggml import quantize_rows
from gemquant.numerics.ggml_types import TYPES
from tests.helpers import ggml
from tests.helpers.native_levels import LEVELS, at_level, load

OURS = sorted(name for name, kind in TYPES.items() if not kind.is_float)
LARGEST = float(np.finfo(np.float32).max)

needs_ggml = pytest.mark.skipif(
    ggml.library() is None or ggml.FUSED,
    reason="ggml fuses products and sums here" if ggml.FUSED else "xllamacpp is not installed",
)


def ours(level, weight, kind, importance=None):
    with at_level(level):
        return quantize_rows(weight, kind, importance=importance)


def ggmls(weight, kind, importance=None):
    return ggml.quantize(weight, kind, importance, ggml=ggml.library())


@cache
def samples(name, weights):
    """Weights of a kind in some shapes with all importances, and ggml's bytes for them."""
    torch.manual_seed(0)
    kind = TYPES[name]
    made = []
    for rows, columns in [(1, kind.block), (5, 3 * kind.block), (19, 256)]:
        weight = WEIGHTS[weights](torch.randn(rows, columns)).contiguous()
        for importance, function in IMPORTANCES.items():
            important = function(torch.rand(columns))
            expected = ggmls(weight, kind, important)
            made.append((importance, weight, important, expected))
    return made


def outliers(normal):
    return torch.where(torch.rand(normal.shape) < 0.01, normal * 50, normal * 0.01)


def single(normal):
    weight = torch.zeros_like(normal)
    weight[:, 5::97] = normal[:, 5::97]
    return weight


WEIGHTS = {
    "gaussian": lambda normal: normal * 0.02,
    "heavy-tailed": lambda normal: normal / normal.roll(1, 0).abs().clamp_min(1e-3),
    "bf16": lambda normal: (normal * 0.02).bfloat16().float(),
    "integers": lambda normal: (normal * 4).round(),
    "halves": lambda normal: (normal * 8).round() / 2,
    "constant": lambda normal: torch.full_like(normal, -0.37),
    "zero": torch.zeros_like,
    "negative zero": lambda normal: torch.full_like(normal, -0.0),
    "denormal": lambda normal: normal * 1e-39,
    "near the zero threshold": lambda normal: normal * 1e-15,
    "square overflows": lambda normal: normal * 1e19,
    "huge": lambda normal: normal * 1e30,
    "near the largest": lambda normal: normal.tanh() * LARGEST,
    "outliers": outliers,
    "one in a block": single,
    "negative": lambda normal: -normal.abs(),
    "positive": torch.abs,
    "every magnitude": lambda normal: normal * torch.logspace(-40, 37, normal.shape[1]),
    "far from zero": lambda normal: 1 + normal * 1e-6,
    "far below zero": lambda normal: -1 + normal * 1e-6,
    "some of many": lambda normal: normal * (normal.roll(1, 0).abs() > 2),
    "blocks of all sizes": lambda normal: (
        normal * (8 * normal[:, ::32]).exp().repeat_interleave(32, dim=1)
    ),
}

IMPORTANCES = {
    "none": lambda uniform: None,
    "positive": lambda uniform: uniform + 0.1,
    "zeros": lambda uniform: uniform * (uniform > 0.3),
    "all zero": torch.zeros_like,
    "ones": torch.ones_like,
    "every magnitude": lambda uniform: 10 ** (uniform * 76 - 38),
}


@needs_ggml
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weights", sorted(WEIGHTS))
@pytest.mark.parametrize("name", OURS)
def test_bytes_are_ggmls(level, name, weights):
    for importance, weight, important, expected in samples(name, weights):
        found = ours(level, weight, TYPES[name], important)
        assert torch.equal(found, expected), f"importances: {importance}"


@needs_ggml
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("level", LEVELS)
def test_bytes_of_a_whole_weight_are_ggmls(level, name, weighted):
    torch.manual_seed(0)
    weight = torch.randn(1024, 2304) * 0.02
    importance = torch.rand(2304) + 0.01 if weighted else None
    expected = ggmls(weight, TYPES[name], importance)
    assert torch.equal(ours(level, weight, TYPES[name], importance), expected)


@st.composite
def finite(draw, rows, columns, lowest=-1.0):
    """Numbers of every magnitude that a drawn range of exponents holds, some of them zero."""
    least, most = sorted([draw(st.integers(-149, 127)), draw(st.integers(-149, 127))])
    zeros = draw(st.sampled_from([0.0, 0.1, 0.9, 0.999]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (rows, columns)
    exponents = random.integers(least, most, shape, endpoint=True)
    made = np.ldexp(random.uniform(lowest, 1.0, shape), exponents) * (random.random(shape) >= zeros)
    return torch.from_numpy(made.astype(np.float32))


@needs_ggml
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", OURS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_bytes_are_ggmls_for_any_range_of_magnitudes(name, weighted, data):
    kind = TYPES[name]
    weight = data.draw(finite(3, 512))
    importance = data.draw(finite(1, 512, lowest=0.0))[0] if weighted else None
    expected = ggmls(weight, kind, importance)
    for level in [level for level in LEVELS if level == LEVELS[-1] or load(level)[0] is not None]:
        assert torch.equal(ours(level, weight, kind, importance), expected), level
