"""The model card: README.md of an artifact, made from its manifest.

Two things come from elsewhere: the original's card, and what was measured later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from gemquant.core.artifact.evaluation import LEVELS, LevelEvaluation, emulated_corners
from gemquant.core.artifact.loading import RUNTIMES, loaders
from gemquant.core.artifact.losses import (
    Overall,
    OverallEmbeddings,
    eval_results,
    from_reference,
    headline,
    legend,
    loss_table,
)
from gemquant.core.artifact.manifest import (
    Manifest,
    fallbacks_by_reason,
    licence_of,
    model_name,
    original_bytes,
    scheme_label,
)
from gemquant.core.resources import human_bytes
from gemquant.core.scheme import describe
from gemquant.core.tables import Bounded, escaped, interval, markdown, matrices, number
from gemquant.models.architecture import ARCHITECTURES
from gemquant.models.structure import FAMILY

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
_LIBRARIES = {"gguf": "gguf", "mlx": "mlx", "onnx": "onnx", "rkllm": "rkllm"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|multilingual|code")
# Ends our part of a card. Nothing from outside can put it there: texts are escaped, on one line.
_ORIGINAL_FOLLOWS = re.compile(
    r"^---\n\n\*The card of .* follows\. It describes the model before "
    r"(?:quantization|conversion)\.\*\n\n",
    re.MULTILINE,
)
_DOWNLOAD = re.compile(r"^hf download ([\w.-]+/[\w.-]+) ", re.MULTILINE)
_LONGEST_TEXT = 10_000


@dataclass(frozen=True)
class Inherited:
    """What a card takes over from the original's: its languages, and its text below our own."""

    languages: tuple[str, ...] = ()
    body: str = ""


@dataclass(frozen=True)
class Later:
    """What was measured later: for the front matter, and Markdown for the text."""

    results: tuple[EvalResult, ...] = ()
    section: str = ""


def inherited_from(original_card: str | None) -> Inherited:
    """Read the card of the model that was converted; its front matter goes, but for languages."""
    card = original_card or ""
    return Inherited(_languages(card), _FRONT_MATTER.sub("", card, count=1).strip())


def inherited_again(card: str) -> Inherited:
    """Read from a card of ours what it inherited when it was made."""
    _, *rest = _ORIGINAL_FOLLOWS.split(card, maxsplit=1)
    return Inherited(_languages(card), rest[0].strip() if rest else "")


def repository_in(card: str) -> str | None:
    """Read from a card of ours for which repository of the Hub it was made, if for any."""
    found = _DOWNLOAD.search(_ORIGINAL_FOLLOWS.split(card, maxsplit=1)[0])
    return found[1] if found else None


def render_card(
    manifest: Manifest,
    *,
    inherited: Inherited | None = None,
    later: Sequence[Later] = (),
    repository: str | None = None,
) -> str:
    """Return the card's Markdown with its YAML front matter.

    manifest: its own record of the card is left out. inherited: the original's text is appended.
    repository: on the Hub, where the card is to stand.
    Texts from outside are escaped, and nothing in them is taken for a template.
    """
    inherited = inherited or Inherited()
    files = {name: file for name, file in manifest.files.items() if name != CARD_FILE}
    title = f"{_name(manifest)}, for {RUNTIMES.get(manifest.container, _library(manifest))}"
    return card_text(
        card_template("gemquant.core.artifact", "card.md.jinja"),
        front_matter(manifest, inherited, later),
        inherited,
        manifest=manifest,
        files=files,
        title=title,
        origin=origin(manifest),
        label=scheme_label(manifest),
        summary=summary(manifest),
        stored=human_bytes(sum(file.bytes for file in files.values())),
        before=human_bytes(original_bytes(manifest)),
        linears=sum(len(scheme.modules) for scheme in manifest.quantization.schemes),
        adapters=adapters(manifest),
        fallbacks=fallbacks_by_reason(manifest),
        source_note=source_note(manifest),
        levels=LEVELS,
        brackets=[corners] if (corners := emulated_corners(manifest.certificates)) else [],
        later=[each.section.strip() for each in later if each.section],
        loaders=loaders(manifest, repository),
        recipe=recipe_json(manifest),
        terms=licence_of(manifest).card,
        embeds=_embeds(manifest),
    )


