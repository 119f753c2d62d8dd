from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gemquant.core.protocols import PER_CHANNEL, AffineScheme, AffineWeight, Exporter, QuantizedSpec
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.awq_gemm import AwqGemmLinear
from gemquant.formats.metal import Metal
from gemquant.formats.mlx import MLX, BiasLinear
from gemquant.models.structure import EMBEDDING
from gemquant.numerics.mlx_affine import quantize_anchored, zero_points_of
from tests.helpers.tiny_artifact import rounded, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

CASES = [(bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
W4 = AffineScheme(4, 64, symmetric=False)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
BOTH: dict[str, Exporter] = {"mlx": MLX(), "metal": Metal()}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "mlx.safetensors")


@pytest.fixture(params=BOTH)
def exporter(request: pytest.FixtureRequest) -> Exporter:
    return BOTH[request.param]


@pytest.mark.parametrize(("bits", "group_size"), CASES)
def test_a_weight_is_rounded_and_stored_as_mlx_does(
    golden: dict[str, Tensor], bits: int, group_size: int
) -> None:
    codes, scales, biases = quantize_anchored(
        golden["weight"], bits=bits, group_size=group_size, scale_dtype=torch.bfloat16
    )
    scheme = AffineScheme(bits, group_size, symmetric=False)
    weight = AffineWeight(scheme, codes, scales, zero_points_of(scales, biases))
    stored = BiasLinear().pack(weight)
    for suffix in ("weight", "scales", "biases"):
        expected = golden[f"w{bits}g{group_size}.{suffix}"]
        found = stored[suffix] if suffix == "weight" else stored[suffix].float()
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32)), suffix


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_decodes_the_same_weight(golden: dict[str, Tensor], bits: int) -> None:
    stored = {
        "weight": golden[f"w{bits}g64.weight"],
        "scales": golden[f"w{bits}g64.scales"].bfloat16(),
        "biases": golden[f"w{bits}g64.biases"].bfloat16(),
    }
    spec = QuantizedSpec((16, 128), AffineScheme(bits, 64, symmetric=False))
    decoded = BiasLinear().unpack(stored, spec, 0, 16).dequantize()
    # mlx multiplies and adds in one rounding where the processor can.
    torch.testing.assert_close(decoded, golden[f"w{bits}g64.decoded"], rtol=1e-6, atol=1e-7)


def test_every_tensor_reads_back_as_it_was_written(
    tmp_path: Path, exporter: Exporter, generation: Kind
) -> None:
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter, generation, W4))
    weights = exporter.open(tmp_path)
    assert list(weights.names()) == list(made.header.layout)
    for name, value in made.decoded.items():
        assert torch.equal(weights.tensor(name, torch.float32), value), name


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_width_reads_back_as_it_was_written(tmp_path: Path, bits: int) -> None:
    scheme = AffineScheme(bits, 32, symmetric=False)
    made = write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), scheme=scheme))
    assert torch.equal(MLX().open(tmp_path).tensor(Q_PROJ), made.decoded[Q_PROJ])


def test_rows_are_those_of_the_whole(tmp_path: Path, exporter: Exporter) -> None:
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter, scheme=W4))
    weights = exporter.open(tmp_path)
    for name in (EMBEDDING, Q_PROJ):
        assert torch.equal(weights.rows(name, 3, 50, torch.float32), made.decoded[name][3:50])


def test_file_sizes_are_exact(tmp_path: Path, exporter: Exporter) -> None:
    header = tiny_header(exporter, scheme=W4)
    write_tiny_weights(tmp_path, exporter, header)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert exporter.file_sizes(header) == {"model.safetensors": size}


def test_a_configuration_reads_back_as_it_was(
    tmp_path: Path, exporter: Exporter, generation: Kind
) -> None:
    header = tiny_header(exporter, generation, W4)
    write_tiny_weights(tmp_path, exporter, header)
    assert dict(exporter.open(tmp_path).config) == {**header.config, "dtype": "bfloat16"}


def test_mlx_finds_its_configuration_under_both_names(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), scheme=W4))
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"group_size": 64, "bits": 4, "mode": "affine"}
    assert (config["quantization"], config["quantization_config"]) == (expected, expected)


