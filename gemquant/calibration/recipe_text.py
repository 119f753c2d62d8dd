"""The texts that a recipe names, as windows of its checkpoint's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from gemquant.calibration.windows import TokenWindows, calibration_windows, evaluation_windows
from gemquant.core.recipe import Recipe
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate, choose_template


def chat_template(recipe: Recipe, checkpoint: Checkpoint) -> ChatTemplate:
    """The template that was requested, by name or from a file, or else the checkpoint's."""
    source = choose_template(
        recipe.chat_template,
        checkpoint.chat_template(),
        architecture_of(checkpoint.config).chat,
    )
    return ChatTemplate(source, checkpoint.special_tokens())


def calibration_text(
    recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate
) -> TokenWindows:
    """Read the calibration text and cut it into windows."""
    return calibration_windows(
        checkpoint.tokenizer(),
        source=recipe.calib,
        samples=recipe.samples,
        seq_len=recipe.seq_len,
        seed=recipe.seed,
        bos=checkpoint.config["bos_token_id"],
        chat_template=template,
    )


def evaluation_text(
    recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate
) -> Sequence[TokenWindows]:
    """Read the evaluation text; empty if the recipe has no certificate."""
    if recipe.eval_windows == 0:
        return ()
    return evaluation_windows(
        checkpoint.tokenizer(),
        slices=recipe.eval_slices,
        windows=recipe.eval_windows,
        seq_len=recipe.seq_len,
        seed=recipe.seed,
        bos=checkpoint.config["bos_token_id"],
        chat_template=template,
    )
