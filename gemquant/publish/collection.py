"""A repository of several artifacts of one model: one card with a table and a picture.

GGUF files may lie flat, a manifest of each in ``manifests/``: llama.cpp, Ollama and LM Studio
choose a file by its type, ``ME/NAME:Q4_K_M``. Any artifacts may each lie in a folder of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemquant.convert.estimate import read_headers
from gemquant.core.artifact import Artifact, Manifest, fallbacks_by_reason, read_manifest
from gemquant.core.artifact.card import (
    CARD_FILE,
    adapters,
    card_template,
    card_text,
    front_matter,
    inherited_again,
    origin,
    recipe_json,
    repository_in,
    source_note,
)
from gemquant.core.artifact.evaluation import LEVELS, measured_slices
from gemquant.core.artifact.finalize import ABOUT_FILES, IMATRIX_ENDING, PICTURES, manifests_in
from gemquant.core.artifact.loading import FOLDER, Loader, loaders
from gemquant.core.artifact.losses import overall_results
from gemquant.core.artifact.manifest import (
    licence_of,
    model_name,
    original_bytes,
    scheme_label,
    tower_file,
)
from gemquant.core.resources import human_bytes
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import ArtifactError, GemquantError, OutputError, UsageError, refuse
from gemquant.publish import picture
from gemquant.publish.card import Card
from gemquant.publish.figures import (
    BANDS,
    USUAL_KL,
    Member,
    by_family,
    context_of,
    fitting,
    recommended,
)

GGUF = "gguf"
UNNAMED = "OWNER/NAME"
"""In place of a repository that is not known yet."""
_CARD_LIMIT_BYTES = 10_000_000
_MEMORY_SECTION = re.compile(r"^## What fits\n.*?(?=^## )", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Collection:
    """Artifacts of one model, and what their common card takes over.

    before: the original's card, at the end of each artifact's own or of the common one. config: the
    model's, for memory; None where no artifact that has it is here. repository: None if unknown.
    imatrix: name of an importance matrix beside them.
    """

    members: Sequence[Member]
    before: str
    config: Mapping[str, Any] | None
    repository: str | None = None
    imatrix: str | None = None

    @classmethod
    def of(
        cls,
        artifacts: Mapping[str, Artifact],
        present: Mapping[str, Manifest] | None = None,
        *,
        repository: str | None = None,
        imatrix: str | None = None,
    ) -> Collection:
        """artifacts: by their folder in the repository, with a slash, or by their label if flat.

        present: likewise, what is in the repository already and stays there.
        """
        manifests = dict(present or {}) | {name: each.manifest for name, each in artifacts.items()}
        found = {
            name: Member(each, name) if name.endswith("/") else Member(shared(each))
            for name, each in manifests.items()
        }
        first = next(iter(artifacts.values()))
        before = (first.path / CARD_FILE).read_text(encoding="utf-8", errors="replace")
        members = sorted(found.values(), key=lambda each: (-each.size, each.label))
        return cls(members, before, _config(artifacts.values()), repository, imatrix)

    @property
    def flat(self) -> bool:
        """Whether the files lie next to one another."""
        return not any(each.place for each in self.members)

    @property
    def title(self) -> str:
        """The model, and what this is."""
        containers = {each.manifest.container for each in self.members}
        kind = "GGUF" if containers == {GGUF} else "quantized"
        return f"{model_name(self.members[0].manifest)} {kind}"

    def files(self, old: Mapping[str, bytes]) -> dict[str, bytes]:
        """The card and its pictures. old: those that are there.

        Without matplotlib, pictures that show these members stay; others have no place on the card.
        """
        pictures: dict[str, bytes] = {}
        missing = None
        if picture.drawable(self.members):
            there = {name: old.get(name, b"") for name in PICTURES}
            if all(picture.is_current(n, c, self.members) for n, c in there.items()):
                pictures = there
            elif picture.installed():
                pictures = picture.draw(self.title, self.members)
            else:
                missing = f"{picture.INSTALL}, then make this card again."
        card = self._card(old.get(CARD_FILE, b"").decode(errors="replace"), missing, bool(pictures))
        return {CARD_FILE: card.encode(), **pictures}

    def _card(self, old: str, missing: str | None, pictures: bool) -> str:
        families = by_family(self.members)
        advised = {name: recommended(several) for name, several in families.items()}
        first = self.members[-1].manifest
        inherited = inherited_again(self.before)
        levels = [
            level
            for each in self.members
            for level in each.manifest.certificates
            if measured_slices(level)
        ]
        measured = next((each for each in self.members if each.figures), None)
        name = self.repository or repository_in(old) or UNNAMED
        text = card_text(
            card_template("gemquant.publish", "collection.md.jinja"),
            self._matter(first, inherited),
            inherited,
            title=self.title,
            members=self.members,
            families=families,
            advised=advised,
            usual=USUAL_KL,
            bands=BANDS,
            origin=origin(first),
            adapters=adapters(first),
            before=human_bytes(original_bytes(first)),
            picture=picture.NAME if pictures else None,
            missing=missing,
            original=_original(measured),
            memory=fitting(families, self.config) if self.config else [],
            context=context_of(self.config) if self.config else 0,
            loaders={family: _loaders(each, name) for family, each in advised.items()},
            loses_bos=any(each.manifest.container not in (GGUF, "rkllm") for each in self.members),
            levels=LEVELS,
            measured_levels={level.level for level in levels},
            fallbacks=fallbacks_by_reason,
            recipe=recipe_json,
            revision=first.source.revision,
            source=first.source.ref,
            texts=_texts(self.members),
            libraries={k: v for e in self.members for k, v in e.manifest.libraries.items()},
            flat=self.flat,
            imatrix=self.imatrix,
            source_note=source_note(first),
            folder=name.partition("/")[2],
            terms=licence_of(first).card,
            linears=1,
        )
        if self.config is None and (kept := _MEMORY_SECTION.search(old)):
            text = text.replace("## How to run\n", f"{kept[0]}## How to run\n", 1)
        return text

    def _matter(self, first: Manifest, inherited: Any) -> dict[str, Any]:
        from huggingface_hub.repocard_data import eval_results_to_model_index

        each = [dict(front_matter(m.manifest, inherited, index=False)) for m in self.members]
        matter = dict(front_matter(first, inherited, index=False))
        matter["tags"] = list(dict.fromkeys(tag for one in each for tag in one["tags"]))
        libraries = Counter(one["library_name"] for one in each)
        matter["library_name"] = min(libraries, key=lambda name: (-libraries[name], name))
        matter["pipeline_tag"] = min(one["pipeline_tag"] for one in each)
        results = [
            result
            for member in self.members
            if member.level is not None
            for result in overall_results(member.short, member.level)
        ]
        if results:
            matter["model-index"] = eval_results_to_model_index(self.title, results)
        return matter


def set_problems(artifacts: Sequence[Artifact], present: Sequence[Manifest]) -> list[GemquantError]:
    """Why artifacts cannot lie flat in one repository. present: of files already there."""
    problems: list[GemquantError] = [
        UsageError(
            f"{each.path}: its container is {each.manifest.container}; only GGUF files lie flat in "
            "a repository.",
            hint="--layout folders gives each artifact a folder of its own.",
        )
        for each in artifacts
        if each.manifest.container != GGUF
    ]
    if problems:
        return problems
    manifests = [each.manifest for each in artifacts]
    for label, count in Counter(map(scheme_label, manifests)).items():
        if count > 1:
            problems.append(UsageError(f"{count} artifacts are of type {label}: give one."))
    digests: dict[str, set[str]] = {}
    for each in [*manifests, *present]:
        if (towers := tower_file(each)) is not None:
            digests.setdefault(towers, set()).add(each.files[towers].sha256)
    problems += [
        UsageError(f"{name}: artifacts have {len(each)} different ones; a repository holds one.")
        for name, each in digests.items()
        if len(each) > 1
    ]
    return problems + model_problems([*manifests, *present])


def model_problems(manifests: Sequence[Manifest]) -> list[GemquantError]:
    """Why artifacts are not of one model."""
    names = sorted({model_name(each) for each in manifests})
    several = f"{', '.join(names)}: a repository is of one model."
    return [UsageError(several)] if len(names) > 1 else []


def set_card(folder: Path) -> Card:
    """The card and the pictures of a flat repository's folder, from the manifests in it."""
    UntrustedFile(folder / CARD_FILE, _CARD_LIMIT_BYTES, ArtifactError).bytes()
    found = [Artifact(folder, read_manifest(folder, name)) for name in manifests_in(folder)]
    refuse(set_problems(found, ()))
    return _common(folder, {scheme_label(each.manifest): each for each in found})


