"""What both containers promise: what goes in comes out, and transformers reads the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gemquant.core.protocols import PER_CHANNEL, AffineScheme, AffineWeight, Exporter
from gemquant.errors import ArtifactError, GemquantError, Problems, UnsupportedError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.models.structure import EMBEDDING, HEAD
from tests.helpers.tiny_artifact import W4, W4_SYMMETRIC, rounded, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

EXPORTERS: dict[str, Exporter] = {
    "awq-gemm": AwqGemm(),
    "compressed-tensors": CompressedTensors(),
    "sharded": CompressedTensors(max_shard_bytes=100_000),
}
SCHEMES = {
    "w4": W4,
    "w4-symmetric": W4_SYMMETRIC,
    "w4-channel": AffineScheme(4, PER_CHANNEL, symmetric=False),
    "w3": AffineScheme(3, 32, symmetric=False),
    "w8": AffineScheme(8, PER_CHANNEL, symmetric=True),
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DOWN_PROJ = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(params=EXPORTERS)
def exporter(request: pytest.FixtureRequest) -> Exporter:
    return EXPORTERS[request.param]


def test_every_tensor_reads_back_as_it_was_written(
    tmp_path: Path, exporter: Exporter, generation: Kind
) -> None:
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter, generation))
    weights = exporter.open(tmp_path)
    assert list(weights.names()) == list(made.header.layout)
    for name, value in made.decoded.items():
        assert torch.equal(weights.tensor(name, torch.float32), value), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_width_reads_back_as_it_was_written(tmp_path: Path, scheme: str) -> None:
    exporter = CompressedTensors()
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter, scheme=SCHEMES[scheme]))
    weights = exporter.open(tmp_path)
    for name in (Q_PROJ, DOWN_PROJ):
        assert torch.equal(weights.tensor(name), made.decoded[name])


def test_rows_are_those_of_the_whole(tmp_path: Path, exporter: Exporter) -> None:
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    weights = exporter.open(tmp_path)
    for name in (EMBEDDING, Q_PROJ):
        assert torch.equal(weights.rows(name, 3, 50, torch.float32), made.decoded[name][3:50])


def test_file_sizes_are_exact(tmp_path: Path, exporter: Exporter) -> None:
    header = tiny_header(exporter)
    write_tiny_weights(tmp_path, exporter, header)
    (tmp_path / "config.json").unlink()
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert found == exporter.file_sizes(header)


def test_a_configuration_reads_back_as_it_was(
    tmp_path: Path, exporter: Exporter, generation: Kind
) -> None:
    header = tiny_header(exporter, generation)
    write_tiny_weights(tmp_path, exporter, header)
    dtype = "float16" if exporter.name == "awq-gemm" else "bfloat16"
    assert dict(exporter.open(tmp_path).config) == {**header.config, "dtype": dtype}


def test_the_head_of_an_untied_model_may_be_quantized(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    header = tiny_header(exporter, tied=False, quantized_head=True)
    assert exporter.problems(header) == []
    made = write_tiny_weights(tmp_path, exporter, header, tied=False)
    assert torch.equal(exporter.open(tmp_path).tensor(HEAD), made.decoded[HEAD])


def test_layers_left_out_and_mixed_schemes_read_back(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    header = tiny_header(exporter, schemes={Q_PROJ: None, DOWN_PROJ: SCHEMES["w8"]})
    made = write_tiny_weights(tmp_path, exporter, header)
    weights = exporter.open(tmp_path)
    assert weights.stored_dtype(Q_PROJ) == torch.bfloat16
    assert torch.equal(weights.tensor(DOWN_PROJ), made.decoded[DOWN_PROJ])


def test_awq_stores_float16_transposed(tmp_path: Path) -> None:
    exporter = AwqGemm()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        found = {
            suffix: file.get_slice(Q_PROJ.replace("weight", suffix)).get_shape()
            for suffix in ("qweight", "qzeros", "scales")
        }
        assert file.get_slice(EMBEDDING).get_dtype() == "F16"
    # Linear(128, 256), groups of 128.
    assert found == {"qweight": [128, 32], "qzeros": [1, 32], "scales": [1, 256]}


def test_awq_configuration_is_what_runtimes_look_up(tmp_path: Path) -> None:
    exporter = AwqGemm()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter, schemes={Q_PROJ: None}))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.q_proj"],
    }


def test_a_symmetric_artifact_stores_no_zero_points(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter, scheme=W4_SYMMETRIC))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "zero_point" in name]  # noqa: SIM118


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (AffineScheme(8, 128, symmetric=False), "stores 4 bits; asked for 8"),
        (AffineScheme(4, 100, symmetric=False), r"Group size 100 does not divide .*q_proj \(128\)"),
    ],
    ids=["bits", "group size"],
)
def test_what_awq_cannot_hold_is_said(scheme: AffineScheme, message: str) -> None:
    exporter = AwqGemm()
    (problem,) = exporter.problems(tiny_header(exporter, scheme=scheme))
    assert isinstance(problem, UnsupportedError)
    with pytest.raises(UnsupportedError, match=message):
        raise problem


def test_group_sizes_that_fit_are_suggested() -> None:
    exporter = CompressedTensors()
    header = tiny_header(exporter, scheme=AffineScheme(4, 256, symmetric=False))
    (problem,) = exporter.problems(header)
    assert problem.hint == "These would fit: 128, 64, 32, one group per channel."


def test_mixed_group_sizes_are_refused_by_awq() -> None:
    exporter = AwqGemm()
    (problem,) = exporter.problems(tiny_header(exporter, schemes={Q_PROJ: W4_SYMMETRIC}))
    assert "one group size for the whole model; asked for 32, 128" in problem.message


def test_a_quantized_head_is_refused_by_awq() -> None:
    exporter = AwqGemm()
    problems = exporter.problems(tiny_header(exporter, tied=False, quantized_head=True))
    assert "cannot hold a quantized lm_head" in problems[0].message


def test_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    exporter = AwqGemm()
    header = tiny_header(exporter)
    norm = torch.full((128,), 70000.0)
    with (
        exporter.create(tmp_path, header) as writer,
        pytest.raises(UnsupportedError, match=r"holds 70000; the largest float16 is 65504"),
    ):
        writer.write({"model.norm.weight": norm})


def wrong_weights() -> dict[str, tuple[object, str]]:
    weight = torch.zeros(256, 128)
    good = rounded(weight, W4, torch.bfloat16)
    return {
        "unquantized": (weight, "came unquantized"),
        "scheme": (rounded(weight, W4_SYMMETRIC, torch.bfloat16), "announced as"),
        "scale type": (rounded(weight, W4, torch.float16), "announced as"),
        "codes": (
            AffineWeight(W4, good.codes + 16, good.scales, good.zero_points),
            "do not fit 4 bits",
        ),
    }


@pytest.mark.parametrize("case", ["unquantized", "scheme", "scale type", "codes"])
def test_a_weight_that_is_not_as_announced_is_refused(tmp_path: Path, case: str) -> None:
    exporter = CompressedTensors()
    value, message = wrong_weights()[case]
    with (
        exporter.create(tmp_path, tiny_header(exporter)) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.write({Q_PROJ: value})


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_an_artifact_without_its_configuration_is_not_opened(
    tmp_path: Path, exporter: Exporter
) -> None:
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json: cannot be read"):
        exporter.open(tmp_path)


def test_an_artifact_that_is_not_quantized_as_it_says_is_not_opened(
    tmp_path: Path, exporter: Exporter
) -> None:
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    edit_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ArtifactError, match="quantization_config"):
        exporter.open(tmp_path)


def test_every_tensor_that_differs_from_the_configuration_is_named(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    edit_config(tmp_path, num_hidden_layers=4, layer_types=["full_attention"] * 4)
    with pytest.raises(GemquantError) as caught:
        exporter.open(tmp_path)
    assert "lacks model.layers.3.self_attn.q_proj.weight_packed" in str(caught.value)


def test_a_truncated_file_is_an_artifact_error(tmp_path: Path, exporter: Exporter) -> None:
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    path = min(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises((ArtifactError, Problems), match="truncated"):
        exporter.open(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("symmetric", value) for value in (None, [], "yes", 1)),
        *(("num_bits", value) for value in (None, 0, -4, True, "4", 4.0, 2**70, [4])),
        *(("group_size", value) for value in (None, 0, -2, "32", 0.5, 2**70, 7)),
    ],
)
def test_a_damaged_scheme_is_no_artifact(tmp_path: Path, key: str, value: object) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter, scheme=W4_SYMMETRIC))
    config = json.loads((tmp_path / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["weights"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GemquantError) as caught:
        exporter.open(tmp_path)
    assert caught.value.exit_code == 6


def test_keys_and_values_read_elsewhere_are_named_for_vllm() -> None:
    """Its one matrix for q, k and v asks for the scheme of all three."""
    exporter, layer = CompressedTensors(), "model.layers.1.self_attn"  # v from k
    skipped = {f"{layer}.{part}.weight": None for part in ("q_proj", "k_proj")}
    header = tiny_header(exporter, "gemma4_text", W4_SYMMETRIC, schemes=skipped)
    ignored = exporter.quantization(header.layout)["ignore"]
    assert ignored == ["lm_head", *(f"{layer}.{part}_proj" for part in ("q", "v", "k"))]


def test_several_schemes_name_keys_and_values_read_elsewhere() -> None:
    exporter = CompressedTensors()
    wide = AffineScheme(4, 128, symmetric=True)
    names = tiny_header(exporter, "gemma4_e", W4_SYMMETRIC).layout
    others = {name: wide for name in names if ".mlp." in name}
    header = tiny_header(exporter, "gemma4_e", W4_SYMMETRIC, schemes=others)
    groups = exporter.quantization(header.layout)["config_groups"].values()
    (attention,) = (each["targets"] for each in groups if each["weights"]["group_size"] == 32)
    shared = "model.layers.6.self_attn"  # has a query alone
    assert {f"{shared}.{part}_proj" for part in "qkv"} <= set(attention)


def test_a_quantized_head_is_named_for_vllm() -> None:
    exporter = CompressedTensors()
    header = tiny_header(exporter, "gemma2", W4_SYMMETRIC, tied=False, quantized_head=True)
    quantization = exporter.quantization(header.layout)
    assert quantization["config_groups"]["group_0"]["targets"] == ["Linear", "lm_head"]
    assert quantization["ignore"] == []
