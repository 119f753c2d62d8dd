"""What a multimodal Gemma sees and hears with: tensors of its towers, by their published names.

Every function maps a multimodal ``config.json`` and the text model's configuration to names and
shapes; what the file leaves out is as the library assumes it.

Source: transformers ``modeling_siglip.py``, ``modeling_gemma3.py``, ``modeling_gemma4.py``,
``modeling_gemma4_unified.py`` and their configurations; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.errors import CheckpointError
from gemquant.models.structure import ImageCost

Shapes = dict[str, tuple[int, ...]]

_LARGEST = 2**20
_MOST_LAYERS = 1024


class Part:
    """``vision_config`` or ``audio_config``, whose sizes are checked when they are asked for."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        part = raw.get(name)
        if part is not None and not isinstance(part, dict):
            raise CheckpointError(f"config.json: {name} {str(part)[:80]}: must be an object.")
        self._name, self._values, self.there = name, part or {}, part is not None

    def size(self, key: str, default: int, largest: int = _LARGEST) -> int:
        """A whole number from 1 to ``largest``."""
        value = self._values.get(key, default)
        if type(value) is not int or not 1 <= value <= largest:
            name = f"{self._name}.{key}".removeprefix(".")
            raise CheckpointError(
                f"config.json: {name} {str(value)[:80]}: must be from 1 to {largest}."
            )
        return value

    def sizes(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """Two whole numbers."""
        value = self._values.get(key, default)
        fits = isinstance(value, (list, tuple)) and len(value) == 2
        if not fits or not all(type(v) is int and 1 <= v <= _LARGEST for v in value):
            raise CheckpointError(
                f"config.json: {self._name}.{key} {str(value)[:80]}: must be two sizes."
            )
        return value[0], value[1]

    def switch(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(
                f"config.json: {self._name}.{key} {str(value)[:80]}: must be true or false."
            )
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._values.get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise CheckpointError(
                f"config.json: {self._name}.{key} {str(value)[:80]}: must be a positive number."
            )
        return float(value)

    def rope_theta(self, default: float) -> object:
        """The base of the rotary tables."""
        rope = self._values.get("rope_parameters")
        return rope.get("rope_theta", default) if isinstance(rope, dict) else default

    def differing(self, assumed: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Keys whose value is another than a program assumes, and the values."""
        given = {key: self._values.get(key, value) for key, value in assumed.items()}
        return [
            (f"{self._name}.{key}", given[key])
            for key, value in assumed.items()
            if given[key] != value
        ]

    def layers(self, prefix: str, default: int, layer: Shapes) -> Shapes:
        """The tensors of every layer."""
        count = self.size("num_hidden_layers", default, _MOST_LAYERS)
        return {f"{prefix}.{n}.{key}": shape for n in range(count) for key, shape in layer.items()}


def _affine(name: str, rows: int, *rest: int) -> Shapes:
    return {f"{name}.weight": (rows, *rest), f"{name}.bias": (rows,)}


def _norms(size: int, *names: str) -> Shapes:
    return {f"{name}.weight": (size,) for name in names}


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def gemma3_towers(raw: Mapping[str, Any], text: Mapping[str, Any]) -> Shapes:
    """SigLIP and a projector that averages its patches."""
    vision = Part(raw, "vision_config")
    if not vision.there:
        return {}
    hidden, inner = vision.size("hidden_size", 768), vision.size("intermediate_size", 3072)
    image, patch = vision.size("image_size", 224), vision.size("patch_size", 16)
    mlp = {**_affine("mlp.fc1", inner, hidden), **_affine("mlp.fc2", hidden, inner)}
    layer = {**_affine("layer_norm1", hidden), **_affine("layer_norm2", hidden), **mlp}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= _affine(f"self_attn.{part}", hidden, hidden)
    channels = vision.size("num_channels", 3)
    tower = {
        **_affine("embeddings.patch_embedding", hidden, channels, patch, patch),
        "embeddings.position_embedding.weight": ((image // patch) ** 2, hidden),
        **vision.layers("encoder.layers", 12, layer),
        **_affine("post_layernorm", hidden),
    }
    if vision.switch("vision_use_head", default=True):
        tower |= {"head.probe": (1, 1, hidden), **_prefixed("head.", mlp)}
        tower |= {"head.attention.in_proj_weight": (3 * hidden, hidden)}
        tower |= {"head.attention.in_proj_bias": (3 * hidden,)}
        tower |= _affine("head.attention.out_proj", hidden, hidden)
        tower |= _affine("head.layernorm", hidden)
    projector = "multi_modal_projector."
    return {
        **_prefixed("vision_tower.vision_model.", tower),
        f"{projector}mm_input_projection_weight": (hidden, text["hidden_size"]),
        **_norms(hidden, f"{projector}mm_soft_emb_norm"),
    }


def gemma3_image(raw: Mapping[str, Any], text: Mapping[str, Any]) -> ImageCost | None:
    """Every patch as wide as a layer; the projector averages them to a few tokens."""
    del text
    vision = Part(raw, "vision_config")
    if not vision.there:
        return None
    hidden, inner = vision.size("hidden_size", 768), vision.size("intermediate_size", 3072)
    patches = (vision.size("image_size", 224) // vision.size("patch_size", 16)) ** 2
    # The residual, its norm, and either q, k, v and their mixture or fc1 before and after GELU.
    width = 2 * hidden + max(4 * hidden, 2 * inner)
    return ImageCost(Part({"": dict(raw)}, "").size("mm_tokens_per_image", 256), patches * width)


def gemma4_towers(raw: Mapping[str, Any], text: Mapping[str, Any]) -> Shapes:
    """A vision transformer of its own and, in the E models, a conformer for sound."""
    vision, audio = Part(raw, "vision_config"), Part(raw, "audio_config")
    eyes = _eyes(vision, text["hidden_size"]) if vision.there else {}
    return {**eyes, **(_ears(audio, text["hidden_size"]) if audio.there else {})}


def gemma4_image(raw: Mapping[str, Any], text: Mapping[str, Any]) -> ImageCost | None:
    """As many tokens as the processor allows by default, of pooled squares of patches."""
    del text
    vision = Part(raw, "vision_config")
    if not vision.there:
        return None
    hidden, inner = vision.size("hidden_size", 768), vision.size("intermediate_size", 3072)
    heads, kv = vision.size("num_attention_heads", 12), vision.size("num_key_value_heads", 12)
    attention = 2 * (heads + kv) * vision.size("head_dim", 64)
    tokens = Part({"": dict(raw)}, "").size("vision_soft_tokens_per_image", 280)
    patches = tokens * vision.size("pooling_kernel_size", 3) ** 2
    return ImageCost(tokens, patches * (2 * hidden + max(attention, 3 * inner)))


def _linear(name: str, rows: int, columns: int, *, clipped: bool) -> Shapes:
    ends = ("input_min", "input_max", "output_min", "output_max") if clipped else ()
    return {f"{name}.linear.weight": (rows, columns), **{f"{name}.{end}": () for end in ends}}


def _eyes(vision: Part, text: int) -> Shapes:
    hidden, inner = vision.size("hidden_size", 768), vision.size("intermediate_size", 3072)
    width, patch = vision.size("head_dim", 64), vision.size("patch_size", 16)
    heads, kv = vision.size("num_attention_heads", 12), vision.size("num_key_value_heads", 12)
    clipped = vision.switch("use_clipped_linears", default=False)
    linears = {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (kv * width, hidden),
        "self_attn.v_proj": (kv * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    blocks = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    layer = {
        **_norms(width, "self_attn.q_norm", "self_attn.k_norm"),
        **_norms(hidden, *(f"{block}_layernorm" for block in blocks)),
    }
    for name, (rows, columns) in linears.items():
        layer |= _linear(name, rows, columns, clipped=clipped)
    places = vision.size("position_embedding_size", 10240)
    tower: Shapes = {
        "patch_embedder.input_proj.weight": (hidden, 3 * patch**2),
        "patch_embedder.position_embedding_table": (2, places, hidden),
        **vision.layers("encoder.layers", 16, layer),
    }
    if vision.switch("standardize", default=False):
        tower |= {"std_bias": (hidden,), "std_scale": (hidden,)}
    projection = {"model.embed_vision.embedding_projection.weight": (text, hidden)}
    return {**_prefixed("model.vision_tower.", tower), **projection}


def _ears(audio: Part, text: int) -> Shapes:
    hidden, heads = audio.size("hidden_size", 1024), audio.size("num_attention_heads", 8)
    clipped = audio.switch("use_clipped_linears", default=True)
    first, second = audio.sizes("subsampling_conv_channels", (128, 32))
    out = audio.size("output_proj_dims", 1536)
    linears = {
        **{f"self_attn.{part}": (hidden, hidden) for part in ("q_proj", "k_proj", "v_proj")},
        "self_attn.post": (hidden, hidden),
        "lconv1d.linear_start": (2 * hidden, hidden),
        "lconv1d.linear_end": (hidden, hidden),
    }
    norms = ["norm_pre_attn", "norm_post_attn", "norm_out"]
    norms += ["lconv1d.pre_layer_norm", "lconv1d.conv_norm"]
    for part in ("feed_forward1", "feed_forward2"):
        linears |= {f"{part}.ffw_layer_1": (4 * hidden, hidden)}
        linears |= {f"{part}.ffw_layer_2": (hidden, 4 * hidden)}
        norms += [f"{part}.pre_layer_norm", f"{part}.post_layer_norm"]
    layer: Shapes = {
        "self_attn.relative_k_proj.weight": (hidden, hidden),
        "self_attn.per_dim_scale": (hidden // heads,),
        "lconv1d.depthwise_conv1d.weight": (hidden, 1, audio.size("conv_kernel_size", 5)),
        **_norms(hidden, *norms),
    }
    for name, (rows, columns) in linears.items():
        layer |= _linear(name, rows, columns, clipped=clipped)
    convolutions = {
        "layer0.conv.weight": (first, 1, 3, 3),
        "layer0.norm.weight": (first,),
        "layer1.conv.weight": (second, first, 3, 3),
        "layer1.norm.weight": (second,),
        "input_proj_linear.weight": (hidden, first // 4 * second),
    }
    tower = {
        **_prefixed("subsample_conv_projection.", convolutions),
        **audio.layers("layers", 12, layer),
        **_affine("output_proj", out, hidden),
    }
    projection = {"model.embed_audio.embedding_projection.weight": (text, out)}
    return {**_prefixed("model.audio_tower.", tower), **projection}


def unified_towers(raw: Mapping[str, Any], text: Mapping[str, Any]) -> Shapes:
    """No towers: raw patches and raw sound, each projected once."""
    vision, audio = Part(raw, "vision_config"), Part(raw, "audio_config")
    hidden, shapes = text["hidden_size"], Shapes()
    if vision.there:
        side = vision.size("patch_size", 16) * vision.size("pooling_kernel_size", 3)
        width, places = vision.size("mm_embed_dim", 3840), vision.size("mm_posemb_size", 1120)
        embedder = {
            **_affine("patch_ln1", 3 * side**2),
            **_affine("patch_dense", width, 3 * side**2),
            **_affine("patch_ln2", width),
            "pos_embedding": (places, 2, width),
            **_affine("pos_norm", width),
        }
        out = vision.size("output_proj_dims", 3840)
        shapes |= _prefixed("model.vision_embedder.", embedder)
        shapes |= {"model.embed_vision.embedding_projection.weight": (hidden, out)}
    if audio.there:
        width = audio.size("audio_embed_dim", 640)
        shapes |= {"model.embed_audio.embedding_projection.weight": (hidden, width)}
    return shapes


def unified_image(raw: Mapping[str, Any], text: Mapping[str, Any]) -> ImageCost | None:
    """Raw patches: as read and normed, then projected."""
    del text
    vision = Part(raw, "vision_config")
    if not vision.there:
        return None
    side = vision.size("patch_size", 16) * vision.size("pooling_kernel_size", 3)
    tokens = vision.size("num_soft_tokens", 280)
    return ImageCost(tokens, tokens * (6 * side**2 + vision.size("mm_embed_dim", 3840)))