def collection_card(artifacts: Sequence[Path], folder: Path, *, force: bool = False) -> Card:
    """The card and the pictures of a folder with artifacts inside.

    force: replace a README.md that is no card of gemquant's. UsageError for artifacts of several
    models, or outside.
    """
    found = [Artifact(each, read_manifest(each)) for each in artifacts]
    root = folder.resolve()
    outside = [each for each in artifacts if root not in each.resolve().parents]
    refuse(
        UsageError(
            f"{each} does not lie in {folder}, where the card is to stand.",
            hint="Move it there, or name another --output.",
        )
        for each in outside
    )
    refuse(model_problems([each.manifest for each in found]))
    card = folder / CARD_FILE
    if card.exists() and not force and not is_ours(card):
        raise OutputError(
            f"{card} is no card of gemquant's.", hint="Give --force to replace it, or another -o."
        )
    places = {f"{e.path.resolve().relative_to(root).as_posix()}/": e for e in found}
    return _common(folder, places)


def is_ours(card: Path) -> bool:
    """Whether a README.md is a card that gemquant wrote."""
    content = UntrustedFile(card, _CARD_LIMIT_BYTES, ArtifactError).bytes()
    return content.startswith(b"---\n") and b"\nquantized_by: gemquant\n" in content


def _common(folder: Path, artifacts: Mapping[str, Artifact]) -> Card:
    names = [CARD_FILE, *PICTURES]
    old = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    imatrix = next((each.name for each in sorted(folder.glob(f"*{IMATRIX_ENDING}"))), None)
    made = Collection.of(artifacts, imatrix=imatrix).files(old)
    changed = {name: content for name, content in made.items() if old.get(name) != content}
    manifest = next(iter(artifacts.values())).manifest
    return Card(folder, manifest, made[CARD_FILE].decode(), changed)


