"""Tensor names of every Gemma checkpoint, brought to those of the text-only model."""

from __future__ import annotations

# Multimodal Gemma 3, as published and as newer versions of transformers save it.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_NOT_TEXT = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)
# A buffer that early checkpoints saved with the weights; it follows from the configuration.
_DERIVED = "rotary_emb.inv_freq"


def text_name(name: str) -> str | None:
    """Return the text-only model's name for a tensor, or None if it is no part of that model.

    >>> text_name("language_model.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> text_name("vision_tower.vision_model.embeddings.patch_embedding.weight")
    """
    if name.startswith(_NOT_TEXT) or name.endswith(_DERIVED):
        return None
    for prefix, replacement in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
