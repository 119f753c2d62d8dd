"""A generation that one file describes goes through the whole program.

The file is ``tests/helpers/fourth_gemma.py``; registering it is all that these tests add.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gemquant.calibration.stream import embed_windows, layer_weights
from gemquant.core.artifact import structure_problems
from gemquant.core.protocols import Container
from gemquant.errors import UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gguf.names import from_gguf, to_gguf
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.models.architecture import ARCHITECTURES, layer_parameters, tensor_shapes
from gemquant.models.config import text_config
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, FINAL_NORM, layer_prefix
from gemquant.quantizers.awq import AWQ, scaled_groups
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.fourth_gemma import FOURTH, FourthModel, write_config, write_weights
from tests.helpers.tiny_gemma import tiny_tokenizer, write_tiny_tokenizer
from tests.helpers.tiny_job import CALIBRATION, run_tiny, tiny_job
from tests.helpers.tiny_windows import tiny_windows, traced_blocks

IDS = tiny_windows(2, 45, seed=5).ids


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setitem(ARCHITECTURES, FOURTH.model_type, FOURTH)
    folder = tmp_path / "model"
    folder.mkdir()
    config = write_config(folder, tiny_tokenizer().get_vocab_size())
    write_weights(folder, tensor_shapes(text_config(config)))
    write_tiny_tokenizer(folder)
    return open_checkpoint(str(folder))


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}


def logits(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Tensor:
    """Logits (windows, tokens, vocabulary) of the whole model at once."""
    model = FourthModel(SimpleNamespace(**checkpoint.config))
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items()})
    table = tensors[EMBEDDING]
    with torch.no_grad():
        hidden: Tensor = model(table[IDS] * table.shape[1] ** 0.5)
    return hidden @ table.T


def test_without_the_file_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="architecture GemmaXForCausalLM: supported are"):
        text_config({"architectures": ["GemmaXForCausalLM"]})


def test_its_layers_differ(checkpoint: Checkpoint) -> None:
    shapes = {
        index: FOURTH.layer(checkpoint.config, index).linear_shapes["self_attn.k_proj"]
        for index in range(4)
    }
    assert shapes == {0: (64, 128), 1: (128, 128), 2: (64, 128), 3: (128, 128)}
    assert "self_attn.v_proj.weight" in layer_parameters(checkpoint.config, 2)
    assert "self_attn.v_proj.weight" not in layer_parameters(checkpoint.config, 3)


def test_streamed_hidden_states_are_those_of_the_whole_model(checkpoint: Checkpoint) -> None:
    skeleton = Skeleton(checkpoint.config)
    stream = embed_windows(skeleton, checkpoint, IDS)
    for index in range(skeleton.layers):
        names = layer_parameters(checkpoint.config, index)
        stream.advance(index, layer_weights(checkpoint, layer_prefix(index), names, skeleton))
    norm = checkpoint.tensor(FINAL_NORM, torch.float32)
    found = skeleton.final_norm(norm, stream.hidden) @ checkpoint.tensor(EMBEDDING, torch.float32).T
    torch.testing.assert_close(found, logits(checkpoint, tensors_of(checkpoint)))


def test_awq_folds_into_norms_without_offset_and_not_into_absent_values(
    checkpoint: Checkpoint,
) -> None:
    before, container = tensors_of(checkpoint), Container(torch.float32, torch.float32)
    after = dict(before)
    for block in traced_blocks(checkpoint, CALIBRATION):
        for group in scaled_groups(AWQ(group_size=32), block, container):
            for norm, weight in group.norms.items():
                after[block.prefix + norm] = weight
            for linear, weight in group.weights.items():
                after[f"{block.prefix}{linear}.weight"] = weight * group.scale
    moved = {name for name in before if not torch.allclose(before[name], after[name])}
    assert "model.layers.3.input_layernorm.weight" in moved
    assert "model.layers.2.self_attn.o_proj.weight" in moved
    assert "model.layers.3.self_attn.o_proj.weight" not in moved
    torch.testing.assert_close(
        logits(checkpoint, after), logits(checkpoint, before), rtol=0, atol=1e-4
    )


def test_the_pipeline_quantizes_certifies_and_reopens_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    jobs = [
        tiny_job(checkpoint, AWQ(group_size=32), tmp_path / "awq", CompressedTensors()),
        tiny_job(checkpoint, RoundToNearest(bits=8, group_size=32), tmp_path / "rtn"),
        tiny_job(checkpoint, Cast(), tmp_path / "cast", PlainSafetensors(torch.bfloat16)),
    ]
    artifacts = run_tiny(checkpoint, jobs)
    loss = [each.manifest.certificates[0].slices[0].kl_mean.value for each in artifacts]
    assert loss[0] > 50 * loss[1] > 0
    assert loss[2] == 0
    for artifact, job in zip(artifacts, jobs, strict=True):
        assert artifact.manifest.architecture == "gemma_x"
        assert structure_problems(artifact.manifest, job.exporter.open(job.out).layout) == []
    plain = open_checkpoint(str(tmp_path / "cast"))
    assert dict(plain.config) == dict(checkpoint.config)


def test_llama_cpp_names_it_by_its_own_table(checkpoint: Checkpoint) -> None:
    names = list(tensor_shapes(checkpoint.config))
    theirs = [to_gguf(name, FOURTH.model_type) for name in names]
    assert "blk.3.ffn_norm.weight" in theirs
    assert [from_gguf(name, FOURTH.model_type) for name in theirs] == names
