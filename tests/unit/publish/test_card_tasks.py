"""Scores of tasks on a card: the artifact's own, with what they are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gemquant.core.artifact import Artifact
from gemquant.core.artifact.finalize import content_digest
from gemquant.errors import NotComparableError, UsageError
from gemquant.measure.tasks.document import (
    Drop,
    MetricResult,
    ModelRecord,
    PublishedFigure,
    Settings,
    TaskResult,
    TaskScore,
    TasksDocument,
)
from gemquant.publish.card import make_card, write_card


def measured(digest: str | None) -> TasksDocument:
    accuracy = MetricResult(
        metric="acc",
        filter="none",
        higher_is_better=True,
        artifact=TaskScore(value=0.625, standard_error=0.0125),
        original=TaskScore(value=0.65625, standard_error=0.0125),
        drop=Drop(value=0.03125, low=-0.01, high=0.07, samples=1838),
        published=PublishedFigure(value=0.778, wording="PIQA, 0-shot 77.8", source="the card"),
    )
    return TasksDocument(
        gemquant="0.1.0",
        lm_eval="0.4.13",
        artifact=ModelRecord(
            name="tiny", container="gguf", digest=digest, runtime="llama.cpp | b9999"
        ),
        original=ModelRecord(name="google/gemma-2-2b", container="checkpoint", runtime="torch"),
        settings=Settings(
            limit=None,
            num_fewshot=None,
            chat_template=False,
            max_length=4096,
            batch_size=1,
            device="cpu",
            dtype="float32",
            seed=0,
            task_code=False,
        ),
        tasks=(
            TaskResult(
                task="piqa",
                version="1.0",
                num_fewshot=0,
                samples=1838,
                samples_in_all=1838,
                metrics=(accuracy,),
            ),
            TaskResult(task="mmlu", skipped="dataset unreachable: https://hf.example"),
        ),
    )


@pytest.fixture
def tasks(artifact: Artifact, tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_bytes(measured(content_digest(artifact.manifest)).to_json())
    return path


def test_scores_come_into_card_folder_and_manifest_together(
    artifact: Artifact, tasks: Path
) -> None:
    write_card(make_card(artifact.path, tasks=tasks))
    opened = Artifact.open(artifact.path)
    assert "tasks.json" in opened.manifest.files
    assert content_digest(opened.manifest) == content_digest(artifact.manifest)
    assert make_card(artifact.path).is_current


def test_a_row_gives_score_original_drop_and_published_figure(
    artifact: Artifact, tasks: Path
) -> None:
    card = make_card(artifact.path, tasks=tasks).text
    section = card.split("## Tasks")[1].split("## How to load it")[0]
    row = (
        "| piqa | 1.0 | 0 | 1838 of 1838 | acc | 0.625 ± 0.013 | 0.6562 ± 0.013 | "
        "+0.03125 [-0.01, +0.07] | 0.778 |"
    )
    assert row in section.splitlines()
    assert "on llama.cpp \\| b9999, beside `google/gemma-2-2b` on torch." in section


def test_what_was_skipped_is_said_and_is_no_result(artifact: Artifact, tasks: Path) -> None:
    card = make_card(artifact.path, tasks=tasks).text
    assert "Not run: mmlu, dataset unreachable: https://hf.example" in card.splitlines()
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("piqa", "acc", 0.625)
    assert result.dataset_args["num_few_shot"] == 0
    assert result.metric_args == {"runtime": "llama.cpp | b9999", "standard_error": 0.0125}


@pytest.mark.parametrize("digest", [None, "sha256:" + "0" * 64], ids=["unknown", "another"])
def test_scores_of_something_else_are_refused(
    artifact: Artifact, tmp_path: Path, digest: str | None
) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(measured(digest).to_json())
    with pytest.raises(NotComparableError, match="measured tiny: none has the files of this"):
        make_card(artifact.path, tasks=path)


def test_what_is_no_such_document_is_named(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"schema_version": 1}')
    with pytest.raises(UsageError, match=r"bad\.json: gemquant: Field required") as caught:
        make_card(artifact.path, tasks=path)
    assert "gemquant tasks ARTIFACT -o FILE" in str(caught.value.hint)
