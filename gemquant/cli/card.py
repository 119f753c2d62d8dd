"""``gemquant card``: regenerate an artifact's model card from its manifest."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gemquant.cli.artifacts import artifact_folders, downloaded, folders_at, is_set, require_there
from gemquant.cli.flags import artifacts_argument, flag, flags, output_flags, path_flag
from gemquant.cli.render import print_json
from gemquant.errors import UsageError, echo

CARD_FILES = ("manifests/*.json", "*.json", "README.md", "size-and-loss*")
"""What a card is made of."""


@click.command(
    "card",
    epilog="""\b
Examples:
  gemquant card gemma-2-2b-awq --check
  gemquant card gemma-2-2b-awq --evaluation eval.json --tasks tasks.json
  gemquant card gemma-2-2b-awq -o preview.md
  gemquant card --collection gemma-2-2b-quants
  gemquant card --collection quants/gemma-2-2b-awq quants/gemma-2-2b-GGUF""",
)
@flags(
    artifacts_argument(),
    flag(
        "--collection",
        "Write one README.md for all artifacts, with a table, a picture, and what fits which "
        "memory.",
    ),
    path_flag(
        "--evaluation", "Add the figures of `gemquant eval --output FILE` to card and artifact."
    ),
    path_flag("--tasks", "Add the scores of `gemquant tasks --output FILE`."),
    click.Option(
        ["-o", "--output"],
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write the card to this file and leave the artifact unchanged; with --collection the "
        "folder of card and picture.  [default with it: the folder that holds all]",
    ),
    flag("--check", "Only check whether the card is up to date."),
    flag("--force", "Replace an existing --output, or a README.md of yours."),
    *output_flags(),
)
def command(
    artifacts: tuple[Path, ...],
    *,
    collection: bool,
    evaluation: Path | None,
    tasks: Path | None,
    output: Path | None,
    check: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an artifact's model card again, with later measurements.

    ARTIFACT may be a folder of artifacts, each with its card, or a repository of several GGUF
    files, downloaded, or by its id on the Hub with --check or -o. Writes README.md with the Hub's
    front matter (base model and relation, licence, gating, measurements as a model-index) from the
    manifest and the original's card. Card, evaluation and manifest change together, so `gemquant
    verify` still passes. --check exits with 6 if the card is out of date.
    """
    require_there(artifacts)
    del quiet  # it takes no time
    words = shlex.join(map(str, artifacts))
    given = [evaluation, tasks, *([] if collection else [output])]
    if check and any(each is not None for each in given):
        raise UsageError(
            "--check compares the card that is there: it goes with no other file.",
            hint=f"gemquant card {words} --check",
        )
    if collection:
        if evaluation is not None or tasks is not None:
            raise UsageError("--evaluation, --tasks: a collection's card shows certificates.")
        _print([_of_collection(artifacts, output, check=check, force=force)], as_json=as_json)
        return
    if len(artifacts) > 1:
        raise UsageError(
            f"{len(artifacts)} artifacts: a card is of one, or of a collection.",
            hint=f"gemquant card --collection {words}",
        )
    artifact = artifacts[0]
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
            hint=f"One card for all: gemquant card --collection {artifact}",
        )
    from gemquant.publish.card import make_card, refuse_stale, save_card, write_card
    from gemquant.publish.collection import set_card

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
    _print(documents, as_json=as_json)


def _of_collection(
    paths: Sequence[Path], output: Path | None, *, check: bool, force: bool
) -> dict[str, Any]:
    """Write one card for all, or check it."""
    folders = artifact_folders(paths)

    from gemquant.publish.card import refuse_stale, write_card
    from gemquant.publish.collection import collection_card

    parents = {each.resolve().parent for each in folders}
    inside = len(paths) == 1 and folders != [paths[0]]
    folder = output or (paths[0] if inside else Path(os.path.commonpath(parents)))
    card = collection_card(folders, folder, force=force)
    if check:
        refuse_stale(card)
    else:
        write_card(card)
    changed = [] if check else sorted(card.changed)
    return {"path": str(folder), "card": str(folder / "README.md"), "changed": changed}


def _print(documents: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in documents:
        changed = each["changed"]
        state = "up to date" if not changed else f"written; changed: {', '.join(changed)}"
        echo(f"{each['card']}: {state}")
