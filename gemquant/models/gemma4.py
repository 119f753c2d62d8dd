"""Gemma 4: two head sizes, norms that multiply by w, layers that share keys and values.

Full layers have wider heads than sliding ones and, in the larger models, take their values from the
keys' projection. In the E models the last layers read the keys and values of earlier ones, and
every layer has an input of its own from a second embedding. One model has experts beside its MLP.

Source: transformers ``configuration_gemma4.py``, ``modeling_gemma4.py`` and those of
``gemma4_unified``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.models.chat_templates import ChatFormat
from gemquant.models.experts import expert_groups, expert_shapes, expert_stacks
from gemquant.models.gemma2 import NORMS
from gemquant.models.gemma4_gguf import IN_GGUF4
from gemquant.models.licences import APACHE
from gemquant.models.mmproj import UNIFIED_MMPROJ
from gemquant.models.structure import (
    FULL,
    LAYER_SCALAR,
    PER_LAYER_NORM,
    PER_LAYER_PROJECTION,
    PER_LAYER_TABLE,
    Architecture,
    InputGroup,
    LayerStructure,
    MlxFacts,
    NormFold,
    RowFold,
)
from gemquant.models.towers import gemma4_image, gemma4_towers, unified_image, unified_towers

_LARGEST = 2**20
_WIDTHS = ("head_dim", "num_key_value_heads")


# ---------------------------------------------------------------- layers


def _reads_shared(config: Mapping[str, Any], index: int) -> bool:
    """Whether a layer reads the keys and values of an earlier one, and has none of its own."""
    return bool(index >= config["num_hidden_layers"] - config["num_kv_shared_layers"])


def _fold(norm: str) -> NormFold:
    return NormFold(norm, offset=0.0)


def _layer(config: Mapping[str, Any], index: int) -> LayerStructure:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    own = config["per_layer_config"].get(str(index), {})
    width, kv_heads = (own.get(key, config[key]) for key in _WIDTHS)
    kind, shared = config["layer_types"][index], _reads_shared(config, index)
    inner = config["intermediate_size"] * (2 if shared and config["use_double_wide_mlp"] else 1)
    from_keys = config["attention_k_eq_v"] and kind == FULL
    kv = () if shared else ("self_attn.k_proj", *(() if from_keys else ("self_attn.v_proj",)))
    normed = (kv[-1], width) if kv else None  # makes the values
    groups = [
        InputGroup("qkv", ("self_attn.q_proj", *kv), _fold("input_layernorm"), normed=normed),
        # Values are normed head by head, so that no scale folds into their projection.
        InputGroup("o", ("self_attn.o_proj",), None),
        InputGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj"), _fold("pre_feedforward_layernorm")),
        InputGroup("down", ("mlp.down_proj",), RowFold("mlp.up_proj")),
    ]
    linears = {
        "self_attn.q_proj": (heads * width, hidden),
        **dict.fromkeys(kv, (kv_heads * width, hidden)),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = dict.fromkeys(NORMS, hidden)
    norms |= dict.fromkeys(("self_attn.q_norm", *(() if shared else ("self_attn.k_norm",))), width)
    plain: dict[str, tuple[int, ...]] = {LAYER_SCALAR: (1,)}
    stacks = {}
    if experts := config.get("enable_moe_block") and config["num_experts"]:
        sizes = (experts, hidden, config["moe_intermediate_size"])
        second = "pre_feedforward_layernorm_2"
        groups += [
            InputGroup("router", ("router.proj",), None),
            *expert_groups(experts, _fold(second)),
        ]
        linears |= {"router.proj": (experts, hidden), **expert_shapes(*sizes)}
        stacks = expert_stacks(*sizes)
        plain |= {"router.scale": (hidden,), "router.per_expert_scale": (experts,)}
        after = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
        norms |= dict.fromkeys((*after, second), hidden)
    if narrow := config.get("hidden_size_per_layer_input", 0):
        names = ("per_layer_input_gate", "per_layer_projection")
        groups += [InputGroup(name, (name,), None) for name in names]
        linears |= dict(zip(names, ((narrow, hidden), (hidden, narrow)), strict=True))
        norms["post_per_layer_input_norm"] = hidden
    weights = {**linears, **{name: (size,) for name, size in norms.items()}}
    return LayerStructure(
        tuple(groups),
        {**{f"{name}.weight": shape for name, shape in weights.items()}, **plain},
        attention=kind,
        cache_values=0 if shared else 2 * kv_heads * width,
        stacks=stacks,
    )


def _outside(config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    narrow = config.get("hidden_size_per_layer_input", 0)
    if not narrow:
        return {}
    packed = config["num_hidden_layers"] * narrow
    return {
        PER_LAYER_TABLE: (config["vocab_size_per_layer_input"], packed),
        PER_LAYER_PROJECTION: (packed, config["hidden_size"]),
        PER_LAYER_NORM: (narrow,),
    }


def _unused(config: Mapping[str, Any], name: str) -> bool:
    """Keys' and values' tensors of layers that read those of others: published, and ignored."""
    start, _, rest = name.removeprefix("model.layers.").partition(".")
    dead = rest.startswith(("self_attn.k_", "self_attn.v_"))
    return dead and start.isdecimal() and _reads_shared(config, int(start))


# ---------------------------------------------------------------- configuration


def _settings(
    text: Mapping[str, Any],
    config: Mapping[str, Any],
    problems: list[GemquantError],
    *,
    unified: bool,
) -> dict[str, Any]:
    """Read the keys of Gemma 4 alone."""

    def wrong(key: str, rule: str) -> None:
        problems.append(CheckpointError(f"config.json: {key} {text.get(key)!r}: {rule}."))

    def switch(key: str) -> bool:
        if type(value := text.get(key, False)) is not bool:
            wrong(key, "must be true or false")
        return value is True

    def number(key: str, default: int | None, smallest: int, largest: int = _LARGEST) -> int | None:
        value = text.get(key)
        value = default if value is None else value
        if value is not None and not (type(value) is int and smallest <= value <= largest):
            wrong(key, f"must be from {smallest} to {largest}")
            return default
        return value

    layers, types = config["num_hidden_layers"], list(config["layer_types"])
    own: dict[str, Any] = {
        "use_bidirectional_attention": text.get(
            "use_bidirectional_attention", "vision" if unified else None
        ),
        "attention_k_eq_v": switch("attention_k_eq_v"),
        "num_kv_shared_layers": number("num_kv_shared_layers", 0, 0, layers - 1),
        "use_double_wide_mlp": switch("use_double_wide_mlp"),
    }
    if types:
        own["layer_types"] = [*types[:-1], FULL]  # as the library has it, whatever the file says
    if not unified:
        own |= {
            "vocab_size_per_layer_input": number("vocab_size_per_layer_input", 262144, 1, 2**23),
            "hidden_size_per_layer_input": number("hidden_size_per_layer_input", 256, 0),
            "enable_moe_block": switch("enable_moe_block"),
        }
        sizes = ("num_experts", "top_k_experts", "moe_intermediate_size")
        own |= {key: number(key, None, 1, 4096 if "experts" in key else _LARGEST) for key in sizes}
        if own["enable_moe_block"]:
            for key in sizes:
                if own[key] is None:
                    wrong(key, "must be given where enable_moe_block is true")
            if (own["top_k_experts"] or 1) > (own["num_experts"] or 1):
                wrong("top_k_experts", f"must be at most num_experts {own['num_experts']}")
    _check_sharing(own, layers, problems)
    own["per_layer_config"] = _layer_sizes(text, {**config, **own}, problems)
    return own


def _check_sharing(own: Mapping[str, Any], layers: int, problems: list[GemquantError]) -> None:
    """Every kind of attention among the sharing layers needs a layer before them to share from."""
    count, types = own["num_kv_shared_layers"], own.get("layer_types", ())
    before = types[: layers - count]
    missing = sorted(set(types[layers - count :]) - set(before)) if count else []
    if missing:
        problems.append(
            CheckpointError(
                f"config.json: num_kv_shared_layers {count}: the layers before have no "
                f"{' or '.join(missing)} to share keys and values from."
            )
        )


def _layer_sizes(
    text: Mapping[str, Any], config: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, dict[str, int]]:
    """Head size and key-value heads of the layers that have their own, by the layer's number.

    Newer files spell them out in ``per_layer_config``; as published, ``global_head_dim`` and
    ``num_global_key_value_heads`` are those of all full layers.
    """
    listed = text.get("per_layer_config")
    if listed is None:
        every = {"head_dim": text.get("global_head_dim", 512)}
        kv_heads = text.get("num_global_key_value_heads")
        if config["attention_k_eq_v"] and kv_heads is not None:
            every["num_key_value_heads"] = kv_heads
        types = config["layer_types"]
        listed = {str(n): every for n, kind in enumerate(types) if kind == FULL}
    sizes: dict[str, dict[str, int]] = {}
    for layer, own in listed.items() if isinstance(listed, dict) else [("", listed)]:
        where = f"config.json: per_layer_config of layer {layer}"
        known = str(layer).isdecimal() and int(layer) < config["num_hidden_layers"]
        if not known or not isinstance(own, dict):
            problems.append(CheckpointError(f"{where}: must be a layer's number and an object."))
            continue
        if stray := sorted(set(own) - set(_WIDTHS)):
            problems.append(
                UnsupportedError(f"{where}: {', '.join(stray)}: only {', '.join(_WIDTHS)} differ.")
            )
        sizes[str(int(layer))] = kept = {}
        for key, step in zip(_WIDTHS, (2, 1), strict=True):
            value = own.get(key, config[key])
            heads = config["num_attention_heads"]
            fits = type(value) is int and 1 <= value <= 65536 and value % step == 0
            if not fits or (key == "num_key_value_heads" and heads % value):
                rule = "must be even" if step == 2 else f"must divide num_attention_heads {heads}"
                problems.append(CheckpointError(f"{where}: {key} {value!r}: {rule}."))
            elif key in own:
                kept[key] = value
    return sizes


def _published_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sizes of full layers as published, which vLLM and mlx-lm read; nothing if layers differ."""
    sizes = config["per_layer_config"]
    full = [str(n) for n, kind in enumerate(config["layer_types"]) if kind == FULL]
    if list(sizes) != full or any(sizes[n] != sizes[full[0]] for n in full):
        return {}
    names = dict(zip(_WIDTHS, ("global_head_dim", "num_global_key_value_heads"), strict=True))
    return {names[key]: value for key, value in sizes[full[0]].items()}


