"""What the Hub refuses becomes a next step; a warm cache needs no network."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from gemquant.errors import CheckpointError, UsageError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.hub import MODEL_FILES, NESTED, hub_problem
from gemquant.formats.checkpoint.recognition import parse_hub_reference
from tests.helpers.tiny_gemma import Kind

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds google/gemma-tiny as huggingface_hub lays it out, and no network."""
    repository = tmp_path / "models--google--gemma-tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_folders["gemma2"].iterdir())):
        shutil.copy(file, blobs / f"{number:040}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository


def response(status: int) -> object:
    """What the HTTP library of this huggingface_hub (httpx or its successor) hands to errors."""
    http = importlib.import_module(hub_errors.Response.__module__.partition(".")[0])
    return http.Response(status, request=http.Request("GET", "https://huggingface.co/api"))


def test_a_warm_cache_opens_offline(cache: Path) -> None:
    checkpoint = open_checkpoint("google/gemma-tiny")
    assert checkpoint.revision == COMMIT
    assert checkpoint.provenance.base_model == "google/gemma-tiny"
    assert checkpoint.tensor("model.norm.weight").shape == (128,)


def test_a_revision_is_looked_up(cache: Path) -> None:
    (cache / "refs" / "v2").write_text(COMMIT)
    assert open_checkpoint("google/gemma-tiny@v2").revision == COMMIT


def test_a_snapshot_folder_may_be_given_itself(cache: Path) -> None:
    assert open_checkpoint(str(cache / "snapshots" / COMMIT)).names()


def test_a_snapshot_leads_no_further_than_its_blobs(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    config = cache / "snapshots" / COMMIT / "config.json"
    config.unlink()
    config.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint("google/gemma-tiny")


def test_a_cold_cache_offline_says_how_to_fill_it(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="nor in the Hub cache") as caught:
        open_checkpoint("google/gemma-2-2b")
    assert caught.value.hint == "Go online once: hf download google/gemma-2-2b"


def test_an_unknown_revision_offline_is_refused(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="nor in the Hub cache"):
        open_checkpoint("google/gemma-tiny@v3")


def test_an_adapter_may_come_from_the_hub(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="google/gemma-tiny is a model, not an adapter"):
        open_checkpoint("google/gemma-tiny", lora=("google/gemma-tiny",))


def test_only_weights_and_tokenizer_at_the_top_are_fetched() -> None:
    present = [
        "config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "README.md",
        "pytorch_model.bin", "gemma.gguf", "modeling.py", "onnx/model.safetensors",
        "original/config.json", ".gitattributes",
    ]  # fmt: skip
    fetched = huggingface_hub.utils.filter_repo_objects(
        present, allow_patterns=list(MODEL_FILES), ignore_patterns=list(NESTED)
    )
    assert list(fetched) == present[:4]


def test_the_modules_of_sentence_transformers_are_fetched() -> None:
    names = ("config_sentence_transformers.json", "modules.json", "sentence_bert_config.json")
    modules = [*names, "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    others = ["onnx/model.onnx", "2_Dense/pytorch_model.bin", "openvino/config.json"]
    fetched = huggingface_hub.utils.filter_repo_objects(
        [*modules, *others], allow_patterns=list(MODEL_FILES), ignore_patterns=list(NESTED)
    )
    assert list(fetched) == modules


def test_a_gated_model_names_the_page_and_the_login() -> None:
    error = hub_errors.GatedRepoError("403", response=response(403))  # type: ignore[arg-type]
    problem = hub_problem(error, "google/gemma-2-2b", None)
    assert "google/gemma-2-2b is gated" in problem.message
    assert problem.hint == (
        "Accept the terms on https://huggingface.co/google/gemma-2-2b , then log in: hf auth login"
    )


def test_a_missing_repository_suggests_spelling_and_login() -> None:
    error = hub_errors.RepositoryNotFoundError("404", response=response(404))  # type: ignore[arg-type]
    problem = hub_problem(error, "google/gema", None)
    assert "neither a local folder nor a visible model on the Hub" in problem.message
    assert problem.exit_code == 3


def test_a_missing_revision_is_named() -> None:
    error = hub_errors.RevisionNotFoundError("404", response=response(404))  # type: ignore[arg-type]
    assert "no revision 'v9'" in hub_problem(error, "google/gemma-2-2b", "v9").message


def test_an_impossible_id_is_a_usage_error() -> None:
    assert isinstance(hub_problem(hub_errors.HFValidationError("x"), "a/b--c", None), UsageError)


def test_a_broken_download_continues_on_the_next_run() -> None:
    problem = hub_problem(OSError("connection reset"), "google/gemma-2-2b", None)
    assert "the download failed: connection reset" in problem.message


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("google/gemma-2-2b", ("google/gemma-2-2b", None)),
        ("google/gemma-2-2b@main", ("google/gemma-2-2b", "main")),
        ("google/gemma-2-2b@refs/pr/3", ("google/gemma-2-2b", "refs/pr/3")),
        ("gemma", None),
        ("/models/gemma", None),
        ("./models/gemma", None),
        ("a/b/c", None),
        ("a/b@../c", None),
    ],
)
def test_only_owner_and_name_are_a_hub_id(ref: str, parsed: object) -> None:
    assert parse_hub_reference(ref) == parsed
