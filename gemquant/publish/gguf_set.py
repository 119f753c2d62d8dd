"""A repository that holds several GGUF files of one model: all flat, one card, a manifest each.

llama.cpp, Ollama and LM Studio choose a file of such a repository by its type: ``ME/NAME:Q4_K_M``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from gemquant.core.artifact import Artifact, Manifest, fallbacks_by_reason, read_manifest
from gemquant.core.artifact.card import (
    CARD_FILE,
    Inherited,
    adapters,
    card_template,
    card_text,
    front_matter,
    inherited_again,
    origin,
    recipe_json,
    repository_in,
)
from gemquant.core.artifact.evaluation import LEVELS
from gemquant.core.artifact.finalize import ABOUT_FILES, MANIFESTS, PICTURE, manifests_in
from gemquant.core.artifact.loading import loaders
from gemquant.core.artifact.losses import (
    OVERALL,
    Overall,
    compared_cells,
    compared_columns,
    headline,
    overall_results,
)
from gemquant.core.artifact.manifest import model_name, original_bytes, scheme_label
from gemquant.core.resources import human_bytes
from gemquant.core.tables import Column, Table, markdown, number
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import ArtifactError, GemquantError, UsageError, refuse
from gemquant.models.architecture import ARCHITECTURES
from gemquant.publish.card import Card

CONTAINER = "gguf"
_CARD_LIMIT_BYTES = 10_000_000


def set_problems(artifacts: Sequence[Artifact], present: Sequence[Manifest]) -> list[GemquantError]:
    """Why artifacts cannot share one repository. present: of files already there."""
    problems: list[GemquantError] = [
        UsageError(
            f"{each.path}: its container is {each.manifest.container}; only GGUF files share a "
            "branch.",
            hint=f"gemquant push {each.path} OWNER/NAME",
        )
        for each in artifacts
        if each.manifest.container != CONTAINER
    ]
    if problems:
        return problems
    manifests = [each.manifest for each in artifacts]
    names = sorted({model_name(each) for each in [*manifests, *present]})
    if len(names) > 1:
        problems.append(UsageError(f"{', '.join(names)}: a repository is of one model."))
    for label, count in Counter(map(scheme_label, manifests)).items():
        if count > 1:
            problems.append(UsageError(f"{count} artifacts are of type {label}: give one."))
    return problems


def set_files(
    artifacts: Sequence[Artifact], present: Sequence[Manifest], repository: str
) -> dict[str, bytes]:
    """The files that are made for the repository: its card, its picture, a manifest per artifact.

    present: manifests of what the repository holds already and what stays there.
    """
    ours = {scheme_label(each.manifest): shared(each.manifest) for each in artifacts}
    every = {scheme_label(each): each for each in present} | ours
    manifests = sorted(every.values(), key=lambda each: -_weight_bytes(each))
    old = (artifacts[0].path / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    picture = size_and_loss(manifests)
    card = _card(manifests, repository, inherited_again(old), PICTURE if picture else None)
    made = {f"{MANIFESTS}/{label}.json": each.to_json() for label, each in ours.items()}
    made[CARD_FILE] = card.encode()
    return made | ({PICTURE: picture.encode()} if picture else {})


def set_card(folder: Path) -> Card:
    """The card and the picture of a repository's folder, from the manifests in it."""
    card = UntrustedFile(folder / CARD_FILE, _CARD_LIMIT_BYTES, ArtifactError).bytes()
    found = [Artifact(folder, read_manifest(folder, name)) for name in manifests_in(folder)]
    refuse(set_problems(found, ()))
    named = repository_in(card.decode(errors="replace")) or "OWNER/NAME"
    made = {k: v for k, v in set_files(found, (), named).items() if k in {CARD_FILE, PICTURE}}
    changed = {
        name: content
        for name, content in made.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    }
    return Card(folder, found[0].manifest, made[CARD_FILE].decode(), changed)


def shared(manifest: Manifest) -> Manifest:
    """The manifest of an artifact without a card of its own."""
    files = {name: file for name, file in manifest.files.items() if name not in ABOUT_FILES}
    return manifest.model_copy(update={"files": files})


def _ggufs(manifest: Manifest) -> list[str]:
    return sorted(name for name in manifest.files if name.endswith(".gguf"))


