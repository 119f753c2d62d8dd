"""The model card: README.md of an artifact, made from its manifest alone."""

from __future__ import annotations

from gemquant.artifact.manifest import Manifest

NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n"
)


def render_card(manifest: Manifest, *, original_card: str | None = None) -> str:
    """Return the card's Markdown with its YAML front matter."""
    return f"# {manifest.source.ref}\n" + (original_card or "")
