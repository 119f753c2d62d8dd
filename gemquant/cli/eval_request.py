"""What ``gemquant eval`` was asked for: one recipe for all artifacts, the text, the destination."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemquant.core.recipe import DEFAULT_EVAL_WINDOWS, Recipe
from gemquant.errors import GemquantError, UsageError, refuse
from gemquant.measure.quality.records import artifact_name

if TYPE_CHECKING:
    from gemquant.calibration.suites import SuiteText
    from gemquant.calibration.windows import TokenWindows
    from gemquant.core.artifact import Artifact
    from gemquant.core.artifact.evaluation import SuiteRecord
    from gemquant.formats.checkpoint import Checkpoint

MACHINE = ("seed", "device", "dtype")
TEXT = ("eval_windows", "eval_slices", "seq_len")
"""Settings whose defaults the artifacts' own recipe gives; a suite gives those of the text."""

SHARED = ("model", "lora", "chat_template", *MACHINE)
RECIPE = "recipe"
"""Name of the suite that an artifact's own recipe describes."""


def name_problems(artifacts: Sequence[Artifact]) -> list[GemquantError]:
    """Artifacts of one name, which nobody could tell apart in a document."""
    named: dict[str, list[str]] = {}
    for each in artifacts:
        named.setdefault(artifact_name(each), []).append(str(each.path))
    return [
        UsageError(
            f"{', '.join(paths)}: one name, {name}, for several artifacts.",
            hint="Rename a folder, or measure them one by one.",
        )
        for name, paths in named.items()
        if len(paths) > 1
    ]


def shared_recipe(artifacts: Sequence[Artifact], given: dict[str, Any]) -> Recipe:
    """Return the artifacts' recipe with what was given in its place.

    UsageError for every setting in which their recipes differ and that was not given.
    """
    if not artifacts:
        raise UsageError("No artifact can be opened, so that none says what to measure on.")
    values = {name: given[name] for name in (*MACHINE, *TEXT) if given[name] is not None}
    if given["against"] is not None:
        values["model"] = given["against"]
    own = [_own_recipe(each) for each in artifacts]
    needed = SHARED if given["suite"] is not None else (*SHARED, *TEXT)
    differing = {
        name: found
        for name in needed
        if name not in values
        and len(found := [getattr(each, name) for each in own]) > 1
        and any(value != found[0] for value in found)
    }
    refuse(
        [
            UsageError(
                f"{name}: "
                + ", ".join(
                    f"{artifact.path} has {value}"
                    for artifact, value in zip(artifacts, found, strict=True)
                )
                + "; artifacts of one run share it.",
                hint=_flag_for(name),
            )
            for name, found in differing.items()
        ]
    )
    return dataclasses.replace(own[0], **values)


def _own_recipe(artifact: Artifact) -> Recipe:
    """Return an artifact's recipe, its model pinned to the revision that was read."""
    source = artifact.manifest.source
    recipe = Recipe.from_dict(artifact.manifest.recipe)
    if source.revision is not None:
        model = f"{source.ref.partition('@')[0]}@{source.revision}"
        recipe = dataclasses.replace(recipe, model=model)
    if recipe.eval_windows == 0:
        recipe = dataclasses.replace(recipe, eval_windows=DEFAULT_EVAL_WINDOWS)
    return recipe


def _flag_for(name: str) -> str:
    if name == "model":
        return "Name one original for all: --against MODEL."
    if name in TEXT:
        return f"Use --suite default, or give --{name.replace('_', '-')}."
    if name in MACHINE:
        return f"Give --{name}."
    return "Measure them one by one."


def asked_suite(given: Mapping[str, Any]) -> SuiteText | None:
    """The suite asked for, with the slices, windows and length asked for; None for the recipe's."""
    from gemquant.calibration.suites import SuiteText

    if given["suite"] is None:
        return None
    return SuiteText.named(given["suite"]).reduced(
        slices=given["eval_slices"],
        windows=given["eval_windows"],
        seq_len=given["seq_len"],
    )


def other_files(artifacts: Sequence[Artifact], original: Checkpoint) -> Iterator[str]:
    """A caution for every artifact that was made from other weight files than the original's."""
    here = set(original.source_digest().values())
    for each in artifacts:
        if set(each.manifest.source.files.values()) != here:
            yield (
                f"caution: {each.path} was made from other weight files than {original.ref} has; "
                "what is measured is the difference of the two."
            )


@dataclass(frozen=True)
class EvaluationText:
    """What is measured on, and what a document says of it."""

    slices: Sequence[TokenWindows]
    record: SuiteRecord


def evaluation_text(recipe: Recipe, given: dict[str, Any], original: Checkpoint) -> EvaluationText:
    """Read the suite asked for, or the text of the artifacts' own recipe.

    UsageError for a suite or slice that there is not, or an empty one; CalibrationError for text
    that cannot be used or is too short.
    """
    from gemquant.calibration.text import VERSION
    from gemquant.calibration.windows import stream_digest
    from gemquant.cli.preparation import chat_template, read_evaluation
    from gemquant.core.artifact.evaluation import SuiteRecord

    template = chat_template(recipe, original)
    suite = asked_suite(given)
    if suite is None:
        name, version = RECIPE, VERSION
        slices = read_evaluation(recipe, original, template)
        if not slices:
            raise UsageError(
                "--eval-windows 0: an empty suite; nothing would be measured.",
                hint="--suite default, or --eval-windows 4",
            )
    else:
        name, version = suite.name, suite.version
        slices = suite.token_windows(
            original.tokenizer(),
            seed=recipe.seed,
            bos=original.config["bos_token_id"],
            chat_template=template,
        )
    digest = stream_digest([windows.ids for windows in slices])
    return EvaluationText(slices, SuiteRecord(name=name, version=version, token_stream=digest))
