"""Our kernels write ggml's bytes: at every level of the processor, for any finite weights."""

import platform
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemquant.numerics.ggml import ggml_kernel, own_kernel
from gemquant.numerics.ggml_library import ggml
from gemquant.numerics.ggml_types import TYPES
from gemquant.numerics.native import build
from tests.helpers.native_levels import load

OURS = [
    "IQ4_NL",
    "IQ4_XS",
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
]
LARGEST = float(np.finfo(np.float32).max)

# On 64-bit ARM the package's ggml is compiled with fused products and sums: other bytes.
FUSED = platform.machine().lower() not in {"x86_64", "amd64"}
needs_ggml = pytest.mark.skipif(
    ggml() is None or FUSED,
    reason="ggml fuses products and sums here" if FUSED else "xllamacpp is not installed",
)


@pytest.fixture(params=list(build.levels()))
def library(request):
    library, reason = load(request.param)
    if library is None:
        pytest.skip(reason)
    return library


def blocks(kernel, weight, kind, importance=None):
    """What a kernel writes for weights (rows, columns)."""
    rows, columns = weight.shape
    out = torch.full((rows, kind.row_bytes(columns)), 0xAA, dtype=torch.uint8)
    address = None if importance is None else importance.data_ptr()
    kernel(weight.data_ptr(), out.data_ptr(), rows, columns, address)
    return out


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
            expected = blocks(ggml_kernel(kind), weight, kind, important)
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
@pytest.mark.parametrize("weights", sorted(WEIGHTS))
@pytest.mark.parametrize("name", OURS)
def test_bytes_are_ggmls(library, name, weights):
    kernel = own_kernel(library, TYPES[name])
    for importance, weight, important, expected in samples(name, weights):
        ours = blocks(kernel, weight, TYPES[name], important)
        assert torch.equal(ours, expected), f"importances: {importance}"


@needs_ggml
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", OURS)
def test_bytes_of_a_whole_weight_are_ggmls(library, name, weighted):
    torch.manual_seed(0)
    weight = torch.randn(1024, 2304) * 0.02
    importance = torch.rand(2304) + 0.01 if weighted else None
    expected = blocks(ggml_kernel(TYPES[name]), weight, TYPES[name], importance)
    ours = blocks(own_kernel(library, TYPES[name]), weight, TYPES[name], importance)
    assert torch.equal(ours, expected)


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
    expected = blocks(ggml_kernel(kind), weight, kind, importance)
    for level in build.levels():
        library, _ = load(level)
        if library is not None:
            ours = blocks(own_kernel(library, kind), weight, kind, importance)
            assert torch.equal(ours, expected), level
