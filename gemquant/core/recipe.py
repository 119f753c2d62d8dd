"""A recipe: everything that decides an artifact's bytes and its certificate, defaults included.

The same recipe, checkpoint, library versions and thread count give the same bytes. Recipes are
read from TOML or JSON; a manifest is accepted too, since it holds the recipe of its artifact.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import GemquantError, UsageError, refuse

DEFAULT_TARGET = "cuda"
DEFAULT_CALIBRATION = "general"
DEFAULT_SAMPLES = 16
DEFAULT_SEQ_LEN = 512
DEFAULT_EVAL_WINDOWS = 8
DEFAULT_EVAL_SEQ_LEN = 128
DEFAULT_EVAL_POSITIONS = 48

COMPUTE_DTYPES = ("float32", "bfloat16")
DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class Recipe:
    """What to make from what, and how to measure it.

    model: folder, Hub id with optional @revision, GGUF file, or sample:NAME.
    options: the quantizer's own options, every one with its value.
    exporter: the container; None until a target has chosen it.
    calib: a mixture's name, a text or JSON-lines file, or hf:DATASET.
    samples, seq_len: calibration windows and tokens in each, BOS included.
    eval_windows: windows per evaluation slice; 0 for no certificate.
    eval_seq_len: tokens in each, BOS included; never more than seq_len.
    eval_positions: predictions measured in each window; 0 for all.
    eval_slices: names of evaluation slices, or None for all.
    dtype: the type that activations are computed in.
    calib_dtype: the same for the calibration windows; ``auto`` for bfloat16 where that is fast.
    lora: adapters to merge, in this order: a folder or Hub id, with ``=WEIGHT`` or without.
    text_only: leave the towers of a multimodal model out.
    """

    model: str
    quantizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str = DEFAULT_TARGET
    exporter: str | None = None
    calib: str = DEFAULT_CALIBRATION
    samples: int = DEFAULT_SAMPLES
    seq_len: int = DEFAULT_SEQ_LEN
    seed: int = 0
    eval_windows: int = DEFAULT_EVAL_WINDOWS
    eval_seq_len: int = DEFAULT_EVAL_SEQ_LEN
    eval_positions: int = DEFAULT_EVAL_POSITIONS
    eval_slices: tuple[str, ...] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    calib_dtype: str = "auto"
    lora: tuple[str, ...] = ()
    chat_template: str | None = None
    text_only: bool = False

    @property
    def evaluation_tokens(self) -> int:
        """Tokens in an evaluation window."""
        return min(self.eval_seq_len, self.seq_len)

    def problems(self) -> list[GemquantError]:
        """Return one error for every value that breaks its rule."""
        checks = (
            (self.samples >= 1, f"--samples {self.samples}: must be at least 1."),
            (self.seq_len >= 16, f"--seq-len {self.seq_len}: must be at least 16 tokens."),
            (
                0 <= self.seed < 2**32,
                f"--seed {self.seed}: must be between 0 and {2**32 - 1}.",
            ),
            (
                self.eval_windows >= 0,
                f"--eval-windows {self.eval_windows}: must be at least 0 (0: no certificate).",
            ),
            (
                self.eval_seq_len >= 16,
                f"--eval-seq-len {self.eval_seq_len}: must be at least 16 tokens.",
            ),
            (
                self.eval_positions >= 0,
                f"--eval-positions {self.eval_positions}: must be at least 0 (0: all).",
            ),
            (
                DEVICE.fullmatch(self.device) is not None,
                f"--device {self.device}: must be cpu, cuda, cuda:N or mps.",
            ),
            (
                self.dtype in COMPUTE_DTYPES,
                f"--compute-dtype {self.dtype}: must be one of {', '.join(COMPUTE_DTYPES)}.",
            ),
            (
                self.calib_dtype in ("auto", *COMPUTE_DTYPES),
                f"--calib-dtype {self.calib_dtype}: must be auto, {' or '.join(COMPUTE_DTYPES)}.",
            ),
        )
        return [UsageError(message) for holds, message in checks if not holds]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in a manifest or a JSON recipe."""
        values = dataclasses.asdict(self)
        values["options"] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.options.items()
        }
        values["eval_slices"] = None if self.eval_slices is None else list(self.eval_slices)
        values["lora"] = list(self.lora) if len(self.lora) > 1 else next(iter(self.lora), None)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from plain values; every problem with them at once."""
        missing = [
            UsageError(f"{key}: missing from the recipe.")
            for key in ("model", "quantizer")
            if key not in values
        ]
        refuse([*missing, *setting_problems(values, "recipe", SETTINGS)])
        values = dict(values)
        if values.get("eval_slices") is not None:
            values["eval_slices"] = tuple(values["eval_slices"])
        adapters = values.get("lora") or ()
        values["lora"] = (adapters,) if isinstance(adapters, str) else tuple(adapters)
        recipe = cls(**values)
        refuse(recipe.problems())
        return recipe

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a complete recipe from TOML, JSON, or the manifest of an artifact."""
        return cls.from_dict(read_settings(file, SETTINGS))


SETTINGS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "quantizer": (str,),
    "options": (dict,),
    "target": (str,),
    "exporter": (str, type(None)),
    "calib": (str,),
    "samples": (int,),
    "seq_len": (int,),
    "seed": (int,),
    "eval_windows": (int,),
    "eval_seq_len": (int,),
    "eval_positions": (int,),
    "eval_slices": (list, tuple, type(None)),
    "device": (str,),
    "dtype": (str,),
    "calib_dtype": (str,),
    "lora": (str, list, tuple, type(None)),
    "chat_template": (str, type(None)),
    "text_only": (bool,),
}
"""Keys of a recipe file and the types they may have."""

_MAX_BYTES = 64_000_000
"""A recipe may be the manifest of an artifact."""

TYPE_WORDS = {
    bool: "true or false",
    str: "a string",
    int: "an integer",
    dict: "a table",
    list: "a list",
}


def read_settings(file: Path, keys: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Read some or all settings from a TOML or JSON file; every problem at once."""
    values = UntrustedFile(file, _MAX_BYTES).json_or_toml()
    if isinstance(values, dict) and isinstance(values.get("recipe"), dict):
        values = values["recipe"]  # the manifest of an artifact
    if not isinstance(values, dict):
        raise UsageError(f"{file}: must hold a table of settings, not a {type(values).__name__}.")
    refuse(setting_problems(values, str(file), keys))
    return values


def setting_problems(
    values: Mapping[str, Any], where: str, keys: Mapping[str, tuple[type, ...]]
) -> list[GemquantError]:
    """Return one error for every unknown key and every value of a wrong type."""
    problems: list[GemquantError] = []
    for key, value in values.items():
        if key not in keys:
            problems.append(
                UsageError(f"{where}: no such setting: {key}.", hint=suggest(key, keys))
            )
        elif type(value) not in keys[key]:
            wanted = next(TYPE_WORDS[kind] for kind in keys[key] if kind in TYPE_WORDS)
            problems.append(UsageError(f"{where}: {key} = {value!r}: must be {wanted}."))
    return problems


def suggest(wrong: str, known: Collection[str]) -> str:
    """Say which of the known names was probably meant, or list them all."""
    close = difflib.get_close_matches(wrong, known, n=2)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(sorted(known))}."
