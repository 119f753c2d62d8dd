from __future__ import annotations

import pytest

from gemquant.cli.chat import PRESETS as NAMES
from gemquant.cli.chat import command
from gemquant.runtimes.chat.presets import (
    AUTO,
    PRESETS,
    Choice,
    Preset,
    choose_preset,
    kv_cache_bytes,
)

GB = 1_000_000_000


def chosen(name: str, *, weights: int = GB, free: int | None) -> Choice:
    sizes = {"exact": 4 * GB, "speed": 2 * GB, "memory": GB // 2, "memory_extreme": GB // 8}

    def cached(preset: Preset) -> int:
        return sizes[preset.name]

    return choose_preset(name, weights_bytes=weights, cache_bytes=cached, free_bytes=free)


@pytest.mark.parametrize(
    ("free", "name"),
    [(8 * GB, "speed"), (2 * GB, "memory"), (int(1.7 * GB), "memory_extreme")],
)
def test_auto_takes_the_fastest_that_fits(free: int, name: str):
    assert chosen(AUTO, free=free).preset.name == name


def test_auto_says_what_fits_where():
    assert chosen(AUTO, free=2 * GB).reason == (
        "1.00 GB of weights and 500 MB of keys and values fit in 2.00 GB of free memory"
    )


def test_auto_says_when_nothing_fits():
    choice = chosen(AUTO, free=GB)
    assert choice.preset.name == "memory_extreme"
    assert "1.00 GB of weights do not fit in 1.00 GB of free memory" in choice.reason


def test_auto_is_careful_where_the_memory_is_unknown():
    assert chosen(AUTO, free=None).preset.name == "memory"


def test_a_preset_by_name_is_taken_whatever_the_memory():
    assert chosen("exact", free=1).preset.name == "exact"


def test_the_cache_of_a_windowed_layer_ends_with_the_window():
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 3,
        "sliding_window": 100,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    # 2 × (100 + 28) + 1000 tokens, 2 × 2 × 8 numbers each, 2 bytes each
    assert kv_cache_bytes(config, tokens=1000, batch=28, bits=16) == 1256 * 32 * 2
    assert kv_cache_bytes(config, tokens=50, batch=28, bits=16) == 150 * 32 * 2
    assert kv_cache_bytes(config, tokens=1000, batch=28, bits=4.5) == 1256 * 32 * 4.5 / 8


def test_the_help_has_every_preset_as_it_is():
    assert set(NAMES) == {AUTO, *PRESETS}
    assert command.help is not None
    rows = [line.replace(",", "").split() for line in command.help.splitlines()]
    for preset in PRESETS.values():
        row = [preset.name, preset.cache, str(preset.context), preset.dtype]
        assert [*row, "compiled"] == next(r for r in rows if r[:1] == row[:1])[:5] or (
            row in rows and not preset.compiled
        )
