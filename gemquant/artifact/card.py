"""The model card: README.md of an artifact, made from its manifest alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from gemquant.artifact.loading import loaders
from gemquant.artifact.manifest import Manifest, MeasurementRecord, fallbacks_by_reason
from gemquant.scheme import describe

NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n"
)
"""The text that section 3.1 of the Gemma Terms of Use asks every copy to carry in a NOTICE."""

_LEVELS = {
    "reference": "Stored weights, decoded and run in torch: what quantization alone costs.",
    "native": "The finished artifact in the runtime that its container is made for.",
    "emulated": "A model of the device's arithmetic; not the device.",
    "vendor-sim": "The vendor's own simulator; not the device.",
}
_LIBRARIES = {"gguf": "gguf", "mlx": "mlx", "rkllm": "rkllm"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*(\n|\Z)", re.DOTALL)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~])")


def render_card(manifest: Manifest, *, original_card: str | None = None) -> str:
    """Return the card's Markdown with its YAML front matter.

    original_card: the source's README.md; its front matter is dropped and its body appended. Texts
    from outside are escaped, and nothing in them is taken for a template.
    """
    matter = yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True, width=100)
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"md": _escaped, "code": _code, "measured": _measured, "words": describe}
    template = environment.from_string(
        files("gemquant.artifact").joinpath("card.md.jinja").read_text(encoding="utf-8")
    )
    body = template.render(
        manifest=manifest,
        title=_title(manifest),
        origin=_origin(manifest),
        linears=sum(len(scheme.modules) for scheme in manifest.quantization.schemes),
        adapter=manifest.recipe.get("lora"),
        fallbacks=fallbacks_by_reason(manifest),
        source_note=_source_note(manifest),
        levels=_LEVELS,
        loaders=loaders(manifest),
        recipe=json.dumps(dict(manifest.recipe), indent=2, ensure_ascii=False, allow_nan=False),
        original_body=_FRONT_MATTER.sub("", original_card or "", count=1).strip(),
    )
    return f"---\n{matter}---\n\n{body.rstrip()}\n"


def _front_matter(manifest: Manifest) -> Mapping[str, Any]:
    """Metadata of the Hub, with the gating fields of Google's own Gemma cards."""
    bits = sorted({scheme.bits for scheme in manifest.quantization.schemes})
    matter: dict[str, Any] = {"license": manifest.license}
    if manifest.license == "gemma":
        matter["license_link"] = "https://ai.google.dev/gemma/terms"
    if _HUB_ID.fullmatch(manifest.base_model or ""):
        matter["base_model"] = manifest.base_model
        if manifest.quantization.schemes:
            matter["base_model_relation"] = "quantized"
    return {
        **matter,
        "library_name": _LIBRARIES.get(manifest.container, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": list(
            dict.fromkeys(
                (
                    "gemma",
                    manifest.quantization.quantizer,
                    manifest.container,
                    *(f"{n}-bit" for n in bits),
                    *([manifest.conversion.platform] if manifest.conversion else []),
                )
            )
        ),
        "quantized_by": "gemquant",
        "extra_gated_heading": "Access Gemma on Hugging Face",
        "extra_gated_prompt": (
            "To access Gemma on Hugging Face, you’re required to review and agree to Google’s "
            "usage license. To do this, please ensure you’re logged in to Hugging Face and click "
            "below. Requests are processed immediately."
        ),
        "extra_gated_button_content": "Acknowledge license",
    }


def _title(manifest: Manifest) -> str:
    name = (manifest.base_model or manifest.source.ref).rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, {manifest.quantization.quantizer}"


def _origin(manifest: Manifest) -> str:
    """Markdown that names the base model, with a link where the Hub has it."""
    name = manifest.base_model or manifest.source.ref
    if _HUB_ID.fullmatch(name):
        return f"[{_escaped(name)}](https://huggingface.co/{name})"
    return _escaped(name)


def _source_note(manifest: Manifest) -> str:
    """Say so where the weights compared with had been quantized before."""
    ref = manifest.source.ref
    if ref.startswith("sample:") or ref.endswith(".gguf"):
        return (
            "The source is a GGUF file, whose weights may have been quantized before. “Before” "
            "means those weights, decoded; not the model as first published."
        )
    return ""


def _escaped(text: object) -> str:
    """Text that Markdown shows as it is, also in a table."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def _code(text: object) -> str:
    """Inline code that no backtick in the text can end, also in a table."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if longest else f"`{plain}`"


def _measured(record: MeasurementRecord) -> str:
    """A value with as many digits as its standard error warrants: 12.34 ± 0.05."""
    if record.standard_error == 0:
        return f"{record.value:.4g}"
    decimals = max(0, 1 - Decimal(record.standard_error).adjusted())
    return f"{record.value:.{decimals}f} ± {record.standard_error:.{decimals}f}"
