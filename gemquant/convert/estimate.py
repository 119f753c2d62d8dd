"""`gemquant plan`: does a candidate fit a device, by how much, how fast does it decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from gemquant.convert.candidates import Candidate, container_candidates, npu_candidates
from gemquant.convert.plugins import exporter
from gemquant.core.targets import Footprint, Speed, Target
from gemquant.core.untrusted import user_path
from gemquant.errors import UnsupportedError, UsageError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.folder import read_raw_config
from gemquant.formats.checkpoint.hub import download
from gemquant.formats.checkpoint.recognition import parse_hub_reference
from gemquant.models.architecture import architecture_of
from gemquant.models.config import text_config
from gemquant.models.mmproj import AUTO
from gemquant.models.structure import ImageCost, tower_of
from gemquant.runtimes.chat.presets import kv_cache_bytes

MIB = 1 << 20


@dataclass(frozen=True)
class TowerNeeds:
    """Towers of a multimodal model, from its config.json.

    weights: of each tower or projector. dtype: that they are stored in. image: what one costs.
    """

    weights: Mapping[str, int]
    dtype: torch.dtype
    image: ImageCost | None

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return sum(self.weights.values()) * self.dtype.itemsize

    @property
    def image_bytes(self) -> int:
        """Of activations while one image is read."""
        return 0 if self.image is None else self.image.values * self.dtype.itemsize


@dataclass(frozen=True)
class EstimateRequest:
    """memory_bytes: what the device has for it; None where unknown.
    device: of ``speeds``; None for the first.

    gb_per_second: the memory's own bandwidth, where the user knows it.
    """

    memory_bytes: int | None
    context: int
    device: str | None = None
    gb_per_second: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A candidate on a device.

    cache_bytes: of all layers; full_cache_bytes: of those that attend to everything.
    tower_bytes: of the container's towers, image_bytes: of activations while one image is read; 0
    where it holds none.
    memory_bytes: weights, towers, an image, cache of the whole context, and the runtime.
    spare_bytes: negative where it does not fit, None where the device's memory is unknown.
    tokens_per_second: decoding with the cache empty, and with it full.
    """

    candidate: Candidate
    cache_bytes: int
    full_cache_bytes: int
    overhead_bytes: int
    tower_bytes: int
    image_bytes: int
    memory_bytes: int
    spare_bytes: int | None
    speed: Speed
    tokens_per_second: float
    tokens_per_second_full: float

    @property
    def fits(self) -> bool | None:
        """Whether the device's memory is enough; None where it is unknown."""
        return None if self.spare_bytes is None else self.spare_bytes >= 0


def estimate(
    target: Target,
    config: Mapping[str, Any],
    request: EstimateRequest,
    towers: TowerNeeds | None = None,
) -> tuple[list[Estimate], list[Candidate]]:
    """Return every candidate of a target, the largest first; and those that cannot be made.

    towers: of a model that is to stay multimodal where the container allows it.
    """
    if target.footprint is None or not target.speeds:
        raise UnsupportedError(
            f"target {target.name} says nothing of memory and speed.",
            hint="Add footprint and speeds to its file; docs/new-target.md describes them.",
        )
    architecture = architecture_of(config)
    if architecture.embeds:
        raise UnsupportedError(
            f"plan predicts how fast text is written; an {architecture.name} writes none.",
            hint="A command's --dry-run predicts size and time: gemquant gguf MODEL --dry-run",
        )
    footprint = target.footprint
    candidates = (
        npu_candidates(target, config) if target.npu else container_candidates(target, config)
    )
    made = [
        _estimate(
            each,
            footprint,
            speed_of(target, each.scheme, request),
            config,
            request,
            towers if target.npu is None and _holds_towers(each) else None,
        )
        for each in candidates
        if each.refused is None
    ]
    made.sort(key=lambda each: -each.candidate.file_bytes)
    return made, [each for each in candidates if each.refused is not None]


def _holds_towers(candidate: Candidate) -> bool:
    """Whether its container does as commands write it by default: a GGUF in its mmproj file."""
    return exporter(candidate.container, {"mmproj": AUTO}).holds_towers


def speed_of(target: Target, scheme: str, request: EstimateRequest) -> Speed:
    """Return the speed that holds for a scheme on the device asked for."""
    if request.gb_per_second is not None:
        return Speed(
            device="as given",
            gb_per_second=request.gb_per_second,
            basis="bound",
            sources=("--bandwidth",),
        )
    names = list(dict.fromkeys(speed.device for speed in target.speeds))
    device = request.device or names[0]
    for speed in target.speeds:
        if speed.device.lower() == device.lower() and (
            not speed.schemes or scheme in speed.schemes
        ):
            return speed
    raise UsageError(
        f"--device-model {device}: not one of {', '.join(names)}.",
        hint="Or give the memory's bandwidth: --bandwidth 51.2",
    )


def _estimate(
    candidate: Candidate,
    footprint: Footprint,
    speed: Speed,
    config: Mapping[str, Any],
    request: EstimateRequest,
    towers: TowerNeeds | None,
) -> Estimate:
    cache, overhead = beside_weights(footprint, config, request.context)
    tower, image = (0, 0) if towers is None else (towers.bytes, towers.image_bytes)
    memory = candidate.resident_bytes + tower + image + cache + overhead
    return Estimate(
        candidate,
        cache,
        kv_cache_bytes({**config, "sliding_window": 0}, tokens=request.context),
        overhead,
        tower,
        image,
        memory,
        None if request.memory_bytes is None else request.memory_bytes - memory,
        speed,
        _rate(speed, candidate.token_bytes),
        _rate(speed, candidate.token_bytes + cache),
    )


def beside_weights(
    footprint: Footprint, config: Mapping[str, Any], context: int
) -> tuple[int, int]:
    """Bytes of the key-value cache, and of the runtime itself."""
    sliding = config["model_type"] in footprint.window_cache
    cache = kv_cache_bytes(config, tokens=context, sliding=sliding)
    overhead = int(footprint.runtime_mib * MIB + footprint.vocabulary_bytes * config["vocab_size"])
    return cache, overhead


def _rate(speed: Speed, read_bytes: int) -> float:
    seconds = read_bytes / (speed.gb_per_second * 1e9) + speed.milliseconds_per_token / 1e3
    return 1 / seconds


# ---------------------------------------------------------------- headers


@dataclass(frozen=True)
class Headers:
    """ref: as the user gave it. config: the flat text configuration, every key present.

    towers: of a multimodal model.
    """

    ref: str
    config: Mapping[str, Any]
    towers: TowerNeeds | None = None


def read_headers(ref: str) -> Headers:
    """Read a model's configuration; of a Hub id and of a folder config.json is enough."""
    path = user_path(ref)
    if path.is_dir():
        return _headers(ref, read_raw_config(path))
    reference = parse_hub_reference(ref)
    if reference is not None and not path.exists() and not ref.lower().endswith(".gguf"):
        folder = download(*reference, files=("config.json",))
        return _headers(ref, read_raw_config(folder))
    return Headers(ref, open_checkpoint(ref).config)


def _headers(ref: str, raw: Mapping[str, Any]) -> Headers:
    config = text_config(raw)
    architecture, counts = architecture_of(config), Counter[str]()
    for name, shape in architecture.tower_shapes(raw, config).items():
        counts[tower_of(name)] += prod(shape)
    dtype = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype")), torch.bfloat16)
    if not counts or not isinstance(dtype, torch.dtype):
        return Headers(ref, config)
    return Headers(ref, config, TowerNeeds(counts, dtype, architecture.image(raw, config)))
