"""A Gemma 4 with trained weights, made of the Gemma 3 sample: no real one is small.

Exact: norms (w for 1 + w), the query scale of 1/16 (in q_norm's gain), both rope bases, head size,
layer types, layer scalars of 1. What is not: Gemma 4 norms values, head by head and without a gain,
which no linear map undoes. Each layer's o_proj is therefore fitted by least squares, layer after
layer on calibration text: from the heads' outputs as they come to the original's attention output,
each token divided by that output's size, as the norm after it does. Left out, since the sample has
none of it: the proportional rope of full layers (theirs is the sample's), wider heads, values from
keys, shared keys and values, per-layer inputs, experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH = 8
DAMPING = 1e-4
"""Of the mean square of a head's outputs."""
SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_activation", "max_position_embeddings",
    "rms_norm_eps", "sliding_window", "layer_types", "rope_parameters", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip


@torch.no_grad()
def write_grafted4(source: Path, folder: Path, ids: Tensor) -> float:
    """Turn a Gemma 3 folder into a Gemma 4 folder in bfloat16.

    ids: (windows, tokens) of text to fit on, shorter than the sliding window. Returns the relative
    squared error of the last layer's output on that text, the first token of each window left out.
    """
    from transformers import Gemma3ForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    original: Any = Gemma3ForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    config = original.config
    sizes = {name: getattr(config, name) for name in SAME}
    sizes |= {"global_head_dim": config.head_dim, "hidden_size_per_layer_input": 0}
    grafted: Any = Gemma4ForCausalLM(Gemma4TextConfig(**sizes))
    grafted.float().eval()
    tensors = {
        name: 1 + tensor if name.endswith("norm.weight") else tensor
        for name, tensor in original.state_dict().items()
    }
    for name, tensor in tensors.items():
        if name.endswith("q_norm.weight"):
            tensor.mul_(config.query_pre_attn_scalar**-0.5)
    missing, extra = grafted.load_state_dict(tensors, strict=False)
    assert not extra, extra
    assert all(name.endswith("layer_scalar") for name in missing), missing  # they are ones
    before = original.model.embed_tokens(ids)
    after = before.clone()
    for index in range(config.num_hidden_layers):
        before, after = _fit(original.model, grafted.model, index, before, after)
    error = (after - before)[:, 1:].square().sum() / before[:, 1:].square().sum()
    grafted.to(torch.bfloat16).save_pretrained(folder)
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return float(error)


def _fit(old: Any, new: Any, index: int, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a layer's o_proj; return both models' hidden states after the layer."""
    seen: list[Tensor] = []
    attention = old.layers[index].self_attn
    hook = attention.register_forward_hook(lambda _module, _args, out: seen.append(out[0]))
    before = _run(old, index, before)
    hook.remove()
    targets = torch.cat(seen).flatten(0, 1).double()
    seen.clear()
    output = new.layers[index].self_attn.o_proj
    hook = output.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    _run(new, index, after)
    hook.remove()
    inputs = torch.cat(seen).flatten(0, 1).double()
    weight = targets.square().mean(-1, keepdim=True).rsqrt()
    targets, inputs = targets * weight, inputs * weight
    gram = inputs.T @ inputs
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    output.weight.copy_(torch.linalg.solve(gram, inputs.T @ targets).T)
    return before, _run(new, index, after)


def _run(model: Any, index: int, hidden: Tensor) -> Tensor:
    """Carry hidden states (windows, tokens, hidden) through one layer."""
    layer, kind, tokens = model.layers[index], model.config.layer_types[index], hidden.shape[1]
    arguments = {
        "position_embeddings": model.rotary_emb(hidden, torch.arange(tokens)[None], kind),
        "attention_mask": torch.full((tokens, tokens), float("-inf")).triu(1)[None, None],
        **({"shared_kv_states": {}} if hasattr(layer, "layer_scalar") else {}),
    }
    parts = [layer(part, **arguments) for part in hidden.split(BATCH)]
    return torch.cat([part[0] if isinstance(part, tuple) else part for part in parts])