def card_text(template: str, matter: Mapping[str, Any], inherited: Inherited, **facts: Any) -> str:
    """Fill a template, and the parts that every card has: front matter, terms, the original."""
    environment = card_environment()
    written = yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True, width=100)
    end = card_template("gemquant.core.artifact", "end.md.jinja")
    body = environment.from_string(f"{template.rstrip()}\n\n{end}").render(
        **facts, original_body=inherited.body
    )
    return f"---\n{written}---\n\n{body.rstrip()}\n"


def recipe_json(manifest: Manifest) -> str:
    """The whole recipe, for a card."""
    return json.dumps(dict(manifest.recipe), indent=2, ensure_ascii=False, allow_nan=False)


def summary(manifest: Manifest) -> str:
    """What was lost, in a sentence; empty where nothing was measured."""
    level = headline(manifest.certificates)
    if level is None:
        return ""
    if level.embeddings:
        found = OverallEmbeddings.of(level)
        return (
            f"On our text the mean cosine similarity to the original's embeddings is "
            f"{number(found.cosine, 4)}, and {100 * found.top1:.1f} % of queries find the same "
            f"document first (level {level.level})."
        )
    overall = Overall.of(level)
    return (
        f"On our text it ranks the original's most likely token first {100 * overall.top1:.1f} % "
        f"of the time; the mean KL divergence is {number(overall.kl_mean, 3)} nats per token "
        f"(level {level.level})."
    )


def card_environment() -> SandboxedEnvironment:
    """Templates of a card: a sandbox, with filters that show texts from outside as they are."""
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"md": _escaped, "code": _code, "losses": _losses, "words": describe}
    environment.filters |= {"matrices": matrices, "size": human_bytes, "cell": _cell}
    environment.filters["figure"] = partial(number, digits=3)
    return environment


def card_template(package: str, name: str) -> str:
    """The text of a template."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def front_matter(
    manifest: Manifest, inherited: Inherited, later: Sequence[Later] = (), *, index: bool = True
) -> Mapping[str, Any]:
    """Metadata of the Hub, with the gating fields of Google's own Gemma cards.

    index: with all figures.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index

    bits = sorted({scheme.bits for scheme in manifest.quantization.schemes})
    licence = licence_of(manifest)
    matter: dict[str, Any] = {"license": manifest.license}
    if not licence.listed:
        matter = {"license": "other", "license_name": manifest.license}
    if manifest.license == licence.name:
        matter["license_link"] = licence.link
    if inherited.languages:
        matter["language"] = list(inherited.languages)
    matter |= _lineage(manifest)
    matter |= {
        "library_name": _LIBRARIES.get(manifest.container, _library(manifest)),
        "pipeline_tag": _task(manifest),
        "tags": list(
            dict.fromkeys(
                (
                    FAMILY,
                    *(["sentence-transformers", "feature-extraction"] if _embeds(manifest) else []),
                    manifest.quantization.quantizer,
                    manifest.container,
                    *(f"{n}-bit" for n in bits),
                    *([manifest.conversion.platform] if manifest.conversion else []),
                )
            )
        ),
        "quantized_by": "gemquant",
    }
    if licence.gate:
        matter |= {
            "extra_gated_heading": "Access Gemma on Hugging Face",
            "extra_gated_prompt": licence.gate,
            "extra_gated_button_content": "Acknowledge license",
        }
    results = list(eval_results(_own_levels(manifest)))
    results += [result for each in later for result in each.results]
    if results and index:
        matter["model-index"] = eval_results_to_model_index(_name(manifest), results)
    return matter


def _embeds(manifest: Manifest) -> bool:
    return ARCHITECTURES[manifest.architecture].embeds


def _task(manifest: Manifest) -> str:
    """The Hub's name of what the model is for."""
    if _embeds(manifest):
        return "sentence-similarity"
    return "image-text-to-text" if manifest.towers else "text-generation"


