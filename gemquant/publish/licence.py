"""Whether an artifact carries what the Gemma terms ask of a copy that is passed on."""

from __future__ import annotations

import yaml

from gemquant.core.artifact import Artifact
from gemquant.core.artifact.card import CARD_FILE, NOTICE
from gemquant.core.artifact.finalize import NOTICE_FILE
from gemquant.errors import ArtifactError, GemquantError

TERMS = "ai.google.dev/gemma/terms"
PROHIBITED_USE = "ai.google.dev/gemma/prohibited_use_policy"


def licence_problems(artifact: Artifact) -> list[GemquantError]:
    """The notice, and a card that names the licence, the terms and the prohibited uses.

    Source: Gemma Terms of Use, section 3.1.
    """
    problems: list[GemquantError] = [
        ArtifactError(
            f"{artifact.path} has no {name}, without which the Gemma terms let nobody pass a model "
            "on.",
            hint="Make the artifact again: gemquant writes it.",
        )
        for name in (NOTICE_FILE, CARD_FILE)
        if name not in artifact.manifest.files
    ]
    if problems:
        return problems
    notice = (artifact.path / NOTICE_FILE).read_text(encoding="utf-8", errors="replace")
    if NOTICE.strip() not in notice:
        problems.append(ArtifactError(f"{NOTICE_FILE} does not say: {NOTICE.strip()}"))
    card = (artifact.path / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    licence = _front_matter(card).get("license")
    hint = f"gemquant card {artifact.path}"
    if licence != artifact.manifest.license:
        problems.append(
            ArtifactError(
                f"{CARD_FILE} states the licence {licence!r}, the manifest "
                f"{artifact.manifest.license!r}.",
                hint=hint,
            )
        )
    problems += [
        ArtifactError(f"{CARD_FILE} does not link to https://{link}.", hint=hint)
        for link in (TERMS, PROHIBITED_USE)
        if link not in card
    ]
    return problems


def _front_matter(card: str) -> dict[str, object]:
    head, _, rest = card.partition("---\n")
    matter, closed, _ = rest.partition("\n---\n")
    if head or not closed:
        return {}
    try:
        found = yaml.safe_load(matter)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
