"""Multimodal checkpoints stay multimodal: towers pass through, and everything knows of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.convert.job import JobWriter
from gemquant.convert.plan import plan
from gemquant.core.artifact import Artifact
from gemquant.core.protocols import Exporter, Quantizer
from gemquant.errors import ArtifactError, GemquantError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gptq import Gptq
from gemquant.formats.metal import Metal
from gemquant.formats.mlx import MLX
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.quantizers.bitsandbytes import NF4
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import NESTED, Kind, tiny_config, tower_tensors, write_tiny_gemma
from tests.helpers.tiny_job import contents, run_tiny, tiny_job

FOUR_BITS = RoundToNearest(group_size=32, symmetric=True)
CONTAINERS: dict[str, tuple[Quantizer, Exporter]] = {
    "awq-gemm": (RoundToNearest(group_size=32), AwqGemm()),
    "metal": (RoundToNearest(group_size=32), Metal()),
    "compressed-tensors": (FOUR_BITS, CompressedTensors()),
    "bitsandbytes": (NF4(), BitsAndBytes()),
    "mlx": (RoundToNearest(group_size=32), MLX()),
    "safetensors": (Cast(), PlainSafetensors(torch.float16)),
}
PUBLISHED_TEXT = {"gemma3": "language_model.model.", "gemma4_e": "model.language_model."}


def made(folder: Path, kind: Kind, container: str, *, text_only: bool = False) -> Artifact:
    checkpoint = open_checkpoint(str(write_tiny_gemma(folder / "model", kind)))
    quantizer, exporter = CONTAINERS[container]
    if kind == "gemma4_moe" and container == "bitsandbytes":
        quantizer = NF4(skip="*.experts.*")
    out = folder / container
    job = tiny_job(checkpoint, quantizer, out, exporter, text_only=text_only)
    planned = plan([job], checkpoint)
    (artifact,) = run_tiny(checkpoint, [job], evaluation=())
    sizes = {name: (out / name).stat().st_size for name in planned[0].file_sizes}
    assert sizes == planned[0].file_sizes
    exporter.open(out)
    return Artifact.open(artifact.path)


@pytest.mark.parametrize("container", ["compressed-tensors", "bitsandbytes", "safetensors"])
@pytest.mark.parametrize("kind", NESTED)
def test_towers_pass_through_under_their_published_names(
    kind: Kind, container: str, tmp_path: Path
) -> None:
    artifact = made(tmp_path, kind, container)
    stored = load_file(artifact.path / "model.safetensors")
    for name, tensor in tower_tensors(tiny_config(kind)).items():
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(stored[name], tensor), name
    config = json.loads((artifact.path / "config.json").read_text())
    published = tiny_config(kind)
    assert config["architectures"] == [NESTED[kind][0]]
    assert config["vision_config"] == published["vision_config"]
    assert config["text_config"]["model_type"].startswith(published["text_config"]["model_type"])
    assert "processor_config.json" in artifact.manifest.files


@pytest.mark.parametrize("kind", PUBLISHED_TEXT)
def test_the_text_model_has_its_published_names(kind: Kind, tmp_path: Path) -> None:
    artifact = made(tmp_path, kind, "compressed-tensors")
    stored = load_file(artifact.path / "model.safetensors")
    assert f"{PUBLISHED_TEXT[kind]}layers.0.mlp.up_proj.weight_packed" in stored
    assert not [name for name in stored if name.startswith(("model.layers.", "lm_head"))]


@pytest.mark.parametrize("kind", NESTED)
def test_mlx_has_the_names_and_the_layout_of_mlx_vlm(kind: Kind, tmp_path: Path) -> None:
    artifact = made(tmp_path, kind, "mlx")
    stored = load_file(artifact.path / "model.safetensors")
    published = tower_tensors(tiny_config(kind))
    dims = {name: tensor.dim() for name, tensor in published.items()}
    convolutions = [n for n in published if dims[n] == 4 or (dims[n] == 3 and "conv" in n)]
    for name, tensor in published.items():
        expected = tensor.movedim(1, -1) if name in convolutions else tensor
        assert torch.equal(stored[name.removeprefix("model.")], expected), name
    assert len(convolutions) == {"gemma3": 1, "gemma4_e": 3}.get(kind, 0)
    assert "language_model.model.layers.0.self_attn.q_proj.scales" in stored
    config = json.loads((artifact.path / "config.json").read_text())
    assert config["vocab_size"] == config["text_config"]["vocab_size"]


@pytest.mark.parametrize("option", ["quantize_embedding", "quantize_head"])
def test_a_head_that_mlx_vlm_would_copy_is_refused(option: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma3")))
    quantizer = RoundToNearest(group_size=32, **{option: True})  # type: ignore[arg-type]
    job = tiny_job(checkpoint, quantizer, tmp_path / "o", MLX())
    with pytest.raises(GemquantError, match="mlx-vlm copies the head of a multimodal Gemma 3"):
        plan([job], checkpoint)
    recipe = dataclasses.replace(job.recipe, text_only=True)
    assert plan([dataclasses.replace(job, recipe=recipe)], checkpoint)[0].header.towers == {}


def test_what_is_not_quantized_is_named(tmp_path: Path) -> None:
    ignored = {}
    for container, key in (
        ("compressed-tensors", "ignore"),
        ("bitsandbytes", "llm_int8_skip_modules"),
        ("awq-gemm", "modules_to_not_convert"),
        ("metal", "modules_to_not_convert"),
    ):
        artifact = made(tmp_path / container, "gemma3", container)
        config = json.loads((artifact.path / "config.json").read_text())
        ignored[container] = config["quantization_config"][key]
    ours = ignored.pop("compressed-tensors")
    assert ours == ["lm_head", "re:.*multi_modal_projector.*", "re:.*vision_tower.*"]
    for names in ignored.values():
        assert names == [
            "lm_head",
            "multi_modal_projector",
            "model.multi_modal_projector",
            "vision_tower",
            "model.vision_tower",
        ]


def test_the_manifest_lists_towers_and_what_was_certified(tmp_path: Path) -> None:
    manifest = made(tmp_path, "gemma4_e", "compressed-tensors").manifest
    assert [(each.name, each.tensors, each.dtype) for each in manifest.towers] == [
        ("audio_tower", 69, "bfloat16"),
        ("embed_audio", 1, "bfloat16"),
        ("embed_vision", 1, "bfloat16"),
        ("vision_tower", 43, "bfloat16"),
    ]
    assert manifest.certificates_of == "text model"
    text = made(tmp_path / "text", "gemma4_e", "compressed-tensors", text_only=True).manifest
    assert (text.towers, text.certificates_of) == ((), None)
    ours, alone = (m.quantization.bits_per_weight for m in (manifest, text))
    assert ours == pytest.approx(alone, rel=0.03)  # a longer header


def test_text_only_makes_the_bytes_of_the_text_model(tmp_path: Path) -> None:
    whole = open_checkpoint(str(write_tiny_gemma(tmp_path / "whole", "gemma3")))
    text = open_checkpoint(str(write_tiny_gemma(tmp_path / "text", "gemma3_text")))
    run_tiny(whole, [tiny_job(whole, FOUR_BITS, tmp_path / "a", text_only=True)], evaluation=())
    run_tiny(text, [tiny_job(text, FOUR_BITS, tmp_path / "b")], evaluation=())
    ours, expected = contents(tmp_path / "a"), contents(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert ours[name] == expected[name]
    assert "processor_config.json" not in ours


def test_a_container_for_text_models_leaves_them_out(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma3")))
    quantizer = RoundToNearest(bits=8, group_size=32, symmetric=True)
    (planned,) = plan([tiny_job(checkpoint, quantizer, tmp_path / "o", Gptq())], checkpoint)
    assert planned.header.towers == {}


def test_a_tower_that_is_not_the_manifests_is_found(tmp_path: Path) -> None:
    artifact = made(tmp_path, "gemma3", "compressed-tensors")
    path = artifact.path / "model.safetensors"
    stored = load_file(path)
    del stored["vision_tower.vision_model.post_layernorm.bias"]
    save_file(stored, path)
    with pytest.raises(ArtifactError, match="vision_tower is not stored as the manifest describes"):
        CompressedTensors().open(artifact.path)


def test_towers_without_processors_are_refused_but_for_the_text_model(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3")
    (folder / "processor_config.json").unlink()
    checkpoint = open_checkpoint(str(folder))
    job = tiny_job(checkpoint, FOUR_BITS, tmp_path / "o")
    with pytest.raises(GemquantError, match="no image or sound could be given") as caught:
        plan([job], checkpoint)
    assert "--text-only" in str(caught.value.hint)
    recipe = dataclasses.replace(job.recipe, text_only=True)
    assert plan([dataclasses.replace(job, recipe=recipe)], checkpoint)[0].header.towers == {}


def test_a_tower_in_shards_is_found_again(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma4_e", shards=3)))
    exporter = dataclasses.replace(CompressedTensors(), max_shard_bytes=200_000)
    job = tiny_job(checkpoint, FOUR_BITS, tmp_path / "o", exporter)
    run_tiny(checkpoint, [job], evaluation=())
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())
    assert tower_tensors(tiny_config("gemma4_e")).keys() <= index["weight_map"].keys()
    exporter.open(tmp_path / "o")


def test_a_nan_in_a_tower_ends_the_run_before_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3")
    stored = load_file(folder / "model.safetensors")
    stored["vision_tower.vision_model.post_layernorm.bias"][3] = torch.nan
    save_file(stored, folder / "model.safetensors")
    quantized: list[int] = []
    monkeypatch.setattr(JobWriter, "quantize", lambda _, block: quantized.append(block.index))
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(GemquantError, match=r"post_layernorm.bias.*: 1 of 16 values are NaN"):
        run_tiny(checkpoint, [tiny_job(checkpoint, FOUR_BITS, tmp_path / "o")], evaluation=())
    assert quantized == []
    assert not (tmp_path / "o").exists()


MEDGEMMA = """\
---
license: other
license_name: health-ai-developer-foundations
license_link: https://developers.google.com/health-ai-developer-foundations/terms
base_model: google/gemma-3-4b-pt
---
# MedGemma model card
"""
TRANSLATES = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.content is string or message.content | length != 1 %}"
    "{{ raise_exception('content must be a list of exactly one entry') }}{% endif %}"
    "{% set part = message.content[0] %}<start_of_turn>{{ message.role }}\n"
    "{{ part.source_lang_code }} to {{ part.target_lang_code }}: {{ part.text }}<end_of_turn>\n"
    "{% endfor %}"
)
"""What TranslateGemma's template asks for: one part, with the codes of two languages."""


