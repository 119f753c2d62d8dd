"""Towers have the tensors that the library's models have, under the published names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gemquant.errors import CheckpointError
from gemquant.models.architecture import architecture_of
from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import NESTED, Kind, tiny_config

PUBLISHED: dict[Kind, dict[str, Any]] = {
    "gemma3": {"vision_config": {"vision_use_head": True}},
    "gemma4_e": {"vision_config": {}, "audio_config": {}},
    "gemma4_moe": {"vision_config": {}, "audio_config": None},
    "gemma4_unified": {"vision_config": {}, "audio_config": {}},
}
"""As the library assumes what a file leaves out."""


def library_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    import transformers

    architecture = architecture_of(text_config(config))
    plain = {key: value for key, value in config.items() if key != "architectures"}
    with torch.device("meta"):
        configuration = transformers.AutoConfig.for_model(**plain)
        model = getattr(transformers, config["architectures"][0])(configuration)
    named = {architecture.tower_name(n): tuple(t.shape) for n, t in model.state_dict().items()}
    return {name: shape for name, shape in named.items() if name is not None}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("sizes", ["tiny", "assumed"])
def test_towers_are_those_of_the_library(kind: Kind, sizes: str) -> None:
    config = tiny_config(kind)
    if sizes == "assumed":
        config |= PUBLISHED[kind]
    text = text_config(config)
    ours = dict(architecture_of(text).tower_shapes(config, text))
    assert ours == library_shapes(config)
    assert ours


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_config", "hidden_size", 0, "vision_config.hidden_size 0: must be from 1 to"),
        ("vision_config", "num_hidden_layers", 10**9, "must be from 1 to 1024"),
        ("vision_config", "use_clipped_linears", "yes", "must be true or false"),
        ("audio_config", "subsampling_conv_channels", [1], "must be two sizes"),
        ("audio_config", "hidden_size", True, "audio_config.hidden_size True: must be"),
    ],
)
def test_a_wrong_size_is_named(part: str, key: str, value: object, message: str) -> None:
    config = tiny_config("gemma4_e")
    config[part] = {**config[part], key: value}
    text = text_config(config)
    with pytest.raises(CheckpointError, match=message):
        architecture_of(text).tower_shapes(config, text)


def test_a_part_that_is_no_object_is_named() -> None:
    config = {**tiny_config("gemma3"), "vision_config": [1]}
    text = text_config(config)
    with pytest.raises(CheckpointError, match=r"vision_config \[1\]: must be an object"):
        architecture_of(text).tower_shapes(config, text)
