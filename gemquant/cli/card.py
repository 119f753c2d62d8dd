"""``gemquant card``: regenerate an artifact's model card from its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemquant.cli.artifacts import downloaded, folders_at, is_set
from gemquant.cli.flags import flag, flags, output_flags, path_flag
from gemquant.errors import UsageError, echo

CARD_FILES = ("manifests/*.json", "*.json", "README.md", "*.svg")
"""What a card is made of."""


@click.command(
    "card",
    epilog="""\b
Examples:
  gemquant card gemma-2-2b-awq --check
  gemquant card gemma-2-2b-awq --evaluation eval.json --tasks tasks.json
  gemquant card gemma-2-2b-awq -o preview.md""",
)
@flags(
    click.Argument(["artifact"], type=click.Path(path_type=Path)),
    path_flag(
        "--evaluation", "Add the figures of `gemquant eval --output FILE` to card and artifact."
    ),
    path_flag("--tasks", "Add the scores of `gemquant tasks --output FILE`."),
    click.Option(
        ["-o", "--output"],
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write the card to this file and leave the artifact unchanged.",
    ),
    flag("--check", "Only check whether the card is up to date."),
    flag("--force", "Replace an existing --output."),
    *output_flags(),
)
def command(
    artifact: Path,
    *,
    evaluation: Path | None,
    tasks: Path | None,
    output: Path | None,
    check: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an artifact's model card again, with later measurements.

    ARTIFACT may be a repository of several GGUF files, downloaded, or by its id on the Hub with
    --check or -o. Writes README.md with the Hub's front matter (base model and relation, licence,
    gating, measurements as a model-index) from the manifest and the original's card. Card,
    evaluation and manifest change together, so `gemquant verify` still passes. --check exits with 6
    if the card is out of date.
    """
    from gemquant.cli import render
    from gemquant.publish.card import make_card, refuse_stale, save_card, write_card
    from gemquant.publish.gguf_set import set_card

    del quiet  # it takes no time
    if check and not (output is None and evaluation is None and tasks is None):
        raise UsageError(
            "--check compares the card that is there: it goes with no other file.",
            hint=f"gemquant card {artifact} --check",
        )
    place = downloaded(artifact, CARD_FILES)
    if place != artifact and not check and output is None:
        raise UsageError(
            f"{artifact} is on the Hub, and its card is not changed from here.",
            hint=f"gemquant card {artifact} -o card.md",
        )
    if is_set(place) and (evaluation is not None or tasks is not None):
        raise UsageError(
            "--evaluation, --tasks: the card of a set shows what the manifests in it say.",
        )
    folders = [place] if is_set(place) else folders_at(place)
    if output is not None and len(folders) > 1:
        raise UsageError(
            f"--output: {artifact} holds {len(folders)} artifacts, each with its own card.",
            hint=f"The card of all together: gemquant push {artifact} OWNER/NAME --dry-run",
        )
    cards = [
        set_card(each) if is_set(each) else make_card(each, evaluation=evaluation, tasks=tasks)
        for each in folders
    ]
    documents: list[dict[str, Any]] = []
    for card in cards:
        place = card.artifact / "README.md" if output is None else output
        if check:
            refuse_stale(card)
        elif output is None:
            write_card(card)
        else:
            save_card(card, output, force=force)
        changed = [] if check else sorted(card.changed) if output is None else [str(output)]
        documents.append({"path": str(card.artifact), "card": str(place), "changed": changed})
        if not as_json:
            state = "up to date" if not changed else f"written; changed: {', '.join(changed)}"
            echo(f"{place}: {state}")
    if as_json:
        render.print_json(documents[0] if len(documents) == 1 else documents)
