"""Towers come back as they were written, under their published names, with their processors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.errors import CheckpointError, GemquantError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.towers import Towers
from tests.helpers.tiny_gemma import NESTED, Kind, tiny_config, tower_tensors, write_tiny_gemma

PROJECTOR: dict[Kind, str] = {
    "gemma3": "multi_modal_projector.mm_input_projection_weight",
    "gemma4_e": "model.embed_audio.embedding_projection.weight",
}
OTHER_SPELLINGS: dict[Kind, dict[str, str]] = {
    "gemma3": {"vision_tower.vision_model.": "model.vision_tower."},
    "gemma4_e": {"model.": ""},
    "gemma4_unified": {
        "vision_embedder.": "embed_vision.",
        "embed_vision.embedding_projection.": "embed_vision.multimodal_embedder."
        "embedding_projection.",
    },
}
"""As newer or older versions of the library have them."""


def towers_of(folder: Path) -> Towers:
    towers = open_checkpoint(str(folder)).towers
    assert towers is not None
    return towers


def problems_of(folder: Path) -> list[GemquantError]:
    return towers_of(folder).problems()


@pytest.mark.parametrize("kind", NESTED)
def test_every_tensor_is_read_as_written(kind: Kind, tmp_path: Path) -> None:
    towers = towers_of(write_tiny_gemma(tmp_path, kind))
    written = tower_tensors(tiny_config(kind))
    assert set(towers.names()) == set(written)
    for name, tensor in written.items():
        assert towers.shape(name) == tuple(tensor.shape)
        assert towers.stored_dtype(name) == torch.bfloat16
        assert torch.equal(towers.tensor(name), tensor)
    assert towers.processor_files.keys() == {"processor_config.json"}
    assert towers.config["architectures"] == [NESTED[kind][0]]
    assert towers.problems() == []


def renamed(folder: Path, changes: dict[str, str]) -> None:
    """Replace the first part of names of towers' tensors that is given."""
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        old = next((o for o in changes if o in name and "language_model" not in name), None)
        tensors[name if old is None else name.replace(old, changes[old])] = tensor
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("kind", OTHER_SPELLINGS)
def test_other_spellings_are_read_under_the_published_names(kind: Kind, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, kind)
    renamed(folder, OTHER_SPELLINGS[kind])
    assert set(towers_of(folder).names()) == set(tower_tensors(tiny_config(kind)))
    assert problems_of(folder) == []


@pytest.mark.parametrize("kind", ["gemma2", "gemma4_text"])
def test_a_text_model_has_none(kind: Kind, tmp_path: Path) -> None:
    assert open_checkpoint(str(write_tiny_gemma(tmp_path, kind))).towers is None


def test_without_processor_files_nothing_could_be_shown_to_it(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma3")
    (folder / "processor_config.json").unlink()
    (problem,) = problems_of(folder)
    assert "no image or sound could be given to the artifact" in problem.message
    assert problem.hint is not None
    assert "--text-only" in problem.hint


def test_a_processor_file_must_be_an_object(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma3")
    (folder / "processor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"processor_config.json: not a JSON object"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("kind", PROJECTOR)
def test_a_projector_of_the_wrong_width_is_refused(kind: Kind, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, kind)
    tensors = load_file(folder / "model.safetensors")
    tensors[PROJECTOR[kind]] = torch.ones(7, 5)
    save_file(tensors, folder / "model.safetensors")
    (problem,) = problems_of(folder)
    assert problem.message.startswith(f"{PROJECTOR[kind]}: shape (7, 5), and config.json implies")


def test_unknown_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_e")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vision_tower.extra"] = torch.ones(1)
    del tensors["model.audio_tower.output_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    missing, unknown = problems_of(folder)
    assert missing.message == (
        "1 tensors of towers are missing: model.audio_tower.output_proj.bias."
    )
    assert "1 tensors are not part of the towers" in unknown.message
    assert "model.vision_tower.extra" in unknown.message


def test_a_nan_is_found_where_it_is_read(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma3")
    name = PROJECTOR["gemma3"]
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 of 2048 values are NaN"):
        towers_of(folder).tensor(name)


def test_limits_of_clipped_linears_may_be_infinite(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma4_e")
    name = "model.vision_tower.encoder.layers.0.self_attn.q_proj.input_max"
    tensors = load_file(folder / "model.safetensors")
    tensors[name].fill_(torch.inf)
    save_file(tensors, folder / "model.safetensors")
    assert torch.isinf(towers_of(folder).tensor(name))
