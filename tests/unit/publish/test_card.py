"""A card made again agrees with the manifest, and the manifest with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gemquant.core.artifact import Artifact, finalize, staged
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.core.artifact.finalize import content_digest
from gemquant.errors import ArtifactError, NotComparableError, OutputError
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.publish.card import make_card, refuse_stale, save_card, write_card
from tests.helpers.tiny_artifact import tiny_header, tiny_manifest, write_tiny_weights
from tests.helpers.tiny_evaluation import artifact as measured_artifact
from tests.helpers.tiny_evaluation import document
from tests.unit.cli.conftest import Run, run  # noqa: F401 (a fixture)

ORIGINAL = "---\nlanguage: en\n---\n# Gemma\n\nThe original's text.\n"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact whose original had a card."""
    path, exporter = tmp_path / "artifact", CompressedTensors()
    header = tiny_header(exporter)
    with staged(path, force=False, needed_bytes=0) as folder:
        write_tiny_weights(folder, exporter, header)
        finalize(folder, tiny_manifest(header, exporter), original_card=ORIGINAL)
    return Artifact.open(path)


def evaluated(artifact: Artifact, *, name: str = "tiny", kl: float = 0.25) -> EvaluationDocument:
    """A document that measured this artifact, between two others."""
    others = [measured_artifact(each, kl={"english": [0.5]}) for each in ("before", "behind")]
    own = measured_artifact(name, kl={"english": [kl, kl], "code": [0.125]})
    own = own.model_copy(update={"digest": content_digest(artifact.manifest)})
    return document(others[0], own, others[1])


@pytest.fixture
def evaluation(artifact: Artifact, tmp_path: Path) -> Path:
    path = tmp_path / "eval.json"
    path.write_bytes(evaluated(artifact).to_json())
    return path


def text(artifact: Artifact) -> str:
    return (artifact.path / "README.md").read_text(encoding="utf-8")


def test_a_sealed_card_is_current(artifact: Artifact) -> None:
    card = make_card(artifact.path)
    assert (card.is_current, card.text) == (True, text(artifact))
    refuse_stale(card)


def test_an_older_versions_card_is_stale_and_is_renewed_with_its_record(
    artifact: Artifact, tmp_path: Path
) -> None:
    older(artifact)
    with pytest.raises(ArtifactError, match=r"is not the card that this version renders") as caught:
        refuse_stale(make_card(artifact.path))
    assert caught.value.hint == f"gemquant card {artifact.path}"
    write_card(make_card(artifact.path))
    assert Artifact.open(artifact.path).manifest == artifact.manifest


def older(artifact: Artifact) -> None:
    """Leave a card that an earlier version might have made, with its record."""
    from gemquant.core.artifact.finalize import with_updated_files

    content = text(artifact).replace("## What was lost", "## Loss").encode()
    (artifact.path / "README.md").write_bytes(content)
    manifest = with_updated_files(artifact.manifest, {"README.md": content})
    (artifact.path / "manifest.json").write_bytes(manifest.to_json())


def test_an_evaluation_comes_into_card_folder_and_manifest_together(
    artifact: Artifact, evaluation: Path
) -> None:
    write_card(make_card(artifact.path, evaluation=evaluation))
    opened = Artifact.open(artifact.path)
    assert "evaluation.json" in opened.manifest.files
    assert content_digest(opened.manifest) == content_digest(artifact.manifest)
    assert make_card(artifact.path).is_current
    assert make_card(artifact.path, evaluation=evaluation).is_current


def test_only_this_artifacts_measurements_are_kept(artifact: Artifact, evaluation: Path) -> None:
    write_card(make_card(artifact.path, evaluation=evaluation))
    kept = EvaluationDocument.read(artifact.path / "evaluation.json")
    assert [each.name for each in kept.artifacts] == ["tiny"]


def test_the_text_gives_each_figure_with_its_interval(artifact: Artifact, evaluation: Path) -> None:
    card = make_card(artifact.path, evaluation=evaluation).text
    section = card.split("## Evaluation, suite default version 1")[1].split("## How to load it")[0]
    assert "### Suite default, level `reference`" in section
    row = r"| english | 2 | 1,022 | 20.00 | 22.00 | 0.250 \[0.225, 0.275\] |"
    assert row in section


