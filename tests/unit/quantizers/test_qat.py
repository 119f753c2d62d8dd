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
from gemquant.models.architecture import layer_structure
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.gguf import KQuant
from gemquant.quantizers.qat import survey_grids
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.grid_gemma import write_grid_gemma
from tests.helpers.tiny_gemma import write_tiny_gemma
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
