from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemquant.convert.plan import linear_weights, plan
from gemquant.core.protocols import AffineScheme, PlainSpec, QuantizedSpec
from gemquant.errors import OutputError, Problems, UnsupportedError, UsageError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import run_tiny, tiny_job


@pytest.fixture
def checkpoint(tiny_folders: dict[Kind, Path]) -> Checkpoint:
    """A tiny Gemma 2 of three layers."""
    return open_checkpoint(str(tiny_folders["gemma2"]))


def test_the_sizes_foretold_are_those_of_the_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    job = tiny_job(checkpoint, RoundToNearest(), tmp_path / "out")
    (planned,) = plan([job], checkpoint)
    run_tiny(checkpoint, [job], evaluation=())
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert planned.file_sizes == sizes
    assert planned.total_bytes == sum(sizes.values())
    weights = sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names())
    assert planned.bits_per_weight == 8 * planned.total_bytes / weights


def test_the_layout_is_known_before_any_weight_is_read(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "tensor", forbidden)
    monkeypatch.setattr(Checkpoint, "rows", forbidden)
    (planned,) = plan([tiny_job(checkpoint, AWQ(), tmp_path / "out")], checkpoint)
    assert len(planned.quantized) == 3 * 7
    assert planned.kept == [EMBEDDING]
    layout = planned.header.layout
    assert layout["model.layers.0.mlp.up_proj.weight"] == QuantizedSpec(
        (384, 128), AffineScheme(4, 128, symmetric=False)
    )
    assert layout["model.norm.weight"] == PlainSpec((128,), torch.bfloat16)
    assert not list(tmp_path.iterdir())


def test_skipped_layers_are_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    job = tiny_job(checkpoint, AWQ(skip="layers.1.mlp.*"), tmp_path / "out")
    (planned,) = plan([job], checkpoint)
    assert planned.kept == [
        EMBEDDING,
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    ]


def test_a_quantized_head_is_untied_and_laid_down_last(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    job = tiny_job(checkpoint, RoundToNearest(quantize_head=True), tmp_path / "out")
    (planned,) = plan([job], checkpoint)
    assert planned.header.config["tie_word_embeddings"] is False
    assert list(planned.header.layout)[-1] == HEAD
    assert isinstance(planned.header.layout[HEAD], QuantizedSpec)
    assert isinstance(planned.header.layout[EMBEDDING], PlainSpec)
    assert checkpoint.config["tie_word_embeddings"] is True


def test_every_problem_of_every_job_is_told_at_once(tmp_path: Path) -> None:
    narrow = open_checkpoint(
        str(write_tiny_gemma(tmp_path / "m", "gemma2", overrides={"intermediate_size": 96}))
    )
    (tmp_path / "there").mkdir()
    jobs = [
        tiny_job(narrow, AWQ(group_size=100), tmp_path / "a"),
        tiny_job(narrow, AWQ(skip="nothing"), tmp_path / "b"),
        tiny_job(narrow, RoundToNearest(bits=8, group_size=32), tmp_path / "c", AwqGemm()),
        tiny_job(narrow, RoundToNearest(group_size=32), tmp_path / "there"),
    ]
    with pytest.raises(Problems) as caught:
        plan(jobs, narrow)
    kinds = [type(problem) for problem in caught.value.problems]
    told = str(caught.value)
    assert kinds.count(UsageError) == 2, told
    assert OutputError in kinds
    assert UnsupportedError in kinds
    for fragment in (
        "--group-size 100",
        "96 input channels",
        "--skip nothing",
        "awq-gemm stores 4 bits",
        f"{tmp_path / 'there'} exists",
    ):
        assert fragment in told


def test_every_undividable_layer_is_named_before_work_starts(tmp_path: Path) -> None:
    narrow = open_checkpoint(
        str(write_tiny_gemma(tmp_path / "m", "gemma2", overrides={"intermediate_size": 96}))
    )
    with pytest.raises(UnsupportedError) as caught:
        plan([tiny_job(narrow, AWQ(), tmp_path / "out")], narrow)
    assert caught.value.message == (
        "96 input channels are not a multiple of the group size 128, in 3 layers: "
        "model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj, model.layers.2.mlp.down_proj."
    )
    assert caught.value.hint == (
        "Use --group-size 32, -1 (per channel), or leave the layers out with --skip."
    )


def test_the_root_is_refused_as_any_folder_that_exists(checkpoint: Checkpoint) -> None:
    with pytest.raises(OutputError, match=r"^/ exists\."):
        plan([tiny_job(checkpoint, RoundToNearest(group_size=32), Path("/"))], checkpoint)


def test_two_jobs_cannot_share_a_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    jobs = [
        tiny_job(checkpoint, RoundToNearest(), tmp_path / "out"),
        tiny_job(checkpoint, AWQ(), tmp_path / "x" / ".." / "out"),
    ]
    with pytest.raises(OutputError, match="out is the folder of 2 jobs"):
        plan(jobs, checkpoint)


def test_linear_weights_are_the_decoders_alone(checkpoint: Checkpoint) -> None:
    linears = linear_weights(checkpoint)
    assert len(linears) == 21
    assert linears["model.layers.2.self_attn.k_proj.weight"] == (64, 128)
    assert not {EMBEDDING, HEAD} & set(linears)