def _weight_bytes(manifest: Manifest) -> int:
    return sum(manifest.files[name].bytes for name in _ggufs(manifest))


def _card(
    manifests: Sequence[Manifest], repository: str, inherited: Inherited, picture: str | None
) -> str:
    from huggingface_hub.repocard_data import eval_results_to_model_index

    first = manifests[-1]
    matter = dict(front_matter(first, inherited, index=False))
    results = [
        result
        for each in manifests
        if (level := headline(each.certificates)) is not None
        for result in overall_results(scheme_label(each), level)
    ]
    if results:
        matter["model-index"] = eval_results_to_model_index(f"{model_name(first)} GGUF", results)
    table = Table([Column("type"), *compared_columns(), Column("file")])
    for each in manifests:
        measured = headline(each.certificates)
        cells = compared_cells(_weight_bytes(each), each.quantization.bits_per_weight, measured)
        table.add_row(scheme_label(each), *cells, ", ".join(_ggufs(each)))
    return card_text(
        card_template("gemquant.publish", "set.md.jinja"),
        matter,
        inherited,
        title=f"{model_name(first)} GGUF, for llama.cpp",
        origin=origin(first),
        adapters=adapters(first),
        terms=ARCHITECTURES[first.architecture].licence.card,
        before=human_bytes(original_bytes(first)),
        table="\n".join(markdown(table)),
        legend=OVERALL,
        picture=picture,
        loaders=loaders(_recommended(manifests), repository),
        levels=LEVELS,
        files=[
            {
                "label": scheme_label(each),
                "manifest": each,
                "levels": [level for level in each.certificates if level.slices],
                "fallbacks": fallbacks_by_reason(each),
                "recipe": recipe_json(each),
            }
            for each in manifests
        ],
        linears=1,
    )


def _recommended(manifests: Sequence[Manifest]) -> Manifest:
    """The file that the commands name: Q4_K_M, which most people take, or the smallest."""
    common = (each for each in manifests if scheme_label(each) == "Q4_K_M")
    return next(common, manifests[-1])


# ---------------------------------------------------------------- the picture

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 720, 36, 340


def size_and_loss(manifests: Sequence[Manifest]) -> str:
    """Size against mean KL divergence as an SVG, both logarithmic; empty without two points."""
    points = [
        (scheme_label(each), _weight_bytes(each), Overall.of(level).kl_mean)
        for each in manifests
        if (level := headline(each.certificates)) is not None
    ]
    points = [point for point in points if point[2] > 0]
    if len(points) < 2:
        return ""
    x = _axis([size for _, size, _ in points], _LEFT, _RIGHT)
    y = _axis([kl for *_, kl in points], _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        '<g font-family="sans-serif" font-size="13" fill="#1b2330">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="#a3adbb"/>',
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">size</text>',
        f'<text x="{_LEFT}" y="20">mean KL divergence from the original, nats per token</text>',
    ]
    line = "L".join(f"{x[size]:.1f} {y[kl]:.1f}" for _, size, kl in points)
    parts.append(f'<path d="M{line}" fill="none" stroke="#a3adbb" stroke-dasharray="5 4"/>')
    for label, size, kl in points:
        parts.append(f'<circle cx="{x[size]:.1f}" cy="{y[kl]:.1f}" r="5" fill="#0072b2"/>')
        parts.append(f'<text x="{x[size] + 9:.1f}" y="{y[kl] - 7:.1f}">{escape(label)}</text>')
    for end in {min(x), max(x)}:
        place = f'x="{x[end]:.1f}" y="{_BOTTOM + 20}" text-anchor="middle"'
        parts.append(f"<text {place}>{human_bytes(int(end))}</text>")
    for kl in {min(y), max(y)}:
        place = f'x="{_LEFT - 8}" y="{y[kl] + 4:.1f}" text-anchor="end"'
        parts.append(f"<text {place}>{number(kl, 2)}</text>")
    return "\n".join([*parts, "</g></svg>\n"])


def _axis(values: Sequence[float], start: float, stop: float) -> Mapping[float, float]:
    """Where values stand between two ends, logarithmically, with room at both."""
    low, high = math.log(min(values)), math.log(max(values))
    room = 0.08 * (stop - start)
    span = (high - low) or 1.0
    return {
        value: start + room + (math.log(value) - low) / span * (stop - start - 2 * room)
        for value in values
    }
