"""An EmbeddingGemma through the command line, and its artifacts in transformers and llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.measure.quality.embeddings import dense_modules
from gemquant.measure.quality.native import NativeRuntime
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_sentencepiece import write_convertible_gemma
from tests.helpers.tiny_windows import tiny_windows
from tests.unit.cli.conftest import Result, Run

TEXT = "--threads 1 --seq-len 32 --eval-windows 2 --eval-slices english,code".split()
COPIED = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "3_Dense/config.json",
    "3_Dense/model.safetensors",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_gemma(tmp_path / "model", "embedding")


def rtn(run: Run, folder: Path, *more: str) -> Result:
    flags = ["--group-size", "32", "--symmetric", "--target", "cpu", *TEXT]
    made = run("rtn", str(folder), *flags, "-o", "out", *more)
    assert made.code == 0, made.err
    return made


def test_an_artifact_is_a_whole_folder_of_sentence_transformers(run: Run, folder: Path) -> None:
    rtn(run, folder)
    for name in COPIED:
        assert (Path("out") / name).read_bytes() == (folder / name).read_bytes()
    stored = load_file("out/model.safetensors")
    assert "embed_tokens.weight" in stored
    assert "layers.0.mlp.up_proj.weight_packed" in stored
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["quantization"]["unquantized"] == ["model.embed_tokens"]
    assert set(COPIED) <= set(manifest["files"])
    config = json.loads(Path("out/config.json").read_text())
    assert config["architectures"] == ["Gemma3TextModel"]
    assert config["model_type"] == "gemma3_text"
    assert config["sliding_window"] == 8
    assert "dense_modules" not in config
    assert run("verify", "out").code == 0


def test_its_certificate_is_of_embeddings_and_ranks(run: Run, folder: Path) -> None:
    made = rtn(run, folder)
    manifest = json.loads(Path("out/manifest.json").read_text())
    (certificate,) = manifest["certificates"]
    assert certificate["slices"] == []
    english, code = certificate["embeddings"]
    assert (english["slice"], code["slice"]) == ("english", "code")
    assert english["seq_len"] == 32
    assert english["documents"] == 2
    assert len(english["texts"]["cosine"]) == 2
    assert len(english["texts"]["top1"]) == 1
    assert 0.7 < english["cosine_mean"]["value"] < 1
    assert "cosine mean" in made.out
    card = Path("out/README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert "library_name: sentence-transformers" in card
    assert 'SentenceTransformer("path/to/this/folder")' in card
    assert "mean cosine similarity" in card


def test_an_unchanged_model_has_the_same_embeddings(run: Run, folder: Path) -> None:
    made = run("cast", str(folder), "--dtype", "bfloat16", "--target", "cpu", *TEXT, "-o", "out")
    assert made.code == 0, made.err
    (certificate,) = json.loads(Path("out/manifest.json").read_text())["certificates"]
    for each in certificate["embeddings"]:
        assert each["cosine_mean"]["value"] == pytest.approx(1.0, abs=1e-9)
        assert each["top1"]["value"] == each["spearman"]["value"] == 1.0


def native(folder: Path, container: str, ids: Tensor) -> Tensor:
    return NativeRuntime.find(folder, container).embeddings(ids)


def test_transformers_computes_the_embeddings_of_the_decoded_weights(
    run: Run, folder: Path
) -> None:
    rtn(run, folder, "--no-eval")
    decoded = CompressedTensors().open(Path("out"))
    assert [each.shape for each in dense_modules(decoded, decoded.config)] == [
        (192, 128),
        (128, 192),
    ]
    plain = write_tiny_gemma(
        Path("plain"), "embedding", dtype=torch.float32, overrides={"torch_dtype": "float32"}
    )
    tensors = {
        name.removeprefix("model."): decoded.tensor(name, torch.float32)
        for name in decoded.names()
        if not name.startswith("dense")
    }
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    ids = tiny_windows(4, 30).ids
    found = native(Path("out"), "compressed-tensors", ids)
    expected = native(plain, "safetensors", ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert PlainSafetensors().open(plain).shape("dense_2.weight") == (192, 128)


def test_llama_cpp_computes_the_embeddings_of_a_gguf_with_and_without_dense_modules(
    run: Run, tmp_path: Path
) -> None:
    model = write_convertible_gemma(tmp_path, "embedding")
    for name, flags in (("with", []), ("without", ["--no-dense-modules"])):
        made = run("gguf", str(model), "--type", "F32", "--no-eval", *flags, "-o", name)
        assert made.code == 0, made.err
    flags = ["--dtype", "float32", "--no-eval", "--target", "cpu"]
    assert run("cast", str(model), *flags, "-o", "cast").code == 0
    ids = tiny_windows(4, 30).ids
    expected = native(Path("cast"), "safetensors", ids)
    found = native(Path("with"), "gguf", ids)
    assert torch.linalg.vecdot(found, expected).min() > 0.999
    checkpoint = open_checkpoint(str(model))
    pooled = native(Path("without"), "gguf", ids)
    for weight in dense_modules(checkpoint, checkpoint.config):
        pooled = pooled @ weight.T
    cosine = torch.cosine_similarity(pooled, expected)
    assert cosine.min() > 0.999


def test_a_gguf_names_its_pooling_and_holds_dense_modules(run: Run, tmp_path: Path) -> None:
    model = write_convertible_gemma(tmp_path, "embedding")
    made = run("gguf", str(model), "--type", "Q8_0", "--type", "Q4_K_M", *TEXT, "-o", "out")
    assert made.code == 0, made.err
    reader = gguf.GGUFReader(next(Path("out/Q8_0").glob("*.gguf")))
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "gemma-embedding"
    assert keys["gemma-embedding.pooling_type"] == 1
    assert keys["gemma-embedding.attention.sliding_window"] == 8
    assert keys["gemma-embedding.dense_2_feat_out"] == 192
    assert keys["tokenizer.ggml.add_eos_token"]
    assert {"dense_2.weight", "dense_3.weight"} <= {tensor.name for tensor in reader.tensors}
    again = open_checkpoint(str(next(Path("out/Q8_0").glob("*.gguf"))))
    assert again.shape("dense_3.weight") == (128, 192)
    assert again.prompts["query"] == "task: search result | query: "


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("mlx", ["--target", "mps"]),
        ("awq", ["--exporter", "awq-gemm"]),
        ("metal", ["--target", "mps"]),
    ],
)
def test_containers_without_a_loader_are_refused(
    run: Run, folder: Path, command: str, flags: list[str]
) -> None:
    name = "rtn" if command in {"mlx", "metal"} else command
    exporter = [] if "--exporter" in flags else ["--exporter", command]
    refused = run(name, str(folder), *flags, *exporter, "--no-eval", "-o", "out")
    assert refused.code != 0
    assert "no loader of this container is known for an EmbeddingGemma" in refused.err
    assert not Path("out").exists()


def test_a_head_that_is_not_there_is_not_quantized(run: Run, folder: Path) -> None:
    refused = run("rtn", str(folder), "--quantize-head", "--target", "cpu", "--no-eval")
    assert refused.code == 2
    assert "--quantize-head: an EmbeddingGemma has no head" in refused.err


def test_commands_that_continue_text_refuse_it(run: Run, folder: Path) -> None:
    rtn(run, folder, "--no-eval")
    commands = [["chat"], ["bench"]]  # chat asks for a question first
    if find_spec("lm_eval") is not None:  # what tasks says first
        commands.append(["tasks", "--no-original", "--tasks", "hellaswag"])
    for command in commands:
        refused = run(command[0], "out", *command[1:])
        assert refused.code != 0
        if command != ["chat"]:
            assert "is an EmbeddingGemma, an embedding model" in refused.err


ENCODE = """
import json, sys, torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": torch.float32})
found = [model.encode_query(["hello world"])[0], model.encode_document(["the lazy dog"])[0]]
print(json.dumps([list(map(float, each)) for each in found]))
"""


@pytest.mark.peer
def test_sentence_transformers_loads_what_was_written_and_embeds_alike(
    run: Run, tmp_path: Path
) -> None:
    """$SENTENCE_TRANSFORMERS_PYTHON is a Python that has it and compressed-tensors."""
    python = os.environ.get("SENTENCE_TRANSFORMERS_PYTHON", sys.executable)
    probe = [python, "-c", "import sentence_transformers"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("sentence-transformers is not installed")
    single = {"torch_dtype": "float32"}
    folder = write_tiny_gemma(tmp_path / "f", "embedding", dtype=torch.float32, overrides=single)
    rtn(run, folder, "--no-eval")
    checkpoint = open_checkpoint(str(folder))
    texts = (
        (checkpoint.prompts["query"], "hello world"),
        (checkpoint.prompts["document"], "the lazy dog"),
    )
    for path, container in ((folder, "safetensors"), (Path("out"), "compressed-tensors")):
        command = [python, "-c", ENCODE, str(path)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
        for text, expected in zip(texts, theirs, strict=True):
            ids = torch.tensor([checkpoint.tokenizer().encode("".join(text)).ids])
            torch.testing.assert_close(native(path, container, ids)[0], expected, atol=1e-5, rtol=0)
