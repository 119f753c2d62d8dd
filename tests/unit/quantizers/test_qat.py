from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.core.protocols import Block, Container, Exporter, GridShare, Quantizer, Silence
from gemquant.errors import UsageError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gguf.exporter import GGUF
from gemquant.formats.mlx import MLX
from gemquant.models.architecture import layer_structure, tensor_shapes
from gemquant.models.config import text_config
from gemquant.numerics.affine import AffineRounding, dequantize, quantize_affine
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.gguf import KQuant
from gemquant.quantizers.qat import survey_grids
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.grid_gemma import write_grid_gemma, write_packed_gemma
from tests.helpers.tiny_gemma import Kind, tiny_config, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.helpers.tiny_job import contents, run_tiny, tiny_job

EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module", params=[7, -8], ids=["extreme 7", "extreme -8"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """A tiny Gemma on a grid; its matrices are as llama.cpp reads them."""
    folder = tmp_path_factory.mktemp("grid")
    return open_checkpoint(str(write_grid_gemma(folder, "gemma2", extreme_code=request.param)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny random Gemma."""
    folder = tmp_path_factory.mktemp("plain")
    return open_checkpoint(str(write_tiny_gemma(folder, "gemma2", overrides=LLAMACPP["gemma2"])))


def survey_of(weights: Checkpoint) -> Callable[[], Mapping[str, GridShare]]:
    return lambda: survey_grids(weights, Silence())


def carrying(quantizer: Quantizer, weights: Checkpoint) -> Quantizer:
    return quantizer.for_model(weights.config).with_grids(survey_of(weights))


def decoded(
    weights: Checkpoint, quantizer: Quantizer, exporter: Exporter, out: Path
) -> dict[str, Tensor]:
    """Every matrix of the artifact as its loader decodes it, rounded to bfloat16."""
    job = tiny_job(weights, carrying(quantizer, weights), out, exporter)
    run_tiny(weights, [job], evaluation=())
    made = exporter.open(out)
    return {n: made.tensor(n, torch.bfloat16) for n in made.names() if len(made.shape(n)) == 2}


