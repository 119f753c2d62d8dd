"""What an evaluation document says of one artifact, for its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gemquant.core.artifact import Manifest
from gemquant.core.artifact.card import LEVELS, Later, card_environment, card_template
from gemquant.core.artifact.card_metrics import eval_result, rounded
from gemquant.core.artifact.content import content_digest
from gemquant.core.artifact.evaluation import (
    EvaluationDocument,
    Interval,
    SliceEvaluation,
    read_evaluation_document,
)
from gemquant.errors import NotComparableError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def shown_evaluation(place: Path, manifest: Manifest) -> tuple[bytes, Later]:
    """What an artifact keeps of a document, and what its card shows of it."""
    document = _of_artifact(read_evaluation_document(place), manifest, place=place)
    environment = card_environment()
    environment.filters |= {"interval": _interval}
    template = environment.from_string(card_template("gemquant.publish", "evaluation.md.jinja"))
    section = template.render(document=document, artifact=document.artifacts[0], levels=LEVELS)
    return document.to_json(), Later(tuple(_results(document)), section)


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


def _results(document: EvaluationDocument) -> Iterator[EvalResult]:
    suite = {"suite": document.suite.name, "suite_version": document.suite.version}
    for level in document.artifacts[0].levels:
        for each in level.slices:
            for metric, figure in _figures(each).items():
                yield eval_result(
                    each.slice,
                    metric,
                    figure.value,
                    level=level.level,
                    revision=each.token_stream,
                    dataset_args={
                        **suite,
                        "windows": len(each.windows.tokens),
                        "tokens": sum(each.windows.tokens),
                    },
                    metric_args={
                        "runtime": level.runtime,
                        "interval_95": [rounded(figure.low), rounded(figure.high)],
                    },
                )


def _figures(each: SliceEvaluation) -> dict[tuple[str, str], Interval]:
    return {
        ("perplexity", "Perplexity after quantization"): each.perplexity_quantized,
        ("perplexity", "Perplexity of the original"): each.perplexity_original,
        ("kl_divergence", "KL divergence from the original, mean, nats"): each.kl_mean,
        ("kl_divergence", "KL divergence from the original, median, nats"): each.kl_median,
        ("kl_divergence", "KL divergence from the original, 99 %, nats"): each.kl_p99,
        ("kl_divergence", "KL divergence from the original, 99.9 %, nats"): each.kl_p999,
        ("top1_agreement", "Same first token as the original"): each.top1,
        ("top5_agreement", "Share of the five likeliest tokens in common"): each.top5,
    }


def _interval(figure: Interval) -> str:
    """A value with four significant digits, and its interval."""
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