# ---------------------------------------------------------------- the library


def _library() -> tuple[type[Any], type[Any]]:
    from transformers.models.gemma4 import Gemma4TextConfig, Gemma4TextModel

    return Gemma4TextConfig, Gemma4TextModel


def _unified_library() -> tuple[type[Any], type[Any]]:
    from transformers.models.gemma4_unified import Gemma4UnifiedTextConfig, Gemma4UnifiedTextModel

    return Gemma4UnifiedTextConfig, Gemma4UnifiedTextModel


def _without_inputs(model: Any) -> None:
    """Let the library pass no per-layer input, and cut none where layers begin to share."""
    model.hidden_size_per_layer_input = 0
    model.first_kv_shared_layer_idx = -1


_SMALL = "a small matrix that decides much"

_TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")

GEMMA4 = Architecture(
    name="Gemma 4",
    model_type="gemma4_text",
    causal_lm="Gemma4ForCausalLM",
    library=_library,
    layer=_layer,
    wrappers={"Gemma4ForConditionalGeneration": "gemma4"},
    text_prefixes={"model.language_model.": "model."},
    towers=tuple(f"model.{part}." for part in _TOWERS),
    tower_shapes=gemma4_towers,
    image=gemma4_image,
    dimensions={
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
    },
    softcaps={"final_logit_softcapping": None},
    full_attention_every=6,
    rope_theta=1_000_000.0,
    rope_by_layer_type=True,
    rope_full={"rope_type": "proportional", "partial_rotary_factor": 0.25},
    heads_divide_hidden=False,
    outside=_outside,
    settings=partial(_settings, unified=False),
    other_keys=_published_keys,
    unused=_unused,
    without_inputs=_without_inputs,
    kept={
        "router.proj": "it chooses the experts",
        "per_layer_input_gate": _SMALL,
        "per_layer_projection": _SMALL,
        "per_layer_model_projection": "it feeds every layer",
        "embed_tokens_per_layer": "a table that is read by rows",
    },
    norm_offset=0.0,
    licence=APACHE,
    chat=ChatFormat(
        start="<|turn>",
        end="<turn|>",
        thought=("<|channel>", "<channel|>"),
        stock="system",
        chat="system",
    ),
    gguf=IN_GGUF4,
    mlx=MlxFacts(untied_head=True),
    no_onnx="that of onnxruntime-genai 0.18 ends where heads differ between layers, with "
    "transformers 5.23; per-layer inputs it does not have at all",
)


