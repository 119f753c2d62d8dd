"""A Gemma 2 with trained weights, made of the Gemma 3 sample, for tools that read no Gemma 3.

Gemma 2 lacks Gemma 3's norms of queries and keys and its second rope base; all else is the same. So
each query and key projection takes over its norm's weights and the mean of what it divided by, and
is then fitted, layer by layer, to the attention outputs of the original on calibration text. Every
other tensor is the sample's own. It predicts worse than the sample, which is printed; its weights
and activations have the outliers of a trained model, which is what it is for.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import SAMPLE
from torch import Tensor, nn

from gemquant.calibration.windows import Packer, calibration_windows, chat_template
from gemquant.core.recipe import Recipe
from gemquant.formats.checkpoint import open_checkpoint

FITTED_TEXT: Mapping[str, Any] = {"samples": 24, "seq_len": 256, "seed": 7}
"""Other text than benchmarks calibrate on."""

STEPS = 150
BATCH = 4
LEARNING_RATE = 3e-4
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def graft_sample(write: Callable[[Path, Path, Tensor], float], sample: Path, folder: Path) -> float:
    """Write the sample as a folder, and with ``write`` what is made of it; returns its error."""
    cast = [sys.executable, "-m", "gemquant", "cast", SAMPLE, "--quiet", "--no-eval"]
    subprocess.run([*cast, "-o", str(sample)], check=True, stdout=subprocess.DEVNULL)
    checkpoint, recipe = open_checkpoint(SAMPLE), Recipe(SAMPLE, quantizer="", **FITTED_TEXT)
    packer = Packer.of(recipe, checkpoint, chat_template(recipe, checkpoint))
    text = calibration_windows(packer, recipe.calib, recipe.samples)
    return write(sample, folder, text.ids)


def write_grafted(source: Path, folder: Path, ids: Tensor) -> float:
    """Turn a Gemma 3 folder into a Gemma 2 folder in bfloat16.

    ids: (windows, tokens) of text to fit on, shorter than the sliding window. Returns the mean
    relative squared error of the fitted layers' attention outputs.
    """
    from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    original = Gemma3ForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    grafted = Gemma2ForCausalLM(_config(original.config)).float().eval()
    tensors = original.state_dict()
    missing, extra = grafted.load_state_dict(tensors, strict=False)
    assert not missing, missing
    assert all(name.endswith(("q_norm.weight", "k_norm.weight")) for name in extra), extra
    inputs, outputs = _attention_of(original, ids)
    losses = [
        _fit(grafted, original, index, inputs[index], outputs[index])
        for index in range(original.config.num_hidden_layers)
    ]
    grafted.to(torch.bfloat16).save_pretrained(folder)
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return sum(losses) / len(losses)


def _config(original: Any) -> Any:
    """The same sizes; no soft caps, which Gemma 3 has not, and the local rope base for all."""
    from transformers import Gemma2Config

    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_activation",
        "max_position_embeddings", "rms_norm_eps", "query_pre_attn_scalar", "sliding_window",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    values: dict[str, Any] = {name: getattr(original, name) for name in same}
    return Gemma2Config(**{**values, **dict.fromkeys(SOFTCAPS)})


@torch.no_grad()
def _attention_of(model: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into and comes out of each layer's attention: (windows, tokens, hidden) each."""
    inputs: list[list[Tensor]] = [[] for _ in model.model.layers]
    outputs: list[list[Tensor]] = [[] for _ in model.model.layers]

    def remember(index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, args: Any, result: Any) -> None:
            inputs[index].append(args["hidden_states"])
            outputs[index].append(result[0])

        return hook

    hooks = [
        layer.self_attn.register_forward_hook(remember(index), with_kwargs=True)
        for index, layer in enumerate(model.model.layers)
    ]
    for window in ids:
        model.model(window[None])
    for hook in hooks:
        hook.remove()
    return [torch.cat(each) for each in inputs], [torch.cat(each) for each in outputs]


def _fit(grafted: Any, original: Any, index: int, inputs: Tensor, wanted: Tensor) -> float:
    """Fold a layer's norms into its projections, then fit those; returns the error left."""
    old, new = original.model.layers[index].self_attn, grafted.model.layers[index].self_attn
    new.requires_grad_(requires_grad=False)
    for name in ("q", "k"):
        linear, norm = getattr(new, f"{name}_proj"), getattr(old, f"{name}_norm")
        with torch.no_grad():
            heads = linear(inputs).unflatten(-1, (-1, new.head_dim))
            divided_by = heads.square().mean(-1).add(norm.eps).sqrt().mean((0, 1))  # per head
            scale = (1 + norm.weight)[None, :] / divided_by[:, None]
            linear.weight *= scale.flatten()[:, None]
        linear.weight.requires_grad_()
    optimizer = torch.optim.Adam([new.q_proj.weight, new.k_proj.weight], LEARNING_RATE)
    tokens = inputs.shape[1]
    rope = grafted.model.rotary_emb(inputs, torch.arange(tokens)[None])
    causal = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    size = wanted.square().mean()
    generator = torch.Generator().manual_seed(index)
    loss = torch.zeros(())
    for _ in range(STEPS):
        some = torch.randperm(len(inputs), generator=generator)[:BATCH]
        found, _weights = new(inputs[some], rope, causal)
        loss = (found - wanted[some]).square().mean() / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
