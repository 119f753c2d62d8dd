"""What the card of a collection says of each artifact: figures, what it is good for, what it fits.

Nothing is said of quality but what follows from the measured divergence, by the bounds below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gemquant.convert.candidates import UNPACKED_BYTES, weight_count
from gemquant.convert.estimate import beside_weights
from gemquant.core.artifact import Manifest
from gemquant.core.artifact.evaluation import Interval, LevelEvaluation
from gemquant.core.artifact.losses import LARGE_KL, Overall, headline
from gemquant.core.artifact.manifest import (
    WEIGHT_FILES,
    artifact_label,
    model_name,
    scheme_label,
    tower_file,
)
from gemquant.core.targets import load_target
from gemquant.errors import GemquantError
from gemquant.numerics.bootstrap import stratified_mean

GB = 10**9
MEMORIES = (0.5, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 192)
"""Sizes of memory that devices have, GB."""
CONTEXT = 4096
"""Tokens in the cache for which memory is predicted."""
USUAL_KL = 0.05
"""Nats per token up to which an artifact is advised for everyday use."""
BANDS = (
    (0.01, "nearly the original", "further work"),
    (USUAL_KL, "close to the original", "everyday use"),
    (0.2, "noticeably different", "short memory"),
    (LARGE_KL, "very different", "nothing larger fits"),
    (math.inf, "a model that has lost its way", "experiments"),
)
"""Mean KL divergence below which words hold, and what an artifact is good for then."""

FAMILIES: Mapping[str, str] = {
    "gguf": "llama.cpp, Ollama, LM Studio",
    **dict.fromkeys(("compressed-tensors", "awq-gemm", "gptq"), "vLLM, transformers"),
    "bitsandbytes": "transformers with bitsandbytes",
    "mlx": "mlx-lm, on a Mac",
    "metal": "transformers, on a Mac",
    "onnx": "onnxruntime-genai",
    "rkllm": "Rockchip's NPUs",
}
"""Who an artifact is for, by its container."""


@dataclass(frozen=True)
class Figures:
    """Over the tokens of all slices, with 95 % intervals.

    kl_p999: of the slice where it is highest. original: the original's perplexity.
    """

    kl_mean: Interval
    kl_p999: Interval
    top1: Interval
    perplexity: Interval
    original: float

    @classmethod
    def of(cls, level: LevelEvaluation) -> Figures:
        """Windows are resampled within each slice; old certificates have none, and no interval."""
        slices = level.slices
        worst = max((each.kl_p999 for each in slices), key=lambda each: each.value)
        if not all(each.windows.kl_mean for each in slices):
            overall = Overall.of(level)
            tokens = sum(each.token_count for each in slices)

            def perplexity(name: str) -> float:
                nll = (e.token_count * math.log(getattr(e, name).value) for e in slices)
                return math.exp(sum(nll) / tokens)

            return cls(
                Interval(value=overall.kl_mean),
                worst,
                Interval(value=overall.top1),
                Interval(value=perplexity("perplexity_quantized")),
                perplexity("perplexity_original"),
            )
        counts = [each.windows.tokens for each in slices]

        def mean(name: str, *, exp: bool = False) -> Interval:
            columns = [getattr(each.windows, name) for each in slices]
            made = stratified_mean(columns, counts, *([torch.exp] if exp else []))
            return Interval(value=made.value, low=made.low, high=made.high)

        return cls(
            mean("kl_mean"),
            worst,
            mean("top1"),
            mean("nll_quantized", exp=True),
            mean("nll_original", exp=True).value,
        )


@dataclass(frozen=True)
class Member:
    """One artifact of a collection. place: its folder there, with a slash; empty where flat."""

    manifest: Manifest
    place: str = ""

    @property
    def label(self) -> str:
        """What tells it from the others of its family: ``Q4_K_M``, ``awq, 4 bits, …``."""
        return artifact_label(self.manifest)

    @property
    def family(self) -> str:
        """Who it is for."""
        return FAMILIES.get(self.manifest.container, "transformers")

    @property
    def weights(self) -> list[str]:
        """Names of its weight files, in alphabetical order; a file of towers last."""
        names = (n for n in self.manifest.files if n.endswith(WEIGHT_FILES))
        return sorted(names, key=lambda name: (name == tower_file(self.manifest), name))

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(self.manifest.files[name].bytes for name in self.weights)

    @property
    def path(self) -> str:
        """Its file where it is one, else its folder; of several parts the first."""
        if self.manifest.container == "gguf" or not self.place:
            return f"{self.place}{self.weights[0]}" if self.weights else self.place
        return self.place

    @property
    def short(self) -> str:
        """A type, or what its folder's name adds to the model's: for tables and pictures."""
        if self.manifest.container == "gguf" or not self.place:
            return scheme_label(self.manifest)
        folder = self.place.rstrip("/").rpartition("/")[2]
        return folder.removeprefix(f"{model_name(self.manifest)}-") or folder

    @property
    def level(self) -> LevelEvaluation | None:
        """The level that stands for it."""
        return headline(self.manifest.certificates)

    @cached_property
    def figures(self) -> Figures | None:
        """What was measured of predictions; None where nothing was."""
        level = self.level
        return None if level is None or not level.slices else Figures.of(level)

    @property
    def kl(self) -> float:
        """Mean divergence; infinite where nothing was measured."""
        return self.figures.kl_mean.value if self.figures else math.inf

    def good_for(self, family: Iterable[Member]) -> str:
        """What its divergence allows, and which other is smaller and closer."""
        if self.figures is None:
            return "not measured"
        use = next(use for bound, _, use in BANDS if self.kl <= bound)
        better = [e for e in family if e.size <= self.size and e.kl < self.kl]
        best = min(better, key=lambda each: each.kl, default=None)
        return use + (f"; {best.short} is smaller and closer" if best else "")

    def memory(self, config: Mapping[str, Any]) -> int | None:
        """Bytes that it takes while it runs, as ``gemquant plan`` predicts; None where unknown."""
        gguf = self.manifest.container == "gguf"
        try:
            target = load_target("cpu" if gguf else str(self.manifest.recipe.get("target")))
        except GemquantError:
            return None
        if target.footprint is None:
            return None
        resident = self.size
        found = [c for c in target.containers if c.exporter == self.manifest.container]
        if found and all(runtime.decompresses for runtime in found[0].runtimes):
            resident = UNPACKED_BYTES * weight_count(config)
        return resident + sum(beside_weights(target.footprint, config, context_of(config)))


def context_of(config: Mapping[str, Any]) -> int:
    """Tokens for which memory is predicted."""
    return min(CONTEXT, int(config["max_position_embeddings"]))


def recommended(members: Sequence[Member]) -> Member:
    """The smallest that is good for everyday use; else the closest, or the smallest unmeasured."""
    usual = [each for each in members if each.kl <= USUAL_KL]
    if usual:
        return min(usual, key=lambda each: each.size)
    return min(members, key=lambda each: (each.kl, each.size))


def by_family(members: Iterable[Member]) -> dict[str, list[Member]]:
    """Members by who they are for, the largest first."""
    found: dict[str, list[Member]] = {}
    for each in sorted(members, key=lambda each: (-each.size, each.label)):
        found.setdefault(each.family, []).append(each)
    order = list(dict.fromkeys(FAMILIES.values()))
    places = {name: place for place, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: places.get(item[0], len(places))))


def fitting(
    families: Mapping[str, Sequence[Member]], config: Mapping[str, Any]
) -> list[tuple[float, list[tuple[Member, int] | None]]]:
    """For sizes of memory in GB, the closest member of each family that fits, and what it takes.

    From the first size where anything fits to the first where nothing changes any more.
    """
    needs = {
        name: [(each, memory) for each in members if (memory := each.memory(config)) is not None]
        for name, members in families.items()
    }
    rows: list[tuple[float, list[tuple[Member, int] | None]]] = []
    for size in MEMORIES:
        row = [
            min(
                (pair for pair in pairs if pair[1] <= size * GB),
                key=lambda pair: (pair[0].kl, -pair[0].size),
                default=None,
            )
            for pairs in needs.values()
        ]
        if any(row) and (not rows or rows[-1][1] != row):
            rows.append((size, row))
    return rows