def test_a_medgemma_keeps_its_own_terms(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "medgemma-4b-it", "gemma3")
    (folder / "README.md").write_text(MEDGEMMA)
    checkpoint = open_checkpoint(str(folder))
    run_tiny(checkpoint, [tiny_job(checkpoint, FOUR_BITS, tmp_path / "out")], evaluation=())
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.manifest.license == "health-ai-developer-foundations"
    notice, card = ((artifact.path / name).read_text() for name in ("NOTICE", "README.md"))
    assert notice == (
        "HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use "
        "found at https://developers.google.com/health-ai-developer-foundations/terms\n"
    )
    assert card.startswith(
        "---\nlicense: other\nlicense_name: health-ai-developer-foundations\n"
        "license_link: https://developers.google.com/health-ai-developer-foundations/terms\n"
    )
    ours = card.partition("# MedGemma model card")[0]
    assert "HAI-DEF is provided under and subject to" in ours
    assert "Gemma is provided under" not in ours
    assert "review and agree" not in ours


def test_a_translategemma_keeps_its_template_and_towers(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "translategemma-4b-it", "gemma3")
    (folder / "chat_template.jinja").write_text(TRANSLATES)
    checkpoint = open_checkpoint(str(folder))
    run_tiny(checkpoint, [tiny_job(checkpoint, FOUR_BITS, tmp_path / "out")], evaluation=())
    artifact = Artifact.open(tmp_path / "out")
    assert (artifact.path / "chat_template.jinja").read_text() == TRANSLATES
    assert [each.name for each in artifact.manifest.towers] == [
        "multi_modal_projector",
        "vision_tower",
    ]
    assert artifact.manifest.license == "gemma"
