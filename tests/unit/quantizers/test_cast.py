from __future__ import annotations

import pytest

from gemquant.core.options import problems_with
from gemquant.core.protocols import ActivationRange, Block
from gemquant.errors import UnsupportedError
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.models.architecture import layer_structure
from gemquant.quantizers.cast import Cast
from tests.helpers.tiny_gemma import tiny_config

CONTAINER = PlainSafetensors().container({})
NORM = "model.layers.3.post_feedforward_layernorm"


def block(largest: float) -> Block:
    seen = ActivationRange(residual=largest / 2, largest=largest, where=NORM)
    structure = layer_structure(tiny_config("gemma2"), 0)
    return Block(3, "model.layers.3.", structure, {}, {}, seen)


def test_nothing_is_quantized() -> None:
    cast = Cast()
    assert cast.scheme_for("model.layers.0.mlp.up_proj.weight", (384, 128)) is None
    assert cast.quantize(block(1e9), CONTAINER) == {}


def test_only_float16_needs_a_trace() -> None:
    needs = {dtype: Cast(dtype=dtype).needs for dtype in ("bfloat16", "float16", "float32")}
    assert needs == {
        "bfloat16": frozenset(),
        "float16": frozenset({"moments"}),
        "float32": frozenset(),
    }


def test_a_layer_that_overflows_in_float16_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError) as caught:
        Cast(dtype="float16").quantize(block(131008.0), CONTAINER)
    assert str(caught.value) == (
        "model.layers.3 overflows in float16, which ends at 65,504: its residual stream reaches "
        f"65,504 on the calibration text, its largest activation 131,008, at {NORM}.\n"
        "  hint: Use --dtype bfloat16; or --allow-overflow, if the runtime computes in bfloat16 or "
        "float32."
    )


@pytest.mark.parametrize(
    ("largest", "allowed"), [(65503.0, False), (1e6, True)], ids=["just-below", "allowed"]
)
def test_float16_is_written_where_it_fits_or_overflow_is_allowed(
    largest: float, allowed: bool
) -> None:
    cast = Cast(dtype="float16", allow_overflow=allowed)
    assert cast.quantize(block(largest), CONTAINER) == {}


@pytest.mark.parametrize("size", ["", "GB", "0.5kB", "-1GB", "2QB", "1e9GB"])
def test_a_shard_size_that_is_none_is_refused(size: str) -> None:
    (problem,) = problems_with(Cast(shard_size=size))
    assert problem.message == (
        f"--shard-size {size}: must be a number and kB, MB, GB, KiB, MiB or GiB, at least 1kB."
    )


def test_an_unknown_type_is_refused() -> None:
    (problem,) = problems_with(Cast(dtype="float8"))
    assert problem.message == "--dtype float8: must be one of bfloat16, float16, float32."
