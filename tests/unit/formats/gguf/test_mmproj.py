"""Towers next to a GGUF: the bytes of llama.cpp's converter, read back, and refused where it must.

The golden digests are those of files that llama.cpp's converter wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.convert.plan import Job, plan
from gemquant.core.artifact import Artifact
from gemquant.core.options import recorded_options
from gemquant.core.recipe import Recipe
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.gguf.exporter import GGUF
from gemquant.quantizers.gguf import KQuant
from tests.helpers.tiny_gemma import NESTED, Kind, write_tiny_gemma
from tests.helpers.tiny_job import run_tiny
from tests.helpers.tiny_multimodal import write_convertible_multimodal

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "mmproj.json").read_text(encoding="utf-8")
)
TYPES = ("F16", "BF16", "Q8_0")


def job(model: Path, out: Path, mmproj: str = "auto", *, text_only: bool = False) -> Job:
    quantizer = KQuant(type="Q8_0", mmproj=mmproj).for_model(open_checkpoint(str(model)).config)
    options = recorded_options(quantizer)
    recipe = Recipe(
        model="tiny", quantizer="gguf", exporter="gguf", options=options, text_only=text_only
    )
    return Job(quantizer, GGUF().configured(options), out, recipe)


@pytest.fixture(scope="module", params=NESTED)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convertible_multimodal(tmp_path_factory.mktemp("model"), kind)


@pytest.fixture(scope="module")
def artifacts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    out, checkpoint = tmp_path_factory.mktemp("made"), open_checkpoint(str(model))
    jobs = [job(model, out / name, name) for name in TYPES]
    planned = {each.job.out.name: each for each in plan(jobs, checkpoint)}
    made = dict(zip(TYPES, run_tiny(checkpoint, jobs, evaluation=()), strict=True))
    for name, artifact in made.items():
        for file, size in planned[name].file_sizes.items():
            assert (artifact.path / file).stat().st_size == size
    return made


def test_every_byte_is_that_of_the_converter(
    kind: Kind, model: Path, artifacts: Mapping[str, Artifact]
) -> None:
    files = {
        name: artifact.path / f"mmproj-{model.name}-{name}.gguf"
        for name, artifact in artifacts.items()
    }
    digests = {n: hashlib.sha256(file.read_bytes()).hexdigest() for n, file in files.items()}
    assert digests == GOLDEN[kind]


def test_the_text_is_the_file_without_towers(
    model: Path, artifacts: Mapping[str, Artifact], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(model))
    (alone,) = run_tiny(checkpoint, [job(model, tmp_path / "out", "none")], evaluation=())
    (text,) = alone.path.glob("*.gguf")
    assert text.read_bytes() == (artifacts["F16"].path / text.name).read_bytes()
    quantized = alone.manifest.quantization
    assert artifacts["F16"].manifest.quantization.bits_per_weight == quantized.bits_per_weight
    assert (alone.manifest.towers, alone.manifest.certificates_of) == ((), None)


def test_the_manifest_says_what_the_file_holds(
    model: Path, artifacts: Mapping[str, Artifact]
) -> None:
    manifest = artifacts["BF16"].manifest
    name = f"mmproj-{model.name}-BF16.gguf"
    (tower,) = manifest.towers
    reader = gguf.GGUFReader(artifacts["BF16"].path / name)
    assert (tower.name, tower.tensors) == (name, len(reader.tensors))
    assert tower.dtype == ", ".join(sorted({each.tensor_type.name for each in reader.tensors}))
    assert tower.bytes == manifest.files[name].bytes
    assert manifest.certificates_of == "text model"


# ---------------------------------------------------------------- one kind suffices


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_convertible_multimodal(tmp_path, "gemma3")


def made(model: Path, out: Path, mmproj: str = "auto") -> Artifact:
    (artifact,) = run_tiny(open_checkpoint(str(model)), [job(model, out, mmproj)], evaluation=())
    return artifact


def test_float16_is_what_towers_get_by_themselves(tiny: Path, tmp_path: Path) -> None:
    artifact = made(tiny, tmp_path / "out")
    assert artifact.manifest.towers[0].name == f"mmproj-{tiny.name}-F16.gguf"


def test_a_text_model_gets_no_file_of_towers(tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma")
    artifact = made(model, tmp_path / "out")
    assert [path.name for path in artifact.path.glob("*.gguf")] == ["model-Q8_0.gguf"]


def damaged(artifact: Artifact, change: Callable[[Path], object]) -> str:
    (file,) = artifact.path.glob("mmproj-*")
    change(file)
    with pytest.raises(ArtifactError) as raised:
        GGUF().open(artifact.path)
    return raised.value.message


def test_missing_towers_are_found(tiny: Path, tmp_path: Path) -> None:
    artifact = made(tiny, tmp_path / "out")
    said = damaged(artifact, Path.unlink)
    assert said.endswith(f"no mmproj file; the manifest has mmproj-{tiny.name}-F16.gguf.")


def test_towers_of_another_type_are_found(tiny: Path, tmp_path: Path) -> None:
    artifact, other = made(tiny, tmp_path / "out"), made(tiny, tmp_path / "other", "Q8_0")
    (file,) = other.path.glob("mmproj-*")
    said = damaged(artifact, lambda path: path.write_bytes(file.read_bytes()))
    assert said.endswith("is not what the manifest describes.")


def problems(model: Path, out: Path, mmproj: str = "auto", **settings: bool) -> list[str]:
    """What forbids the job; nothing is written."""
    with pytest.raises(GemquantError) as raised:
        plan([job(model, out, mmproj, **settings)], open_checkpoint(str(model)))
    assert not out.exists()
    several = getattr(raised.value, "problems", [raised.value])
    return [each.message for each in several]


def test_towers_are_asked_of_a_text_model_in_vain(tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma")
    said = problems(model, tmp_path / "out", "BF16")
    assert said == ["--mmproj BF16: the model has no towers, only text."]


def test_towers_left_out_and_asked_for_contradict(tiny: Path, tmp_path: Path) -> None:
    said = problems(tiny, tmp_path / "out", "F16", text_only=True)
    assert said == ["--text-only leaves out what --mmproj F16 asks for."]


def test_towers_need_the_processors_files(tiny: Path, tmp_path: Path) -> None:
    (tiny / "processor_config.json").unlink()
    (said,) = problems(tiny, tmp_path / "out")
    assert said.startswith("the checkpoint has towers and none of processor_config.json")


def test_a_projector_of_another_width_is_named(tiny: Path, tmp_path: Path) -> None:
    name, (file,) = "multi_modal_projector.mm_input_projection_weight", tiny.glob("*-00002-*")
    save_file({**load_file(file), name: torch.zeros(64, 96)}, file)
    (said,) = problems(tiny, tmp_path / "out")
    assert said == f"{name}: shape (64, 96), and config.json implies (64, 128)."


def changed(model: Path, file: str, part: str, **values: Any) -> Path:
    content = json.loads((model / file).read_text())
    target = content[part] if part else content
    target.update(values)
    (model / file).write_text(json.dumps(content))
    return model


@pytest.mark.parametrize("mean", [0.5, [0.5, 0.5], [0.5, 0.5, None], "red"])
def test_images_have_three_colours(tiny: Path, tmp_path: Path, mean: object) -> None:
    changed(tiny, "processor_config.json", "image_processor", image_mean=mean)
    (said,) = problems(tiny, tmp_path / "out")
    assert said == f"the processor's image_mean {mean}: must be three numbers, of the colours."


def test_what_llama_cpp_computes_otherwise_is_refused(tiny: Path, tmp_path: Path) -> None:
    changed(tiny, "config.json", "vision_config", hidden_act="relu")
    changed(tiny, "config.json", "", mm_tokens_per_image=16)
    activation, tokens = problems(tiny, tmp_path / "out")
    assert activation == (
        "config.json: vision_config.hidden_act relu: llama.cpp has SigLIP with gelu and three "
        "channels."
    )
    assert tokens == (
        "config.json: mm_tokens_per_image 16: the processor's image_seq_length is 4, and both "
        "count an image's tokens."
    )


@pytest.mark.parametrize(
    ("kind", "part", "values", "said"),
    [
        ("gemma4_e", "audio_config", {"attention_chunk_size": 16}, "attention_chunk_size 16"),
        ("gemma4_e", "vision_config", {"hidden_activation": "silu"}, "hidden_activation silu"),
        ("gemma4_unified", "vision_config", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
    ],
)
def test_gemma_4s_towers_are_refused_where_llama_cpp_differs(
    kind: Kind, part: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = changed(write_convertible_multimodal(tmp_path, kind), "config.json", part, **values)
    (first,) = problems(model, tmp_path / "out")
    assert first.startswith(f"config.json: {part}.{said}: llama.cpp computes ")


def test_a_value_beyond_float16_names_the_wider_type(tiny: Path, tmp_path: Path) -> None:
    name = "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight"
    (file,) = (path for path in tiny.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    tensors[name][0, 0] = 1e6
    save_file(tensors, file)
    with pytest.raises(UnsupportedError) as raised:
        made(tiny, tmp_path / "out")
    assert raised.value.message == f"{name} holds 999424, and float16 at most 65504."
    assert raised.value.hint == "--mmproj BF16"
    assert not (tmp_path / "out").exists()
    assert made(tiny, tmp_path / "out", "BF16").manifest.towers
