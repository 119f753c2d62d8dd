"""Regenerate the model card of an artifact, including later measurements.

The card is a function of the folder: its manifest, its evaluation and task documents, and the
original's card. So a document that the card shows is stored in the artifact, and card, document and
manifest change together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.artifact import MANIFEST_FILE, SIGNATURE_FILE, Manifest, read_manifest
from gemquant.core.artifact.card import (
    CARD_FILE,
    Later,
    inherited_again,
    render_card,
    repository_in,
)
from gemquant.core.artifact.finalize import (
    ABOUT_FILES,
    EVALUATION_FILE,
    TASKS_FILE,
    with_updated_files,
)
from gemquant.core.artifact.finalize import file_problems as changed_files
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.errors import ArtifactError, OutputError, refuse
from gemquant.publish.measured import shown_evaluation
from gemquant.publish.measured_tasks import shown_tasks


@dataclass(frozen=True)
class Card:
    """A card. changed: all files to replace, by name, the manifest last."""

    artifact: Path
    manifest: Manifest
    text: str
    changed: Mapping[str, bytes]

    @property
    def is_current(self) -> bool:
        """Whether the artifact already has this card."""
        return not self.changed


def make_card(
    artifact: Path,
    *,
    evaluation: Path | None = None,
    tasks: Path | None = None,
    repository: str | None = None,
) -> Card:
    """Render the card; writes nothing.

    repository: on the Hub, by default the one that the card names already.
    evaluation, tasks: documents that measured this artifact; by default those in the artifact.
    ArtifactError if the artifact's card or documents differ from the manifest.
    """
    manifest = read_manifest(artifact)
    if CARD_FILE not in manifest.files:
        raise ArtifactError(f"{artifact} has no {CARD_FILE}.", hint="Quantize again.")
    refuse(changed_files(artifact, manifest, ABOUT_FILES))
    old = (artifact / CARD_FILE).read_bytes()
    changed: dict[str, bytes] = {}
    later: list[Later] = []
    for name, document, show in (
        (EVALUATION_FILE, evaluation, shown_evaluation),
        (TASKS_FILE, tasks, shown_tasks),
    ):
        if document is None and name not in manifest.files:
            continue
        content, section = show(document or artifact / name, manifest)
        later.append(section)
        if document is not None and with_updated_files(manifest, {name: content}) != manifest:
            changed[name] = content
    before = old.decode(errors="replace")
    text = render_card(
        with_updated_files(manifest, changed),
        inherited=inherited_again(before),
        later=later,
        repository=repository or repository_in(before),
    )
    if text.encode() != old:
        changed[CARD_FILE] = text.encode()
    if changed:
        changed[MANIFEST_FILE] = with_updated_files(manifest, changed).to_json()
    return Card(artifact, manifest, text, changed)


def write_card(card: Card) -> None:
    """Replace card, documents and manifest: all of them, or none.

    OutputError for a signed artifact, whose signature would become invalid.
    """
    if card.is_current:
        return
    if (card.artifact / SIGNATURE_FILE).exists():
        raise OutputError(
            f"{card.artifact} is signed; another card would invalidate the signature.",
            hint=f"Remove {card.artifact / SIGNATURE_FILE}, rerun this command, then sign again.",
        )
    paths = [card.artifact / name for name in card.changed]
    needed = sum(map(len, card.changed.values()))
    refuse(file_problems(paths, replaceable=paths, needed_bytes=needed))
    with staged_files(paths) as scratch:
        for name, content in card.changed.items():
            (scratch / name).write_bytes(content)


def save_card(card: Card, output: Path, *, force: bool) -> None:
    """Write only the card, outside the artifact."""
    if output.resolve().is_relative_to(card.artifact.resolve()):
        raise OutputError(
            f"{output} lies in the artifact.", hint="Omit --output to update the card there."
        )
    content = card.text.encode()
    replaceable = [output] if force else []
    refuse(file_problems([output], replaceable=replaceable, needed_bytes=len(content)))
    with staged_files([output]) as scratch:
        (scratch / output.name).write_bytes(content)


def refuse_stale(card: Card) -> None:
    """Raise ArtifactError unless the artifact has this card."""
    if not card.is_current:
        raise ArtifactError(
            f"{card.artifact / CARD_FILE} is not the card that this version renders.",
            hint=f"gemquant card {card.artifact}",
        )
