"""Towers in llama.cpp: names, types, values and keys of the file that it calls mmproj.

Source: llama.cpp ``conversion/gemma.py`` (``Gemma3VisionModel``, ``Gemma4VisionAudioModel``,
``Gemma4UnifiedVisionAudioModel``), ``conversion/base.py`` (``MmprojModel``), ``tools/mtmd``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gemquant.models.structure import MmprojFacts, MmprojKey
from gemquant.models.towers import Part

if TYPE_CHECKING:
    from torch import Tensor

MMPROJ = "mmproj"
"""How llama.cpp calls a GGUF of towers, and knows it by its name."""
AUTO, NONE = "auto", "none"
CHOICES = (AUTO, "F16", "BF16", "Q8_0", NONE)
"""Types of the file, as options name them."""

Raw = Mapping[str, Any]
_SIGLIP, _LAYERS = "vision_tower.vision_model.", "encoder.layers.N."


def is_mmproj(name: str) -> bool:
    """Whether a GGUF's name is that of a file of towers."""
    return MMPROJ in name.lower()


def _under(prefix: str, own: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {prefix + theirs: own + ours for theirs, ours in modules.items()}


def _vision_keys(raw: Raw, text: int, images: Raw) -> dict[str, MmprojKey]:
    vision = Part(raw, "vision_config")
    return {
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": text,
        "clip.vision.image_size": vision.size("image_size", 224),
        "clip.vision.patch_size": vision.size("patch_size", 16),
        "clip.vision.embedding_length": vision.size("hidden_size", 768),
        "clip.vision.feed_forward_length": vision.size("intermediate_size", 3072),
        "clip.vision.block_count": vision.size("num_hidden_layers", 12),
        "clip.vision.attention.head_count": vision.size("num_attention_heads", 12),
        "clip.vision.image_mean": images["image_mean"],
        "clip.vision.image_std": images["image_std"],
    }


_EPSILON = "clip.vision.attention.layer_norm_epsilon"


# ---------------------------------------------------------------- Gemma 3


def _gemma3_keys(raw: Raw, text: int, images: Raw) -> Mapping[str, MmprojKey]:
    vision, keys = Part(raw, "vision_config"), _vision_keys(raw, text, images)
    keys["clip.projector_type"] = "gemma3"
    keys[_EPSILON] = vision.number("layer_norm_eps", 1e-6)
    keys["clip.use_gelu"] = True
    merged = _gemma3_merged(raw, images)
    if merged not in (0, 4):
        keys["clip.vision.projector.scale_factor"] = merged
    return keys


def _gemma3_merged(raw: Raw, images: Raw) -> int:
    """Patches of a side that become one token."""
    vision = Part(raw, "vision_config")
    patches = vision.size("image_size", 224) // vision.size("patch_size", 16)
    return int(patches // int(images.get("image_seq_length", 256) ** 0.5))


def _gemma3_values(module: str, tensor: Tensor, raw: Raw) -> Tensor:  # noqa: ARG001 (one signature)
    # Gemma's own norm multiplies by 1 + w, those of SigLIP by w.
    return tensor + 1 if module == "mm.soft_emb_norm" else tensor


def _gemma3_refused(raw: Raw, images: Raw) -> Iterator[tuple[str, object, str]]:
    vision = Part(raw, "vision_config")
    for key, value in vision.differing({"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}):
        yield key, value, "llama.cpp has SigLIP with gelu and three channels"
    tokens, described = images.get("image_seq_length", 256), raw.get("mm_tokens_per_image", 256)
    if tokens != described:
        rule = f"the processor's image_seq_length is {tokens}, and both count an image's tokens"
        yield "mm_tokens_per_image", described, rule


GEMMA3_MMPROJ = MmprojFacts(
    modules={
        "multi_modal_projector.mm_input_projection_weight": "mm.input_projection",
        "multi_modal_projector.mm_soft_emb_norm": "mm.soft_emb_norm",
        **_under(
            _SIGLIP,
            "v.",
            {
                "embeddings.patch_embedding": "patch_embd",
                "embeddings.position_embedding": "position_embd",
                "post_layernorm": "post_ln",
            },
        ),
        **_under(
            _SIGLIP + _LAYERS,
            "v.blk.N.",
            {
                "layer_norm1": "ln1",
                "layer_norm2": "ln2",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
                "self_attn.q_proj": "attn_q",
                "self_attn.k_proj": "attn_k",
                "self_attn.v_proj": "attn_v",
                "self_attn.out_proj": "attn_out",
            },
        ),
        **dict.fromkeys(
            _SIGLIP + "head." + part
            for part in (
                "probe", "mlp.fc1", "mlp.fc2", "layernorm", "attention.in_proj_weight",
                "attention.in_proj_bias", "attention.out_proj",
            )
        ),
    },
    keys=_gemma3_keys,
    values=_gemma3_values,
    refused=_gemma3_refused,
    mean=0.5,
    std=0.5,
    in_float32=frozenset({"v.patch_embd", "v.position_embd"}),
    in_float16=frozenset({"mm.input_projection"}),
)  # fmt: skip


# ---------------------------------------------------------------- Gemma 4


def _gemma4_keys(raw: Raw, text: int, images: Raw) -> Mapping[str, MmprojKey]:
    vision, audio = Part(raw, "vision_config"), Part(raw, "audio_config")
    # Images may have any size; the converter writes this one.
    keys = _vision_keys(raw, text, images) | {"clip.vision.image_size": 224}
    keys["clip.vision.block_count"] = vision.size("num_hidden_layers", 16)
    if audio.there:
        hidden = audio.size("hidden_size", 1024)
        layers, heads = audio.size("num_hidden_layers", 12), audio.size("num_attention_heads", 8)
        keys |= _audio_keys(text, hidden, 4 * hidden, layers, heads)
    keys["clip.vision.projector_type"] = "gemma4v"
    keys[_EPSILON] = vision.number("layer_norm_eps", 1e-6)
    if audio.there:
        keys |= _hearing_keys("gemma4a", audio)
    return keys | _pooling(vision)


def _audio_keys(
    text: int, hidden: int, inner: int, layers: int, heads: int
) -> dict[str, MmprojKey]:
    return {
        "clip.has_audio_encoder": True,
        "clip.audio.projection_dim": text,
        "clip.audio.embedding_length": hidden,
        "clip.audio.feed_forward_length": inner,
        "clip.audio.block_count": layers,
        "clip.audio.attention.head_count": heads,
    }


def _hearing_keys(projector: str, audio: Part) -> dict[str, MmprojKey]:
    return {
        "clip.audio.projector_type": projector,
        "clip.audio.num_mel_bins": audio.size("input_feat_size", _MEL_BINS),
        "clip.audio.attention.layer_norm_epsilon": audio.number("layer_norm_eps", 1e-6),
    }


def _pooling(vision: Part) -> dict[str, MmprojKey]:
    """Upstream never writes it: llama.cpp assumes the published 3, and reads another."""
    pooled = vision.size("pooling_kernel_size", 3)
    return {} if pooled == 3 else {"clip.vision.projector.scale_factor": pooled}


_MEL_BINS = 128
_EYES = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
}
_EARS = {
    "hidden_act": "silu",
    "conv_kernel_size": 5,
    "residual_weight": 0.5,
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "rms_norm_eps": 1e-6,
}


def _gemma4_refused(raw: Raw, images: Raw) -> Iterator[tuple[str, object, str]]:
    vision, audio = Part(raw, "vision_config"), Part(raw, "audio_config")
    if not vision.there:
        yield "vision_config", None, "llama.cpp's converter has no sound without images"
        return
    for key, value in vision.differing(_EYES):
        yield key, value, f"llama.cpp computes {_EYES[key.partition('.')[2]]}"
    heads, kv = vision.size("num_attention_heads", 12), vision.size("num_key_value_heads", 12)
    if heads != kv:
        yield "vision_config.num_key_value_heads", kv, f"llama.cpp has one for each of {heads}"
    width, hidden = vision.size("head_dim", 64), vision.size("hidden_size", 768)
    if heads * width != hidden:
        yield "vision_config.head_dim", width, f"llama.cpp divides hidden_size {hidden} by {heads}"
    if (theta := vision.rope_theta(100.0)) != 100.0:
        yield "vision_config.rope_parameters.rope_theta", theta, "llama.cpp computes 100"
    if not audio.there:
        return
    for key, value in audio.differing(_EARS):
        yield key, value, f"llama.cpp computes {_EARS[key.partition('.')[2]]}"
    yield from _mel_bins(audio, images)


def _mel_bins(audio: Part, images: Raw) -> Iterator[tuple[str, object, str]]:
    bins, ears = audio.size("input_feat_size", _MEL_BINS), images.get("feature_extractor")
    given = ears.get("feature_size", _MEL_BINS) if isinstance(ears, Mapping) else bins
    if given != bins:
        yield "feature_extractor.feature_size", given, f"llama.cpp would hear {bins} mel bins"


def _gemma4_values(module: str, tensor: Tensor, raw: Raw) -> Tensor:  # noqa: ARG001 (one signature)
    if not tensor.dim():
        return tensor.unsqueeze(0)
    if module == "a.blk.N.per_dim_scale":
        from torch.nn.functional import softplus

        return softplus(tensor)
    if module == "a.blk.N.conv_dw":
        return tensor.reshape(tensor.shape[0], tensor.shape[2])
    if module == "v.patch_embd":
        side = int((tensor.shape[1] // 3) ** 0.5)
        return tensor.reshape(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()
    return tensor


_PROJECTIONS = {
    "model.embed_vision.embedding_projection": "mm.input_projection",
    "model.embed_audio.embedding_projection": "mm.a.input_projection",
}
_BLOCK = {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}

GEMMA4_MMPROJ = MmprojFacts(
    modules={
        **_PROJECTIONS,
        **_under(
            "model.vision_tower.",
            "v.",
            {
                "patch_embedder.input_proj": "patch_embd",
                "patch_embedder.position_embedding_table": "position_embd",
                "std_bias": "std_bias",
                "std_scale": "std_scale",
            },
        ),
        **_under(
            "model.vision_tower.encoder.layers.N.",
            "v.blk.N.",
            {
                **_BLOCK,
                "input_layernorm": "ln1",
                "post_attention_layernorm": "attn_post_norm",
                "pre_feedforward_layernorm": "ln2",
                "post_feedforward_layernorm": "ffn_post_norm",
                "self_attn.o_proj": "attn_out",
                "self_attn.q_norm": "attn_q_norm",
                "self_attn.k_norm": "attn_k_norm",
                "mlp.gate_proj": "ffn_gate",
                "mlp.up_proj": "ffn_up",
                "mlp.down_proj": "ffn_down",
            },
        ),
        **_under(
            "model.audio_tower.",
            "a.",
            {
                "output_proj": "pre_encode.out",
                "subsample_conv_projection.input_proj_linear": "input_projection",
                "subsample_conv_projection.layer0.conv": "conv1d.0",
                "subsample_conv_projection.layer0.norm": "conv1d.0.norm",
                "subsample_conv_projection.layer1.conv": "conv1d.1",
                "subsample_conv_projection.layer1.norm": "conv1d.1.norm",
            },
        ),
        **_under(
            "model.audio_tower.layers.N.",
            "a.blk.N.",
            {
                **_BLOCK,
                "feed_forward1.pre_layer_norm": "ffn_norm",
                "feed_forward1.ffw_layer_1": "ffn_up",
                "feed_forward1.ffw_layer_2": "ffn_down",
                "feed_forward1.post_layer_norm": "ffn_post_norm",
                "feed_forward2.pre_layer_norm": "ffn_norm_1",
                "feed_forward2.ffw_layer_1": "ffn_up_1",
                "feed_forward2.ffw_layer_2": "ffn_down_1",
                "feed_forward2.post_layer_norm": "ffn_post_norm_1",
                "lconv1d.pre_layer_norm": "conv_norm",
                "lconv1d.linear_start": "conv_pw1",
                "lconv1d.depthwise_conv1d": "conv_dw",
                "lconv1d.conv_norm": "norm_conv",
                "lconv1d.linear_end": "conv_pw2",
                "norm_pre_attn": "attn_pre_norm",
                "norm_post_attn": "attn_post_norm",
                "norm_out": "ln2",
                "self_attn.per_dim_scale": "per_dim_scale",
                "self_attn.post": "attn_out",
                "self_attn.relative_k_proj": "attn_k_rel",
            },
        ),
    },
    keys=_gemma4_keys,
    values=_gemma4_values,
    refused=_gemma4_refused,
    mean=0.0,
    std=1.0,
    in_float32=frozenset(
        {"v.position_embd", "a.input_projection", "a.conv1d.0", "a.conv1d.1", "a.blk.N.conv_dw"}
    ),
)


# ---------------------------------------------------------------- Gemma 4 unified


def _unified_keys(raw: Raw, text: int, images: Raw) -> Mapping[str, MmprojKey]:
    vision, audio = Part(raw, "vision_config"), Part(raw, "audio_config")
    sizes = ("feed_forward_length", "block_count", "attention.head_count")
    return {
        **_vision_keys(raw, text, images),
        "clip.vision.image_size": 224,
        "clip.vision.embedding_length": vision.size("mm_embed_dim", 3840),
        **{f"clip.vision.{size}": 0 for size in sizes},
        **_audio_keys(text, audio.size("audio_embed_dim", 640), 0, 0, 0),
        "clip.vision.projector_type": "gemma4uv",
        _EPSILON: vision.number("layer_norm_eps", 1e-6),
        **_hearing_keys("gemma4ua", audio),
        **_pooling(vision),
    }


def _unified_refused(raw: Raw, images: Raw) -> Iterator[tuple[str, object, str]]:  # noqa: ARG001
    for name in ("vision_config", "audio_config"):
        if not Part(raw, name).there:
            yield name, None, "llama.cpp's converter has images and sound of this model, or neither"
    for key, value in Part(raw, "vision_config").differing({"rms_norm_eps": 1e-6}):
        yield key, value, "llama.cpp computes 1e-06"
    for key, value in Part(raw, "audio_config").differing({"rms_norm_eps": 1e-6}):
        yield key, value, "llama.cpp computes 1e-06"


def _unified_values(module: str, tensor: Tensor, raw: Raw) -> Tensor:
    if module == "v.position_embd":
        return tensor.permute(1, 0, 2).contiguous()
    if module not in {"v.patch_embd", "v.patch_norm.1"} or tensor.shape[-1] % 3:
        return tensor
    vision = Part(raw, "vision_config")
    side = vision.size("patch_size", 16) * vision.size("pooling_kernel_size", 3)
    if tensor.shape[-1] != 3 * side**2:
        return tensor  # the bias of patch_embd
    # Published as RGBRGB…, read as RR…GG…BB….
    pixels = tensor.reshape(*tensor.shape[:-1], side * side, 3)
    return pixels.transpose(-1, -2).reshape(tensor.shape).contiguous()


UNIFIED_MMPROJ = MmprojFacts(
    modules={
        **_PROJECTIONS,
        **_under(
            "model.vision_embedder.",
            "v.",
            {
                "patch_ln1": "patch_norm.1",
                "patch_dense": "patch_embd",
                "patch_ln2": "patch_norm.2",
                "pos_embedding": "position_embd",
                "pos_norm": "patch_norm.3",
            },
        ),
    },
    keys=_unified_keys,
    values=_unified_values,
    refused=_unified_refused,
    mean=0.0,
    std=1.0,
)
