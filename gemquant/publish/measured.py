"""What an evaluation document says of one artifact, for its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gemquant.core.artifact import Manifest
from gemquant.core.artifact.card import Later, card_environment, card_template
from gemquant.core.artifact.evaluation import (
    LEVELS,
    EvaluationDocument,
)
from gemquant.core.artifact.finalize import content_digest
from gemquant.core.artifact.losses import eval_results
from gemquant.errors import NotComparableError


def shown_evaluation(place: Path, manifest: Manifest) -> tuple[bytes, Later]:
    """What an artifact keeps of a document, and what its card shows of it."""
    document = _of_artifact(EvaluationDocument.read(place), manifest, place=place)
    environment = card_environment()
    template = environment.from_string(card_template("gemquant.publish", "evaluation.md.jinja"))
    section = template.render(document=document, artifact=document.artifacts[0], levels=LEVELS)
    results = eval_results(
        document.artifacts[0].levels,
        suite=document.suite.name,
        suite_version=document.suite.version,
    )
    return document.to_json(), Later(tuple(results), section)


def refuse_others(place: Path, measured: Sequence[str], *, command: str) -> NoReturn:
    """Raise NotComparableError: a document measured something else."""
    others = ", ".join(measured[:5]) or "nothing"
    raise NotComparableError(
        f"{place} measured {others}: none has the files of this artifact.", hint=command
    )


def _of_artifact(
    document: EvaluationDocument, manifest: Manifest, *, place: Path
) -> EvaluationDocument:
    """The document with this artifact alone."""
    digest = content_digest(manifest)
    own = tuple(each for each in document.artifacts if each.digest == digest)
    if not own:
        names = [each.name for each in document.artifacts]
        refuse_others(place, names, command="gemquant eval ARTIFACT --output FILE")
    return document.model_copy(update={"artifacts": own[:1]})
