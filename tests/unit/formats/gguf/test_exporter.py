"""Whole GGUF artifacts of tiny Gemmas: what is in them, and that it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from gemquant.convert.plan import Job, plan
from gemquant.core.artifact import Artifact
from gemquant.core.options import recorded_options
from gemquant.core.recipe import Recipe
from gemquant.errors import GemquantError, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.gguf.exporter import GGUF
from gemquant.formats.gguf.names import stored_order, to_gguf
from gemquant.measure.quality.measure import compare
from gemquant.models.structure import EMBEDDING
from gemquant.numerics.ggml import quantize_rows
from gemquant.numerics.ggml_types import TYPES
from gemquant.quantizers.gguf import KQuant
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import GENERATIONS, Kind, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.helpers.tiny_job import EVALUATION, contents, run_tiny, tiny_job

# Rows of 256 hold every block but those of the attention's output and, at 96, of ffn_down.
WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Kind, Checkpoint]:
    """One Gemma of each generation that llama.cpp computes as transformers does."""
    root = tmp_path_factory.mktemp("wide")
    return {
        kind: open_checkpoint(
            str(write_tiny_gemma(root / kind, kind, overrides={**LLAMACPP[kind], **WIDE}))
        )
        for kind in GENERATIONS
    }


def jobs(checkpoint: Checkpoint, out: Path, *types: str, split_max_size: str = "") -> list[Job]:
    """A job for each type, in a folder of its name."""
    made = []
    for name in types:
        quantizer = KQuant(type=name, split_max_size=split_max_size).for_model(checkpoint.config)
        options = recorded_options(quantizer)
        recipe = Recipe(model="tiny", quantizer="gguf", exporter="gguf", options=options)
        made.append(Job(quantizer, GGUF().configured(options), out / quantizer.label, recipe))
    return made


@pytest.mark.parametrize("kind", GENERATIONS)
def test_every_tensor_is_what_ggml_makes_of_it(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path, kind: Kind
) -> None:
    checkpoint = checkpoints[kind]
    run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q4_K_M", "Q8_0"), evaluation=())
    for label, folder in (("Q4_K_M", tmp_path / "Q4_K_M"), ("Q8_0", tmp_path / "Q8_0")):
        (path,) = folder.glob("*.gguf")
        assert path.name == f"{kind}-{label}.gguf"
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        named = {to_gguf(name, kind): name for name in checkpoint.names()}
        assert list(found) == stored_order(named)
        for theirs, ours in named.items():
            weight = checkpoint.tensor(ours, torch.float32)
            stored = found[theirs]
            if weight.ndim == 1:
                assert stored.tensor_type.name == "F32"
                assert np.array_equal(stored.data, (weight + 1).numpy())
            else:
                expected = quantize_rows(weight, TYPES[stored.tensor_type.name])
                assert np.array_equal(stored.data.ravel(), expected.numpy().ravel()), ours


def test_metadata_says_what_the_file_is(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["gemma2"]
    run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q5_K_S"), evaluation=())
    reader = gguf.GGUFReader(tmp_path / "Q5_K_S" / "gemma2-Q5_K_S.gguf")
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.architecture"] == "gemma2"
    assert said["general.file_type"] == 16
    assert said["general.quantization_version"] == 2
    assert list(said)[-1] == "general.file_type"
    assert len(said["tokenizer.ggml.tokens"]) == checkpoint.config["vocab_size"]
    assert said["tokenizer.chat_template"] == checkpoint.chat_template()
    assert not any(key.startswith("split.") for key in said)


def test_a_finished_artifact_holds_one_file_and_what_is_told_of_it(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["gemma3_text"]
    (artifact,) = run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q6_K"))
    assert set(contents(artifact.path)) == {
        "NOTICE",
        "README.md",
        "gemma3_text-Q6_K.gguf",
        "manifest.json",
    }
    assert Artifact.open(artifact.path).manifest == artifact.manifest
    (scheme,) = artifact.manifest.quantization.schemes
    assert (scheme.codes, scheme.bits, scheme.group_size) == ("Q6_K", 6, 16)
    assert EMBEDDING.removesuffix(".weight") in scheme.modules
    assert artifact.manifest.quantization.unquantized == ()
    assert "llama-cli -m path/to/this/folder/gemma3_text-Q6_K.gguf" in (
        artifact.path / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", GENERATIONS)
def test_the_certificate_is_that_of_the_file_read_back(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path, kind: Kind
) -> None:
    checkpoint = checkpoints[kind]
    (artifact,) = run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q3_K_M"))
    (again,) = compare(checkpoint, GGUF().open(artifact.path), EVALUATION)
    for measured, recorded in zip(
        again.slices, artifact.manifest.certificates[0].slices, strict=True
    ):
        assert measured.kl_mean.value == pytest.approx(recorded.kl_mean.value, rel=1e-5)
        assert measured.kl_mean.value > 0


def test_parts_hold_the_same_tensors_as_one_file(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["gemma2"]
    whole = jobs(checkpoint, tmp_path / "whole", "Q4_K_M")
    split = jobs(checkpoint, tmp_path / "split", "Q4_K_M", split_max_size="300kB")
    (planned,) = plan(split, checkpoint)
    run_tiny(checkpoint, [*whole, *split], evaluation=())
    folder = tmp_path / "split" / "Q4_K_M"
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))}
    assert sizes == planned.file_sizes
    assert next(iter(sizes)) == f"gemma2-Q4_K_M-00001-of-{len(sizes):05d}.gguf"
    assert len(sizes) > 2
    for number, name in enumerate(sizes):
        fields = gguf.GGUFReader(folder / name).fields
        assert fields["split.no"].contents() == number
        assert fields["split.count"].contents() == len(sizes)
        assert fields["split.tensors.count"].contents() == len(checkpoint.names())
        assert ("general.architecture" in fields) == (number == 0)
    one, several = GGUF().open(tmp_path / "whole" / "Q4_K_M"), GGUF().open(folder)
    for name in checkpoint.names():
        assert torch.equal(one.tensor(name), several.tensor(name))


def test_what_two_files_want_alike_is_quantized_once(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints["gemma2"]
    from gemquant.quantizers import gguf as gguf_quantizer

    made: list[tuple[str, str]] = []
    quantized_blocks = gguf_quantizer.quantized_blocks

    def counting(block, name, kind, **settings):  # type: ignore[no-untyped-def]
        made.append((block.prefix + name, kind.name))
        return quantized_blocks(block, name, kind, **settings)

    monkeypatch.setattr(gguf_quantizer, "quantized_blocks", counting)
    run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q4_K_M", "Q4_K_S", "Q6_K"), evaluation=())
    assert len(made) == len(set(made))
    assert made.count((EMBEDDING, "Q6_K")) == 1
    assert {kind for _, kind in made} == {"Q4_K", "Q5_K", "Q6_K"}


def test_a_file_is_the_same_alone_and_among_others_and_in_any_runs(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints["gemma3_text"]
    run_tiny(checkpoint, jobs(checkpoint, tmp_path / "a", "Q4_K_M", "Q2_K"))
    monkeypatch.setattr("gemquant.calibration.stream.ROWS_AT_ONCE", 100)
    monkeypatch.setattr("gemquant.quantizers.gguf.VALUES_AT_ONCE", 1000)
    run_tiny(checkpoint, jobs(checkpoint, tmp_path / "b", "Q4_K_M"), evaluation=())
    name = "Q4_K_M/gemma3_text-Q4_K_M.gguf"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rows_that_are_no_whole_blocks_fall_back_and_it_is_said(tmp_path: Path) -> None:
    narrow = open_checkpoint(
        str(write_tiny_gemma(tmp_path / "m", "gemma2", overrides=LLAMACPP["gemma2"]))
    )
    (job,) = jobs(narrow, tmp_path / "out", "Q4_K_M")
    (planned,) = plan([job], narrow)
    told = {(each.stored, each.reason) for each in planned.job.quantizer.fallbacks}
    assert (
        "Q5_0, 5.5 bits per weight",
        "128 columns are not a multiple of Q4_K's block of 256 (4.5 bits per weight)",
    ) in told
    (artifact,) = run_tiny(narrow, [job], evaluation=())
    fallbacks = {each.module: each.stored for each in artifact.manifest.fallbacks}
    assert fallbacks["model.layers.0.self_attn.q_proj"] == "Q5_0, 5.5 bits per weight"
    card = (artifact.path / "README.md").read_text(encoding="utf-8")
    assert "| `model.layers.0.self_attn.k_proj` and " in card


def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(
    tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    with pytest.raises(UnsupportedError, match="query_pre_attn_scalar 24"):
        plan(jobs(checkpoint, tmp_path / "out", "Q8_0"), checkpoint)


def test_other_quantizers_have_no_place_in_it(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path
) -> None:
    job = tiny_job(checkpoints["gemma2"], RoundToNearest(), tmp_path / "out", GGUF())
    with pytest.raises(UnsupportedError, match="gguf holds ggml's formats") as refused:
        plan([job], checkpoints["gemma2"])
    assert refused.value.hint == "Quantize with: gemquant gguf"


def changed(folder: Path, change: Mapping[str, bytes]) -> GemquantError:
    """What opening says after the bytes of a tensor's description were replaced."""
    (path,) = folder.glob("*.gguf")
    data = path.read_bytes()
    for old, new in change.items():
        assert data.count(old.encode()) == 1
        data = data.replace(old.encode(), new)
    path.write_bytes(data)
    with pytest.raises(GemquantError) as caught:
        GGUF().open(folder)
    return caught.value