def _for_mlx_vlm(raw: Mapping[str, Any], _text: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of unified models: no per-layer inputs, and sizes that it does not derive."""
    keys: dict[str, dict[str, Any]] = {"text_config": {"hidden_size_per_layer_input": 0}}
    if vision := raw.get("vision_config"):
        side = vision.get("patch_size", 16) * vision.get("pooling_kernel_size", 3)
        keys["vision_config"] = {"model_patch_size": side}
    if audio := raw.get("audio_config"):
        keys["audio_config"] = {"output_proj_dims": audio.get("audio_embed_dim", 640)}
    return keys


GEMMA4_UNIFIED = replace(
    GEMMA4,
    name="Gemma 4 unified",
    model_type="gemma4_unified_text",
    causal_lm="Gemma4UnifiedForCausalLM",
    vllm_class="Gemma4ForCausalLM",
    library=_unified_library,
    # mlx-lm has the text model under this name alone, with per-layer inputs unless told otherwise.
    mlx=replace(
        GEMMA4.mlx,
        keys={"model_type": GEMMA4.model_type, "hidden_size_per_layer_input": 0},
        whole_keys=_for_mlx_vlm,
    ),
    wrappers={"Gemma4UnifiedForConditionalGeneration": "gemma4_unified"},
    towers=tuple(f"model.{part}." for part in ("vision_embedder", "embed_vision", "embed_audio")),
    # As transformers 5 has them in memory.
    tower_spellings={
        "embed_vision.multimodal_embedder.": "model.embed_vision.",
        **{
            f"embed_vision.{part}": f"model.vision_embedder.{part}"
            for part in ("patch_ln1.", "patch_dense.", "patch_ln2.", "pos_embedding", "pos_norm.")
        },
    },
    tower_shapes=unified_towers,
    image=unified_image,
    gguf=replace(IN_GGUF4, mmproj=UNIFIED_MMPROJ),
    dimensions={
        **GEMMA4.dimensions,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    },
    settings=partial(_settings, unified=True),
)
"""The 12B: images and sound come in without towers; the text model has neither experts nor
per-layer inputs."""
