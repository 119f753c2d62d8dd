"""Tiny random multimodal Gemmas with the marks of images and sound, and real processors for them.

The PIL processors are used: torchvision's are not needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.tiny_gemma import (
    Kind,
    tiny_tokenizer,
    tower_tensors,
    write_shards,
    write_tiny_gemma,
)
from tests.helpers.tiny_sentencepiece import write_convertible_gemma

MARKS: dict[str, dict[str, str]] = {
    "gemma3": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    "gemma4": {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "video_token": "<|video|>",
    },
}
_IMAGE = {
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}},
    "gemma4": {
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "max_soft_tokens": 70,
    },
}
_IMAGE["gemma4_unified"] = {
    **_IMAGE["gemma4"],
    "image_processor_type": "Gemma4UnifiedImageProcessor",
}
_SOUND = {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 128}
_PROCESSOR: dict[Kind, str] = {
    "gemma3": "Gemma3Processor",
    "gemma4_unified": "Gemma4UnifiedProcessor",
}


def _family(kind: Kind) -> str:
    return "gemma3" if kind == "gemma3" else "gemma4"


def write_tiny_multimodal(folder: Path, kind: Kind, **settings: Any) -> Path:
    """Write a multimodal Gemma whose tokenizer has the marks that its processor looks for."""
    tokenizer, marks = tiny_tokenizer(), MARKS[_family(kind)]
    tokenizer.add_special_tokens(list(marks.values()))
    size = tokenizer.get_vocab_size()
    overrides = {"vocab_size": size}
    if kind == "gemma4_e":
        overrides["vocab_size_per_layer_input"] = size
    write_tiny_gemma(folder, kind, overrides=overrides, **settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {key: tokenizer.token_to_id(text) for key, text in marks.items()}
    end = "index" if kind == "gemma3" else "id"
    config = json.loads((folder / "config.json").read_text())
    config |= {f"{key}_{end}": index for key, index in ids.items()}
    if "eoa_token" in ids:
        config["eoa_token_index"] = config.pop("eoa_token_id")
    _write(folder / "config.json", config)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    _write(folder / "tokenizer_config.json", {**tokens, "extra_special_tokens": marks})
    image = _IMAGE.get(kind, _IMAGE[_family(kind)])
    sound = {"feature_extractor": _SOUND} if kind == "gemma4_e" else {}
    name = _PROCESSOR.get(kind, "Gemma4Processor")
    processor = {"processor_class": name, "image_seq_length": 4}
    _write(folder / "processor_config.json", {**processor, "image_processor": image, **sound})
    return folder


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


_EYES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 11,
        "num_attention_heads": 2,
        "image_size": 56,
        "vision_use_head": True,
    },
    "gemma4": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 11,
        "head_dim": 32,
        "pooling_kernel_size": 3,
        "position_embedding_size": 256,
    },
    "gemma4_unified": {
        "pooling_kernel_size": 3,
        "mm_embed_dim": 64,
        "mm_posemb_size": 128,
        "output_proj_dims": 64,
    },
}
_EARS = {"hidden_size": 64, "num_hidden_layers": 11, "subsampling_conv_channels": [128, 4]}


def write_convertible_multimodal(root: Path, kind: Kind) -> Path:
    """Write a multimodal Gemma that llama.cpp can hold, in two files, towers of whole blocks."""
    family = _family(kind)
    folder = write_convertible_gemma(root, kind)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= _EYES.get(kind, _EYES[family])
    if kind == "gemma4_e":
        config["audio_config"] |= _EARS
    _write(folder / "config.json", config)
    single = folder / "model.safetensors"
    text = {name: tensor for name, tensor in load_file(single).items() if "language_model" in name}
    single.unlink()
    write_shards(folder, text | tower_tensors(config), shards=2)
    mean, std = (0.5, 0.5) if family == "gemma3" else (0.0, 1.0)
    image = {**_IMAGE.get(kind, _IMAGE[family]), "image_mean": [mean] * 3, "image_std": [std] * 3}
    if family == "gemma3":
        image["size"] = {"height": 56, "width": 56}
    name = _PROCESSOR.get(kind, "Gemma4Processor")
    processor = {"processor_class": name, "image_processor": image}
    length = {"image_seq_length": 4} if family == "gemma3" else {}
    _write(folder / "processor_config.json", {**processor, **length})
    return folder


def _merged_patches(pixels: Any) -> dict[str, Tensor]:
    """An image of 40 × 48 as the unified model reads it: patches of 8 × 8, and their places."""
    image = torch.from_numpy(pixels).float() / 255
    patches = image.view(5, 8, 6, 8, 3).transpose(1, 2).reshape(1, 30, 192)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij")
    return {
        "pixel_values": patches,
        "image_position_ids": torch.stack((columns, rows), -1).view(1, 30, 2),
    }


def inputs_of(
    folder: Path, kind: Kind, *, shade: int = 120, sound: bool = True
) -> dict[str, Tensor]:
    """What a model gets of a text with an image and, for E and unified models, a sound.

    The processors are those of the folder, but for the unified model, whose own need torchvision.
    shade: makes another image. sound: whether E and unified models hear one.
    """
    import numpy as np
    from PIL import Image
    from transformers import AutoTokenizer

    pixels = np.arange(40 * 48 * 3, dtype=np.int64).reshape(40, 48, 3) * shade % 251
    image = Image.fromarray(pixels.astype(np.uint8))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    if kind == "gemma3":
        from transformers.models.gemma3 import Gemma3Processor
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        eyes: Any = Gemma3ImageProcessorPil(**settings["image_processor"])
        processor: Any = Gemma3Processor(eyes, tokenizer, image_seq_length=4)
        text = "the <start_of_image> quick brown fox"
        return dict(processor(text=text, images=image, return_tensors="pt"))
    from transformers.models.gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    if kind == "gemma4_unified":
        seen, found = _merged_patches(pixels), 30
    else:
        eyes = Gemma4ImageProcessorPil(**settings["image_processor"])
        seen = eyes(image, return_tensors="pt")
        found = int(seen.pop("num_soft_tokens_per_image")[0])
    words = tokenizer("the quick", return_tensors="pt").input_ids
    mark = {key: tokenizer.convert_tokens_to_ids(text) for key, text in MARKS["gemma4"].items()}
    parts = [words, torch.tensor([[mark["boi_token"], *[mark["image_token"]] * found]])]
    types = [torch.zeros_like(words), torch.tensor([[0, *[1] * found]])]
    inputs = dict(seen)
    if not sound:
        heard, count = {}, 0
    elif "feature_extractor" in settings:
        ears = Gemma4AudioFeatureExtractor(**settings["feature_extractor"])
        wave = np.sin(np.arange(8000) / 7).astype(np.float32)
        heard = ears([wave], return_tensors="pt")
        count = (int(heard["input_features_mask"].sum()) + 3) // 4
    elif kind == "gemma4_unified":
        wave = torch.arange(100.0).sin().view(1, 5, 20)
        heard, count = {"input_features": wave, "input_features_mask": wave[..., 0] > -2}, 5
    if sound and kind in {"gemma4_e", "gemma4_unified"}:
        parts.append(torch.tensor([[*[mark["audio_token"]] * count]]))
        types.append(torch.full((1, count), 3))
        inputs |= dict(heard)
    parts.append(tokenizer("brown fox", return_tensors="pt").input_ids)
    types.append(torch.zeros_like(parts[-1]))
    return {
        **inputs,
        "input_ids": torch.cat(parts, 1),
        "mm_token_type_ids": torch.cat(types, 1),
    }