def test_the_hubs_own_classes_read_the_same_figures(artifact: Artifact, evaluation: Path) -> None:
    data = ModelCard(make_card(artifact.path, evaluation=evaluation).text).data
    assert len(data.eval_results) == 2 * 5
    found = {
        (each.dataset_config, each.metric_name): each.metric_value for each in data.eval_results
    }
    mean = "KL divergence from the original, mean, nats (level reference)"
    assert (found["english", mean], found["code", mean]) == (0.25, 0.125)
    first = data.eval_results[0]
    expected = {"suite": "default", "suite_version": 1, "windows": 2, "tokens": 1022}
    assert first.dataset_args == expected


def test_the_originals_text_and_languages_stay(artifact: Artifact, evaluation: Path) -> None:
    card = make_card(artifact.path, evaluation=evaluation).text
    assert card.endswith("# Gemma\n\nThe original's text.\n")
    assert ModelCard(card).data.language == ["en"]


def test_names_in_a_document_are_shown_as_they_are(artifact: Artifact, tmp_path: Path) -> None:
    made = evaluated(artifact)
    suite = made.suite.model_copy(update={"name": "<b>|x\n# y {{ 7 }}"})
    path = tmp_path / "hostile.json"
    path.write_bytes(made.model_copy(update={"suite": suite}).to_json())
    card = make_card(artifact.path, evaluation=path).text
    assert "## Evaluation, suite \\<b\\>\\|x \\# y {{ 7 }} version 1" in card.splitlines()


def test_an_evaluation_of_something_else_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(document().to_json())
    with pytest.raises(NotComparableError, match="measured gemma-awq: none has the files of this"):
        make_card(artifact.path, evaluation=path)


def test_a_newer_evaluation_replaces_the_one_before(
    artifact: Artifact, evaluation: Path, tmp_path: Path
) -> None:
    write_card(make_card(artifact.path, evaluation=evaluation))
    newer = tmp_path / "newer.json"
    newer.write_bytes(evaluated(artifact, kl=0.5).to_json())
    write_card(make_card(artifact.path, evaluation=newer))
    Artifact.open(artifact.path)
    assert r"| 0.500 \[0.450, 0.550\] |" in text(artifact)
    assert "0.25 [0.225" not in text(artifact)


@pytest.mark.parametrize("name", ["README.md", "evaluation.json"])
def test_a_card_or_document_that_was_tampered_with_is_not_built_on(
    artifact: Artifact, evaluation: Path, name: str
) -> None:
    write_card(make_card(artifact.path, evaluation=evaluation))
    with (artifact.path / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactError, match=f"{name} is not the file the manifest describes"):
        make_card(artifact.path)


def test_a_signed_artifact_keeps_its_card(artifact: Artifact, evaluation: Path) -> None:
    (artifact.path / "model.sig").write_text("{}")
    before = text(artifact)
    with pytest.raises(OutputError, match="another card would invalidate the signature"):
        write_card(make_card(artifact.path, evaluation=evaluation))
    assert text(artifact) == before


def test_a_failure_while_writing_leaves_everything_as_it_was(
    artifact: Artifact, evaluation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card(artifact.path, evaluation=evaluation)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "manifest.json" and path.parent.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        write_card(card)
    monkeypatch.undo()
    assert Artifact.open(artifact.path).manifest == artifact.manifest


def test_a_preview_leaves_the_artifact_alone(
    artifact: Artifact, evaluation: Path, tmp_path: Path
) -> None:
    output = tmp_path / "preview.md"
    save_card(make_card(artifact.path, evaluation=evaluation), output, force=False)
    assert "## Evaluation, suite default" in output.read_text(encoding="utf-8")
    assert Artifact.open(artifact.path).manifest == artifact.manifest
    with pytest.raises(OutputError, match="exists"):
        save_card(make_card(artifact.path), output, force=False)
    with pytest.raises(OutputError, match="lies in the artifact"):
        save_card(make_card(artifact.path), artifact.path / "README.md", force=True)


def test_the_command_says_what_changed(run: Run, artifact: Artifact, evaluation: Path) -> None:  # noqa: F811
    where = str(artifact.path)
    made = run("card", where, "--evaluation", str(evaluation), "--json")
    changed = ["README.md", "evaluation.json", "manifest.json"]
    assert json.loads(made.out)["changed"] == changed
    assert run("card", where).out == f"{where}/README.md: up to date\n"
    assert run("verify", where).out == f"{where}: valid\n"


def test_the_check_fails_with_the_code_of_an_artifact(run: Run, artifact: Artifact) -> None:  # noqa: F811
    assert run("card", str(artifact.path), "--check").code == 0
    older(artifact)
    result = run("card", str(artifact.path), "--check")
    assert (result.code, result.out) == (6, "")
