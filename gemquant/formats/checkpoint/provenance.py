"""Where a model comes from and under which terms, from its card and configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gemquant.core.untrusted import hub_repository
from gemquant.errors import CheckpointError
from gemquant.formats.checkpoint.files import contained

MAX_CARD_BYTES = 5_000_000

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Provenance:
    """The origin that an artifact's card must name.

    base_model: Hub id where known, otherwise the folder's or file's name. license: as on a model
    card (``gemma``). card: the source's README.md with its front matter, if it has one.
    name: what the checkpoint itself is called where base_model is its parent.
    """

    base_model: str
    license: str
    card: str | None
    name: str | None = None


def folder_provenance(
    folder: Path, raw_config: Mapping[str, Any], *, assumed_license: str
) -> Provenance:
    """Read a folder's origin.

    The base model is the folder's Hub id: its place in the Hub cache, or the name under which it
    was saved; failing that the base model in its card; failing that its name.
    assumed_license: where the card names none.
    """
    card = _card(folder)
    matter = front_matter(card or "")
    saved_as = raw_config.get("_name_or_path")
    hub_names = _hub_ids(hub_repository(folder), saved_as)
    parents = _hub_ids(matter.get("base_model"))
    name = hub_names[0] if hub_names else folder.resolve().name
    declared = declared_license(matter)
    return Provenance(
        base_model=[*hub_names, *parents, name][0],
        license=declared or assumed_license,
        card=card,
        name=name if parents and not hub_names else None,
    )


def is_same_model(named: str, ref: str, provenance: Provenance) -> bool:
    """Whether a name that an adapter has for its base is the checkpoint that ``ref`` opened.

    Local paths are compared resolved; one that is not here, as from another machine, by its name.
    """
    here = ref.partition("@")[0]
    if named in (here, provenance.base_model, provenance.name):
        return True
    theirs, ours = (os.path.expanduser(path) for path in (named, here))  # noqa: PTH111
    if os.path.exists(theirs) and os.path.exists(ours):  # noqa: PTH110 - False for any text
        return os.path.realpath(theirs) == os.path.realpath(ours)
    return Path(named).name in (Path(here).name, Path(provenance.base_model).name)


def _hub_ids(*candidates: object) -> list[str]:
    return [c for c in candidates if isinstance(c, str) and _HUB_ID.fullmatch(c)]


def gguf_provenance(path: Path, metadata: Mapping[str, Any], *, assumed_license: str) -> Provenance:
    """Read a GGUF's origin from its general metadata; failing that, the file's name.

    assumed_license: where it names none.
    """
    candidates = [
        metadata.get("general.base_model.0.repo_url"),
        metadata.get("general.repo_url"),
        metadata.get("general.source.huggingface.repository"),
    ]
    ids = [c.removeprefix("https://huggingface.co/") for c in candidates if isinstance(c, str)]
    known = [c for c in ids if _HUB_ID.fullmatch(c)]
    named = {key: metadata.get(f"general.{key.replace('_', '.')}") for key in _LICENCE_KEYS}
    declared = declared_license(named)
    return Provenance(
        base_model=known[0] if known else path.stem,
        license=declared or assumed_license,
        card=None,
    )


_LICENCE_KEYS = ("license", "license_name")


def declared_license(matter: Mapping[str, Any]) -> str | None:
    """What a card names; the name of one that the Hub does not list; None where it names none."""
    licence, name = (matter.get(key) for key in _LICENCE_KEYS)
    chosen = name if licence == "other" and isinstance(name, str) else licence
    return chosen if isinstance(chosen, str) else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML mapping at the top of a model card; empty where there is none."""
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", card, re.DOTALL)
    if match is None:
        return {}
    try:
        matter = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return matter if isinstance(matter, dict) else {}


def _card(folder: Path) -> str | None:
    if not (folder / "README.md").exists():
        return None
    try:
        path = contained(folder, "README.md")
    except CheckpointError:
        return None  # the card is optional; a link out of the folder is not followed
    if path.stat().st_size > MAX_CARD_BYTES:
        return None
    return path.read_text(encoding="utf-8", errors="replace")