def shared(manifest: Manifest) -> Manifest:
    """The manifest of an artifact without a card of its own."""
    files = {name: file for name, file in manifest.files.items() if name not in ABOUT_FILES}
    return manifest.model_copy(update={"files": files})


def _config(artifacts: Any) -> Mapping[str, Any] | None:
    """The model's configuration, from the first artifact that has it."""
    for each in artifacts:
        member = Member(each.manifest)
        gguf = each.manifest.container == GGUF and member.weights
        place = each.path / member.weights[0] if gguf else each.path
        if not (place if gguf else place / "config.json").is_file():
            continue
        try:
            return read_headers(str(place)).config
        except GemquantError:
            continue
    return None


@dataclass(frozen=True)
class _Original:
    tokens: int
    perplexity: float
    intervals: bool


def _original(measured: Member | None) -> _Original | None:
    if measured is None or measured.figures is None or measured.level is None:
        return None
    tokens = sum(each.token_count for each in measured.level.slices)
    figures = measured.figures
    return _Original(tokens, figures.original, figures.kl_mean.low is not None)


def _texts(members: Sequence[Member]) -> dict[str, str]:
    found = [each.manifest.calibration for each in members]
    return {c.name: f"{c.windows} windows of {c.seq_len} tokens" for c in found if c is not None}


def _loaders(member: Member, repository: str) -> list[Loader]:
    """How to download and run one member of a repository."""
    manifest, folder = member.manifest, repository.partition("/")[2]
    if manifest.container == GGUF and not member.place:
        return [
            *loaders(manifest, repository)[:1],
            Loader(
                f"In LM Studio, search for `{repository}` and choose the type. Other programs take "
                "the file itself:",
                "sh",
                f"hf download {repository} {' '.join(member.weights)} --local-dir {folder}",
            ),
        ]
    inside = member.place.rstrip("/")
    download = f"hf download {repository} --include '{inside}/*' --local-dir {folder}"
    if not member.place:
        download = f"hf download {repository} --local-dir {folder}"
    place = f"{folder}/{inside}".rstrip("/")
    return [
        Loader("To download:", "sh", download),
        *(replace(each, code=each.code.replace(FOLDER, place)) for each in loaders(manifest)),
    ]