def test_a_tensor_that_is_missing_is_found(
    checkpoints: Mapping[Kind, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["gemma2"]
    run_tiny(checkpoint, jobs(checkpoint, tmp_path, "Q8_0"), evaluation=())
    error = changed(tmp_path / "Q8_0", {"blk.1.ffn_up.weight": b"blk.1.ffn_uq.weight"})
    assert error.exit_code == 6
    assert "model.layers.1.mlp.up_proj.weight" in str(error)


def test_a_head_of_its_own_is_stored_and_measured(tmp_path: Path) -> None:
    overrides = {**LLAMACPP["gemma3_text"], **WIDE, "num_hidden_layers": 2}
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text", tied=False, overrides=overrides)
    untied = open_checkpoint(str(folder))
    (artifact,) = run_tiny(untied, jobs(untied, tmp_path / "out", "Q4_K_M"))
    (path,) = artifact.path.glob("*.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("Q4_K", "Q6_K")
    opened = GGUF().open(artifact.path)
    assert opened.config["tie_word_embeddings"] is False
    (again,) = compare(untied, opened, EVALUATION)
    for measured, recorded in zip(
        again.slices, artifact.manifest.certificates[0].slices, strict=True
    ):
        assert measured.kl_mean.value == pytest.approx(recorded.kl_mean.value, rel=1e-5)