CONTAINERS = {
    "compressed-tensors": (RoundToNearest(group_size=32, symmetric=True), CompressedTensors()),
    "zero points": (RoundToNearest(group_size=32), CompressedTensors()),
    "8 bits": (RoundToNearest(bits=8, group_size=32), CompressedTensors()),
    "awq-gemm": (RoundToNearest(group_size=32), AwqGemm()),
    "awq": (AWQ(group_size=32), AwqGemm()),
    "mlx": (RoundToNearest(group_size=32, quantize_embedding=True), MLX()),
    "mlx symmetric": (AWQ(group_size=32, symmetric=True), MLX()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_of_groups_of_32_decodes_to_the_weights(
    checkpoint: Checkpoint, name: str, tmp_path: Path
) -> None:
    found = decoded(checkpoint, *CONTAINERS[name], tmp_path / "out")
    for matrix, weight in found.items():
        assert torch.equal(weight, checkpoint.tensor(matrix, torch.bfloat16)), matrix


def test_a_file_of_q4_0_decodes_to_the_weights_embedding_included(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    quantizer = carrying(KQuant(type="Q4_0"), checkpoint)
    assert {kind.name for kind in quantizer.choice.types.values()} == {"Q4_0"}  # type: ignore[attr-defined]
    found = decoded(checkpoint, KQuant(type="Q4_0"), GGUF(), tmp_path / "out")
    for matrix, weight in found.items():
        assert torch.equal(weight, checkpoint.tensor(matrix, torch.bfloat16)), matrix


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A tiny Gemma in 4 bits of compressed-tensors, as Google's w4a16-ct; what it decodes to."""
    folder = tmp_path_factory.mktemp("packed")
    expected = write_packed_gemma(folder, overrides=LLAMACPP["gemma2"])
    return open_checkpoint(str(folder)), expected


FROM_PACKED = {
    **{name: CONTAINERS[name] for name in ("compressed-tensors", "awq-gemm", "awq", "mlx")},
    "gguf": (KQuant(type="Q4_0"), GGUF()),
}


@pytest.mark.parametrize("name", FROM_PACKED)
def test_packed_matrices_keep_codes_and_scales_in_every_container(
    packed: tuple[Checkpoint, dict[str, Tensor]], name: str, tmp_path: Path
) -> None:
    checkpoint, expected = packed
    quantizer, exporter = FROM_PACKED[name]
    job = tiny_job(checkpoint, carrying(quantizer, checkpoint), tmp_path / "out", exporter)
    run_tiny(checkpoint, [job], evaluation=())
    made = exporter.open(tmp_path / "out")
    for module, weight in expected.items():
        assert torch.equal(made.tensor(f"{module}.weight", torch.float32), weight), module


@pytest.mark.parametrize("name", FROM_PACKED)
def test_a_gguf_of_q4_0_keeps_its_codes_in_every_container(
    checkpoint: Checkpoint, name: str, tmp_path: Path
) -> None:
    job = tiny_job(
        checkpoint, carrying(KQuant(type="Q4_0"), checkpoint), tmp_path / "first", GGUF()
    )
    run_tiny(checkpoint, [job], evaluation=())
    (file,) = (tmp_path / "first").glob("*.gguf")
    source = open_checkpoint(str(file))
    quantizer, exporter = FROM_PACKED[name]
    job = tiny_job(source, carrying(quantizer, source), tmp_path / "out", exporter)
    run_tiny(source, [job], evaluation=())
    made = exporter.open(tmp_path / "out")
    # float16 scales are exact in float16; bfloat16 rounds them, and no code changes.
    off = 0.0 if name in {"gguf", "awq", "awq-gemm"} else 2.0**-8
    carried = carrying(quantizer, source).grid_use.carried
    assert UP in carried
    for matrix in carried:
        expected = source.tensor(matrix, torch.float32)
        error = (made.tensor(matrix, torch.float32) - expected).abs()
        assert (error <= off * expected.abs()).all(), matrix


GEMMA4 = {
    "ct": (RoundToNearest(group_size=32, symmetric=True), CompressedTensors()),
    "mlx": (RoundToNearest(group_size=32, quantize_embedding=True), MLX()),
    "gguf": (KQuant(type="Q4_0"), GGUF()),
}
ASIDE = ("per_layer_model_projection", "router")
"""In 16 or 32 bits everywhere: llama.cpp's quantize and MLX leave them so."""


@pytest.mark.parametrize("name", GEMMA4)
@pytest.mark.parametrize("kind", ["gemma4_e", "gemma4_moe"])
def test_experts_and_per_layer_matrices_are_found_and_carried_over(
    kind: Kind, name: str, tmp_path: Path
) -> None:
    weights = open_checkpoint(str(write_grid_gemma(tmp_path / "model", kind)))
    shares = survey_of(weights)()
    assert all(share.group_sizes for share in shares.values())
    parts = {"gemma4_e": "embed_tokens_per_layer", "gemma4_moe": "experts.3.down_proj"}
    assert any(parts[kind] in matrix for matrix in shares)
    quantizer, exporter = GEMMA4[name]
    found = decoded(weights, quantizer, exporter, tmp_path / "out")
    for matrix, weight in found.items():
        assert torch.equal(weight, weights.tensor(matrix, torch.bfloat16)), matrix
    if name == "gguf":
        use = carrying(quantizer, weights).grid_use
        assert all(any(a in m for a in ASIDE) for m in shares.keys() - use.carried.keys())
        (file,) = (tmp_path / "out").glob("*.gguf")
        source = open_checkpoint(str(file))
        again = survey_of(source)()
        assert {m for m, share in again.items() if share.group_sizes} == shares.keys()
        for matrix, kept in decoded(source, *GEMMA4["ct"], tmp_path / "again").items():
            assert torch.equal(kept, weights.tensor(matrix, torch.bfloat16)), matrix


def test_an_embedding_whose_format_is_named_is_stored_in_it(checkpoint: Checkpoint) -> None:
    quantizer = carrying(KQuant(type="Q4_0", embedding_type="Q8_0"), checkpoint)
    assert quantizer.scheme_for(EMBEDDING, (0, 0)).codes == "Q8_0"  # type: ignore[union-attr]
    assert EMBEDDING not in quantizer.grid_use.carried
    assert UP in quantizer.grid_use.carried


def test_awq_reads_no_text_and_scales_nothing_where_all_is_carried_over(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    quantizer = carrying(AWQ(group_size=32), checkpoint)
    assert quantizer.needs == frozenset()
    run_tiny(checkpoint, [tiny_job(checkpoint, quantizer, tmp_path / "out")], evaluation=())
    made = CompressedTensors().open(tmp_path / "out")
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(made.tensor(norm), checkpoint.tensor(norm))


def test_awq_scales_no_group_that_holds_a_matrix_on_a_grid(tmp_path: Path) -> None:
    folder = write_grid_gemma(tmp_path / "model", "gemma2", off="gate_proj")
    weights = open_checkpoint(str(folder))
    found = decoded(weights, AWQ(group_size=32), CompressedTensors(), tmp_path / "out")
    for matrix, weight in found.items():
        same = torch.equal(weight, weights.tensor(matrix, torch.bfloat16))
        assert same == ("gate_proj" not in matrix), matrix
    made = CompressedTensors().open(tmp_path / "out")
    norm = "model.layers.0.pre_feedforward_layernorm.weight"
    assert torch.equal(made.tensor(norm), weights.tensor(norm))


@pytest.mark.parametrize(
    ("quantizer", "exporter"),
    [
        (RoundToNearest(group_size=32), CompressedTensors()),
        (AWQ(group_size=32), AwqGemm()),
        (KQuant(type="Q4_0"), GGUF()),
    ],
    ids=["rtn", "awq", "gguf"],
)
def test_a_model_off_any_grid_gives_the_bytes_of_qat_off(
    plain: Checkpoint, quantizer: Quantizer, exporter: Exporter, tmp_path: Path
) -> None:
    jobs = [
        tiny_job(plain, carrying(quantizer, plain), tmp_path / "auto", exporter),
        tiny_job(plain, quantizer.for_model(plain.config), tmp_path / "off", exporter),
    ]
    run_tiny(plain, jobs, evaluation=())
    assert contents(tmp_path / "auto") == contents(tmp_path / "off")


class Decoded:
    """Matrices of 640 and 2048 columns that were rounded with zero points; ``Weights`` in part."""

    def __init__(self, bits: int, group_size: int, heavy: bool) -> None:
        width = {"hidden_size": 640, "intermediate_size": 2048, "vocab_size": 64, "head_dim": 32}
        self.config = text_config({**tiny_config("gemma2"), **width, "num_hidden_layers": 1})
        generator = torch.Generator().manual_seed(0)
        self.matrices = {}
        for name, shape in tensor_shapes(self.config).items():
            if len(shape) == 2:
                drawn = torch.randn(64, shape[1], generator=generator)
                weight = drawn * drawn.abs() if heavy else drawn
                rounding = AffineRounding(bits, symmetric=False, scale_dtype=torch.bfloat16)
                parts = quantize_affine(weight, rounding=rounding, group_size=group_size)
                decoded = dequantize(parts[0], parts[1], parts[2]).to(torch.bfloat16)
                self.matrices[name] = decoded

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return self.matrices[name][torch.arange(start, stop) % 64].to(dtype)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
@pytest.mark.parametrize(
    ("bits", "group_size"),
    [(4, 32), (4, 64), (4, 128), (4, -1), (3, 32), (3, 128), (2, 64), (8, -1)],
)
def test_decoded_artifacts_with_zero_points_are_not_taken_for_a_grid(
    bits: int, group_size: int, heavy: bool
) -> None:
    found = survey_grids(Decoded(bits, group_size, heavy), Silence())  # type: ignore[arg-type]
    assert len(found) == 8
    assert not [name for name, share in found.items() if share.group_sizes]


def test_qat_on_refuses_a_model_off_the_grid_with_the_share(plain: Checkpoint) -> None:
    share = r"0 of \d+ matrices lie on a 4-bit grid \(0.0% of the groups sampled\)"
    for quantizer in (AWQ(group_size=32, qat="on"), KQuant(type="Q4_0", qat="on")):
        with pytest.raises(UsageError, match=f"--qat on: {share}"):
            carrying(quantizer, plain)


def test_qat_on_refuses_groups_that_hold_no_grid_and_says_what_to_type(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(UsageError, match="does not hold") as caught:
        carrying(RoundToNearest(group_size=64, qat="on"), checkpoint)
    assert caught.value.hint == "Use --group-size 32 --symmetric"
    with pytest.raises(UsageError, match="does not hold") as caught:
        carrying(KQuant(type="Q4_1", qat="on"), checkpoint)
    assert caught.value.hint == "Use --type Q4_0"


def test_a_note_says_what_holds_a_grid_that_is_lost(checkpoint: Checkpoint) -> None:
    (note,) = carrying(AWQ(group_size=64), checkpoint).notes
    assert note.endswith("--group-size 32 --symmetric carries the codes over")
    (note,) = carrying(KQuant(type="Q4_1"), checkpoint).notes
    assert note.endswith("--type Q4_0 carries the codes over")


def test_qat_off_does_not_look(checkpoint: Checkpoint) -> None:
    def survey() -> Mapping[str, GridShare]:
        raise AssertionError

    for quantizer in (AWQ(qat="off"), KQuant(qat="off").for_model(checkpoint.config)):
        assert not quantizer.with_grids(survey).grid_use.surveyed


def test_a_group_that_is_off_the_grid_is_rounded_to_nearest(checkpoint: Checkpoint) -> None:
    structure, name = layer_structure(checkpoint.config, 0), "mlp.up_proj.weight"
    names = [f"{linear}.weight" for linear in structure.linears]
    layer = {n: checkpoint.tensor(f"model.layers.0.{n}", torch.float32) for n in names}
    layer[name][5, 32:64] = torch.linspace(-0.03, 0.05, 32)
    block = Block(0, "model.layers.0.", structure, layer, {})
    nearest = RoundToNearest(group_size=32, symmetric=True)
    container = Container(torch.bfloat16, torch.bfloat16)
    carried = carrying(nearest, checkpoint).quantize(block, container)[name].dequantize()
    expected = nearest.quantize(block, container)[name].dequantize()
    assert torch.equal(carried[5, 32:64], expected[5, 32:64])
    assert torch.equal(carried[4].bfloat16(), layer[name][4].bfloat16())