def test_mlx_lm_finds_the_older_rope_keys_of_a_gemma_3(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), "gemma3_text", W4))
    config = json.loads((tmp_path / "config.json").read_text())
    found = {k: config[k] for k in ("rope_theta", "rope_local_base_freq", "rope_scaling")}
    assert found == {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert config["sliding_window_pattern"] == 2


def test_a_module_of_another_scheme_is_named(tmp_path: Path) -> None:
    other = AffineScheme(8, 32, symmetric=False)
    header = tiny_header(MLX(), scheme=W4, schemes={Q_PROJ: other})
    made = write_tiny_weights(tmp_path, MLX(), header)
    config = json.loads((tmp_path / "config.json").read_text())
    named = config["quantization"]["model.layers.0.self_attn.q_proj"]
    assert named == {"group_size": 32, "bits": 8}
    assert torch.equal(MLX().open(tmp_path).tensor(Q_PROJ), made.decoded[Q_PROJ])


def test_metal_configuration_is_what_transformers_looks_up(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, Metal(), tiny_header(Metal(), scheme=W4, schemes={Q_PROJ: None}))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "metal",
        "bits": 4,
        "group_size": 64,
        "modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.q_proj"],
    }


def test_a_symmetric_weight_with_whole_zero_points_is_stored_exactly() -> None:
    scheme = AffineScheme(4, 32, symmetric=True)
    weight = rounded(torch.randn(8, 64), scheme, torch.bfloat16)
    stored = BiasLinear().pack(weight)
    assert torch.equal(stored["biases"].float(), -8 * weight.scales.float())
    read = BiasLinear().unpack(stored, QuantizedSpec((8, 64), scheme), 0, 8)
    assert torch.equal(read.dequantize(), weight.dequantize())


def test_whole_zero_points_that_were_not_chosen_as_biases_are_refused() -> None:
    weight = rounded(torch.randn(8, 64), W4, torch.bfloat16)
    with pytest.raises(UnsupportedError, match="q_proj: this container stores biases"):
        BiasLinear().check("q_proj", weight, QuantizedSpec((8, 64), W4))


def test_zero_points_that_are_not_whole_are_refused_where_none_are_stored() -> None:
    weight = rounded(torch.randn(8, 64), W4, torch.float16, biased=True)
    with pytest.raises(ValueError, match="announced as"):
        AwqGemmLinear().check("q_proj", weight, QuantizedSpec((8, 64), W4))


def problems(exporter: Exporter, scheme: AffineScheme, kind: Kind = "gemma2") -> list[str]:
    return [p.message for p in exporter.problems(tiny_header(exporter, kind, scheme))]


def test_what_the_containers_cannot_hold_is_said(exporter: Exporter) -> None:
    (message,) = problems(exporter, AffineScheme(7, 64, symmetric=False))
    assert "bits; asked for 7" in message
    (message,) = problems(exporter, AffineScheme(4, PER_CHANNEL, symmetric=False))
    assert message.endswith("groups of 32, 64, 128; asked for one group per channel.")


def test_metal_refuses_widths_of_mlx_alone() -> None:
    assert problems(Metal(), AffineScheme(3, 64, symmetric=False)) == [
        "metal stores 2, 4, 8 bits; asked for 3."
    ]


def test_metal_refuses_mixed_schemes() -> None:
    other = AffineScheme(8, 32, symmetric=False)
    header = tiny_header(Metal(), scheme=W4, schemes={Q_PROJ: other})
    (problem,) = Metal().problems(header)
    assert "asked for 4 bits in groups of 64, 8 bits in groups of 32" in problem.message


@pytest.mark.parametrize(("kind", "count"), [("gemma", 1), ("gemma2", 1), ("gemma3_text", 0)])
def test_mlx_holds_an_untied_head_for_gemma_3_alone(kind: Kind, count: int) -> None:
    header = tiny_header(MLX(), kind, W4, tied=False, quantized_head=True)
    assert len(MLX().problems(header)) == count


def test_irregular_layers_are_refused_by_mlx() -> None:
    header = tiny_header(MLX(), "gemma3_text", W4)
    irregular = ["full_attention", "sliding_attention", "sliding_attention"]
    header.config["layer_types"] = irregular  # type: ignore[index]
    (problem,) = MLX().problems(header)
    assert "are not regular" in problem.message


@pytest.mark.parametrize("edit", [{"bits": 7}, {"group_size": 48}, {"mode": "mxfp4"}, {"bits": []}])
def test_another_scheme_than_mlxs_is_not_opened(tmp_path: Path, edit: dict[str, object]) -> None:
    write_tiny_weights(tmp_path, MLX(), tiny_header(MLX(), scheme=W4))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= edit
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="not one of MLX's affine schemes"):
        MLX().open(tmp_path)