def _library(manifest: Manifest) -> str:
    """What loads a folder of safetensors."""
    return "sentence-transformers" if _embeds(manifest) else "transformers"


def _own_levels(manifest: Manifest) -> list[LevelEvaluation]:
    """The levels of this artifact; not what would have been lost without smoothing."""
    return [
        level
        for level in manifest.certificates
        if level.emulation is None or manifest.smoothing is None or level.emulation.smoothing
    ]


def adapters(manifest: Manifest) -> list[str]:
    """The merged adapters, as they were named."""
    named = manifest.recipe.get("lora") or []
    return list(map(str, named if isinstance(named, list) else [named]))


def _lineage(manifest: Manifest) -> dict[str, Any]:
    """The base model, and what this one is to it, in the Hub's terms.

    ``adapter`` is for a repository that holds an adapter alone, which no artifact does. One that
    was merged is a parent too; unless something was quantized after it, the relation is ``merge``.
    A conversion to another type is ``quantized`` too: without it the Hub assumes a fine-tune.
    """
    merged_in = adapters(manifest)
    named = [manifest.base_model or "", *(re.split("[@=]", each)[0] for each in merged_in)]
    parents = [name for name in named if _HUB_ID.fullmatch(name)]
    if not parents or parents[0] != manifest.base_model:
        return {}
    merged = bool(merged_in) and not manifest.quantization.schemes
    return {
        "base_model": parents[0] if len(parents) == 1 else parents,
        "base_model_relation": "merge" if merged else "quantized",
    }


def _languages(card: str) -> tuple[str, ...]:
    """What the front matter states, as far as it is a language's code."""
    match = _FRONT_MATTER.match(card)
    try:
        matter = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        matter = None
    stated = matter.get("language") if isinstance(matter, dict) else None
    several = stated if isinstance(stated, list) else [stated]
    return tuple(each for each in several if isinstance(each, str) and _LANGUAGE.fullmatch(each))


def _name(manifest: Manifest) -> str:
    quantization = manifest.quantization
    label = scheme_label(manifest)
    if manifest.container != "gguf":
        widths = "/".join(str(n) for n in sorted({each.bits for each in quantization.schemes}))
        label = (
            f"{quantization.quantizer} {f'{widths}-bit' if widths else quantization.float_dtype}"
        )
    return f"{model_name(manifest)} {label}"


def origin(manifest: Manifest) -> str:
    """Markdown that names the base model, with a link where the Hub has it."""
    name = manifest.base_model or manifest.source.ref
    if _HUB_ID.fullmatch(name):
        return f"[{_escaped(name)}](https://huggingface.co/{name})"
    return _escaped(name)


def source_note(manifest: Manifest) -> str:
    """Say so where the weights compared with had been quantized before."""
    ref = manifest.source.ref
    if ref.startswith("sample:") or ref.endswith(".gguf"):
        return (
            "The source is a GGUF file, whose weights may have been quantized before. “Before” "
            "means those weights, decoded; not the model as first published."
        )
    return ""


def _escaped(text: object) -> str:
    return escaped(str(text), longest=_LONGEST_TEXT, links=True)


def _code(text: object) -> str:
    """Inline code that no backtick in the text can end, also in a table."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if longest else f"`{plain}`"


def _cell(figure: Bounded, *, as_percent: bool = False) -> str:
    """A figure in a cell of a table, its interval below in small type."""
    value, found, bounds = interval(figure, as_percent=as_percent).partition(" [")
    value = value.replace(" ", "&nbsp;")
    return f"{value}<br><sub>[{bounds.replace(' ', '&nbsp;')}</sub>" if found else value


def _losses(levels: Sequence[LevelEvaluation]) -> str:
    """The table of one level, or of a bracket, and how to read it."""
    sentences = [legend(levels), *filter(None, map(from_reference, levels))]
    return "\n".join(
        [*markdown(loss_table(levels)), "", escaped(" ".join(sentences), longest=_LONGEST_TEXT)]
    )
