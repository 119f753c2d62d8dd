"""The model card of a finished artifact, made again, with what was measured since.

The card is a function of the folder: of its manifest, of the documents beside it that measured
it, and of what the original's card said. So a document that a card shows is kept in the
artifact, and card, document and manifest change together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.artifact import MANIFEST_FILE, SIGNATURE_FILE, Manifest, read_manifest
from gemquant.core.artifact.card import CARD_FILE, Later, inherited_again, render_card
from gemquant.core.artifact.content import ABOUT_FILES, EVALUATION_FILE, TASKS_FILE
from gemquant.core.artifact.finalize import file_problems as changed_files
from gemquant.core.artifact.finalize import resealed
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.errors import ArtifactError, OutputError, refuse
from gemquant.publish.measured import shown_evaluation
from gemquant.publish.measured_tasks import shown_tasks


@dataclass(frozen=True)
class Card:
    """A card, and what must change with it. changed: files by name, the manifest last."""

    artifact: Path
    manifest: Manifest
    text: str
    changed: Mapping[str, bytes]

    @property
    def is_current(self) -> bool:
        """Whether the artifact has this very card already."""
        return not self.changed


def make_card(artifact: Path, *, evaluation: Path | None = None, tasks: Path | None = None) -> Card:
    """Make the card anew; writes nothing.

    evaluation, tasks: documents that measured this artifact; without one, that in the artifact is
    shown, if there is one. Raises where the artifact's own card or document is not the manifest's.
    """
    manifest = read_manifest(artifact)
    if CARD_FILE not in manifest.files:
        raise ArtifactError(f"{artifact} has no {CARD_FILE}.", hint="Make the artifact again.")
    refuse(changed_files(artifact, manifest, ABOUT_FILES))
    old = (artifact / CARD_FILE).read_bytes()
    changed: dict[str, bytes] = {}
    later: list[Later] = []
    for name, given, shown in (
        (EVALUATION_FILE, evaluation, shown_evaluation),
        (TASKS_FILE, tasks, shown_tasks),
    ):
        if given is None and name not in manifest.files:
            continue
        kept, section = shown(given or artifact / name, manifest)
        later.append(section)
        if given is not None and resealed(manifest, {name: kept}) != manifest:
            changed[name] = kept
    text = render_card(
        resealed(manifest, changed),
        inherited=inherited_again(old.decode(errors="replace")),
        later=later,
    )
    if text.encode() != old:
        changed[CARD_FILE] = text.encode()
    if changed:
        changed[MANIFEST_FILE] = resealed(manifest, changed).to_json()
    return Card(artifact, manifest, text, changed)


def write_card(card: Card) -> None:
    """Put card, document and manifest in their places: all of them, or none.

    Raises OutputError for a signed artifact, whose signature would no longer hold.
    """
    if card.is_current:
        return
    if (card.artifact / SIGNATURE_FILE).exists():
        raise OutputError(
            f"{card.artifact} is signed: another card would break its signature.",
            hint=f"Remove {card.artifact / SIGNATURE_FILE}, run this again, then sign it again.",
        )
    places = [card.artifact / name for name in card.changed]
    needed = sum(map(len, card.changed.values()))
    refuse(file_problems(places, replaceable=places, needed_bytes=needed))
    with staged_files(places) as scratch:
        for name, content in card.changed.items():
            (scratch / name).write_bytes(content)


def save_card(card: Card, output: Path, *, force: bool) -> None:
    """Write the card alone, outside the artifact, which stays as it is."""
    if output.resolve().is_relative_to(card.artifact.resolve()):
        raise OutputError(
            f"{output} lies in the artifact.", hint="Leave --output out to renew the card there."
        )
    content = card.text.encode()
    replaceable = [output] if force else []
    refuse(file_problems([output], replaceable=replaceable, needed_bytes=len(content)))
    with staged_files([output]) as scratch:
        (scratch / output.name).write_bytes(content)


def refuse_stale(card: Card) -> None:
    """Raise ArtifactError unless the artifact has this very card."""
    if not card.is_current:
        raise ArtifactError(
            f"{card.artifact / CARD_FILE} is not the card that this version makes of the manifest.",
            hint=f"gemquant card {card.artifact}",
        )
