"""The skeleton against the whole model in transformers, past the sliding window."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.calibration.stream import Stream, embed_windows, layer_weights
from gemquant.errors import CalibrationError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import FINAL_NORM, layer_prefix
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows

IDS = tiny_windows(3, 45, seed=5).ids


def whole_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**checkpoint.config), dtype=dtype, attn_implementation=attention
    )
    state = {name: checkpoint.tensor(name, dtype) for name in checkpoint.names()}
    assert model.load_state_dict(state, strict=False).unexpected_keys == []
    model.tie_weights()
    return model.eval()


def streamed(checkpoint: Checkpoint, skeleton: Skeleton, ids: Tensor) -> Stream:
    stream = embed_windows(skeleton, checkpoint, ids)
    for index in range(skeleton.layers):
        names = layer_parameters(checkpoint.config, index)
        stream.advance(index, layer_weights(checkpoint, layer_prefix(index), names, skeleton))
    return stream


def attention_of(kind: Kind) -> str:
    return "eager" if kind == "gemma2" else "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_final_hidden_states_are_those_of_the_whole_model(
    generation: Kind, tiny_folder: Path, dtype: torch.dtype
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    skeleton = Skeleton(checkpoint.config, dtype=dtype)
    norm = checkpoint.tensor(FINAL_NORM, dtype)
    found = skeleton.final_norm(norm, streamed(checkpoint, skeleton, IDS).hidden)
    with torch.no_grad():
        expected = whole_model(checkpoint, dtype, attention_of(generation)).model(IDS)[0]
    assert torch.equal(found, expected)


def test_a_gemma_2_without_soft_caps_is_computed_as_the_library_does(tmp_path: Path) -> None:
    none = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma2", overrides=none)))
    skeleton = Skeleton(checkpoint.config)
    norm = checkpoint.tensor(FINAL_NORM, torch.float32)
    found = skeleton.final_norm(norm, streamed(checkpoint, skeleton, IDS).hidden)
    with torch.no_grad():
        expected = whole_model(checkpoint, torch.float32, "eager").model(IDS)[0]
    assert torch.equal(found, expected)
    assert skeleton.logit_softcap is None


def test_a_window_alone_and_among_others_comes_to_the_same(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    skeleton = Skeleton(checkpoint.config)
    together = streamed(checkpoint, skeleton, IDS).hidden
    alone = streamed(checkpoint, skeleton, IDS[1:2]).hidden
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_windows_of_another_length_get_their_own_masks(tiny_folder: Path, generation: Kind) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    skeleton = Skeleton(checkpoint.config)
    streamed(checkpoint, skeleton, IDS)
    shorter = streamed(checkpoint, skeleton, IDS[:, :20]).hidden
    with torch.no_grad():
        expected = whole_model(checkpoint, torch.float32, attention_of(generation)).model(
            IDS[:, :20]
        )[0]
    norm = checkpoint.tensor(FINAL_NORM, torch.float32)
    assert torch.equal(skeleton.final_norm(norm, shorter), expected)


def test_the_embedding_scale_is_rounded_to_the_compute_type(tiny_folders: dict[Kind, Path]) -> None:
    config = {**open_checkpoint(str(tiny_folders["gemma2"])).config, "hidden_size": 640}
    ones = torch.ones(1, 640)
    # √640 = 25.2982 is 25.25 in bfloat16.
    assert Skeleton(config, dtype=torch.bfloat16).embed(ones)[0, 0].item() == 25.25
    assert Skeleton(config).embed(ones)[0, 0].item() == pytest.approx(math.sqrt(640), rel=1e-7)


def test_a_skeleton_holds_no_weights(tiny_folder: Path) -> None:
    skeleton = Skeleton(open_checkpoint(str(tiny_folder)).config)
    held = [p for layer in skeleton._emptied.layers for p in layer.parameters() if not p.is_meta]
    assert held == []
    assert all(parameter.is_meta for parameter in skeleton._emptied.model.parameters())


def test_observers_see_each_window_and_leave_with_the_context(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    skeleton = Skeleton(checkpoint.config)
    stream = embed_windows(skeleton, checkpoint, IDS)
    weights = layer_weights(
        checkpoint, layer_prefix(0), layer_parameters(checkpoint.config, 0), skeleton
    )
    inputs: list[Tensor] = []
    outputs: list[str] = []
    with skeleton.observing(
        0,
        inputs={"mlp.down_proj": inputs.append},
        outputs=lambda name, _: outputs.append(name),
    ):
        stream.advance(0, weights)
    stream.advance(1, weights)
    assert sum(part.shape[0] for part in inputs) == 3
    assert inputs[0].shape[1:] == (45, 384)
    assert outputs.count("mlp.down_proj") == len(inputs)
    assert "" in outputs, "the layer's own output was not seen"


def test_an_id_outside_the_vocabulary_is_an_error(tiny_folders: dict[Kind, Path]) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    ids, size = IDS.clone(), checkpoint.config["vocab_size"]
    ids[1, 4] = size
    with pytest.raises(CalibrationError, match=f"token id {size} is outside the vocabulary of"):
        embed_windows(Skeleton(checkpoint.config), checkpoint, ids)


def test_embedding_rows_do_not_depend_on_the_runs_they_are_read_in(
    tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    skeleton = Skeleton(checkpoint.config)
    whole = embed_windows(skeleton, checkpoint, IDS).hidden
    table = checkpoint.tensor("model.embed_tokens.weight", torch.float32)
    assert torch.equal(whole, skeleton.embed(table[IDS]))
    monkeypatch.setattr("gemquant.calibration.stream.ROWS_AT_ONCE", 50)
    assert torch.equal(embed_windows(skeleton, checkpoint, IDS).hidden, whole)


def test_a_candidates_rows_are_rounded_as_it_stores_them(tiny_folders: dict[Kind, Path]) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    skeleton = Skeleton(checkpoint.config)
    table = checkpoint.tensor("model.embed_tokens.weight", torch.float32)
    coarse = torch.float8_e4m3fn
    found = embed_windows(skeleton, checkpoint, IDS, stored_as=coarse).hidden
    assert torch.equal(found, skeleton.embed(table.to(coarse)[IDS.flatten()]).view_as(found))
