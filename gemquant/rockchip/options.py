"""The options of ``gemquant rkllm``, and the rules of chips and toolkit releases for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gemquant.core.options import option
from gemquant.core.resources import human_bytes
from gemquant.errors import GemquantError, UnsupportedError, UsageError
from gemquant.models.architecture import loading_kind

if TYPE_CHECKING:
    from gemquant.core.targets import Npu, NpuDtype, Target, Toolkit, ToolkitVersion

AUTO = "auto"
"""Search for the toolkit."""


@dataclass(frozen=True)
class RkllmOptions:
    """Settings of RKLLM conversion."""

    name: ClassVar[str] = "rkllm"
    target: ClassVar[str] = "rk3588"

    quantized_dtype: str = option(
        "", "Quantized dtype, such as w8a8; empty for the target's default."
    )
    optimization_level: int = option(0, "1: more accurate, much slower to convert.", choices=(0, 1))
    algorithm: str = option("normal", "Quantization algorithm of the toolkit: normal, grq, gdq.")
    gptq: bool = option(
        False, "Round to int8 with GPTQ before the toolkit, which imports the codes; grouped w8a8."
    )
    smooth: bool = option(
        True, "SmoothQuant: fold activation outliers into the weights first; exact, for plain w8a8."
    )
    npu_cores: int = option(0, "NPU cores to run on; 0 for all.", minimum=0)
    hybrid_rate: float = option(
        0.0,
        "Share of layers in the grouped form of a plain dtype, or in the plain form of a grouped.",
    )
    max_context: int = option(0, "Longest context; 0 for the toolkit's default.", minimum=0)
    simulate: int = option(
        0, "Windows per evaluation slice to run in the toolkit's simulator.", minimum=0
    )
    emulate: int = option(
        2,
        "Windows per evaluation slice to emulate w8a8 on, on this machine; 0 for none.",
        minimum=0,
    )


@dataclass(frozen=True)
class Conversion:
    """A conversion to an NPU's dtype by a release of its toolkit, with every option resolved."""

    npu: Npu
    toolkit: Toolkit
    release: ToolkitVersion
    dtype: NpuDtype
    options: RkllmOptions


def npu_of(target: Target) -> Npu:
    """The target's NPU; UsageError if it has none."""
    if target.npu is None:
        raise UsageError(
            f"--target {target.name}: has no NPU.", hint="As in: gemquant rkllm --target rk3588"
        )
    return target.npu


def resolved(options: RkllmOptions, npu: Npu) -> RkllmOptions:
    """Replace empty options by the target's defaults."""
    return dataclasses.replace(
        options,
        quantized_dtype=options.quantized_dtype.lower() or npu.default_dtype,
        npu_cores=options.npu_cores or max(npu.cores),
    )


def option_problems(options: RkllmOptions, npu: Npu) -> Iterator[GemquantError]:
    """Options that the chip does not support. options: resolved."""
    dtype, name = npu.dtype(options.quantized_dtype), options.quantized_dtype
    if dtype is None:
        known = ", ".join(each.name for each in npu.dtypes)
        yield UsageError(f"--quantized-dtype {name}: {npu.platform} supports {known}.")
    elif options.algorithm not in dtype.algorithms:
        known = f"{npu.platform} supports {', '.join(dtype.algorithms)} for {name}"
        yield UsageError(f"--algorithm {options.algorithm}: {known}.")
    if options.gptq:
        yield from _gptq_problems(options, npu)
    if options.npu_cores not in npu.cores:
        cores = ", ".join(map(str, npu.cores))
        yield UsageError(f"--npu-cores {options.npu_cores}: {npu.platform} supports {cores}.")
    if not 0 <= options.hybrid_rate < npu.hybrid_rate_below:
        yield UsageError(
            f"--hybrid-rate {options.hybrid_rate:g}: must be at least 0 and below "
            f"{npu.hybrid_rate_below:g}.",
            hint="For a rate of 1, use the other dtype.",
        )
    elif options.hybrid_rate and dtype is not None and not dtype.hybrid:
        yield UsageError(f"{name} does not support --hybrid-rate.")
    if options.max_context > npu.max_context or options.max_context % npu.context_multiple:
        below = min(options.max_context, npu.max_context)
        fits = below - below % npu.context_multiple
        yield UsageError(
            f"--max-context {options.max_context}: must be a multiple of "
            f"{npu.context_multiple}, and at most {npu.max_context}.",
            hint=f"Use --max-context {fits}." if fits else None,
        )


def _gptq_problems(options: RkllmOptions, npu: Npu) -> Iterator[GemquantError]:
    """GPTQ codes are imported as they are; the toolkit must not quantize again."""
    dtype = npu.dtype(options.quantized_dtype)
    fitting = [d.name for d in npu.dtypes if d.weight_bits == 8 and d.group_size > 0]
    if dtype is not None and dtype.name not in fitting:
        hint = f"Use --quantized-dtype {fitting[0]}." if fitting else None
        known = ", ".join(fitting) or "this chip has none"
        yield UsageError(f"--gptq: needs 8 bits in groups ({known}).", hint=hint)
    if options.hybrid_rate:
        yield UsageError(
            f"--gptq with --hybrid-rate {options.hybrid_rate:g}: the toolkit would quantize some "
            "layers again."
        )


def release_problems(conversion: Conversion, config: Mapping[str, Any]) -> Iterator[GemquantError]:
    """What this release of the toolkit does not read or offer."""
    release, options, npu = conversion.release, conversion.options, conversion.npu
    toolkit, dtype, generation = conversion.toolkit, conversion.dtype, loading_kind(config)
    named = f"{toolkit.name} {release.version}"
    converting = toolkit.converting(npu.platform, generation, dtype.name)
    hint = f"Use {toolkit.name} {converting[0].version} or newer." if converting else None
    for supported, what in (
        (generation in release.generations, f"does not read {generation}"),
        (npu.platform in release.platforms, f"does not support {npu.platform}"),
        (dtype.name in release.dtypes, f"has no {dtype.name}"),
        (options.algorithm in release.algorithms, f"has no algorithm {options.algorithm}"),
    ):
        if not supported:
            yield UnsupportedError(f"{named} {what}.", hint=hint)
    for name, used, flag in (
        ("hybrid_rate", options.hybrid_rate, f"--hybrid-rate {options.hybrid_rate:g}"),
        ("max_context", options.max_context, f"--max-context {options.max_context}"),
        ("num_npu_core", options.npu_cores != max(npu.cores), f"--npu-cores {options.npu_cores}"),
    ):
        if used and name not in release.build:
            first = _first(each for each in toolkit.versions if name in each.build)
            yield UnsupportedError(
                f"{flag}: {named} has no such option.", hint=f"{first.version} and newer have it."
            )
    if options.simulate and release.simulator is None:
        yield UnsupportedError(f"--simulate: {named} has no simulator.")
    if options.gptq and dtype.group_size not in release.gptq_int8_groups:
        first = _first(each for each in toolkit.versions if each.gptq_int8_groups)
        sizes = ", ".join(map(str, release.gptq_int8_groups)) or "none"
        yield UnsupportedError(
            f"--gptq: {named} imports 8-bit GPTQ checkpoints with groups of {sizes}.",
            hint=f"{first.version} and newer import groups of "
            f"{', '.join(map(str, first.gptq_int8_groups))}.",
        )
    yield from _shape_problems(conversion, config, named)


def memory_problems(toolkit: Toolkit, weights: int, *, host_bytes: int) -> Iterator[GemquantError]:
    """Whether converting exceeds the memory, by the toolkit's estimate."""
    needed = int(toolkit.conversion.bytes_per_weight * weights)
    if needed > host_bytes:
        yield UnsupportedError(
            f"converting needs about {human_bytes(needed)} of memory; the limit is "
            f"{human_bytes(host_bytes)}.",
            hint="Use --prepare-only and convert on a larger machine, or raise --tool-memory.",
        )


def _first(releases: Iterable[ToolkitVersion]) -> ToolkitVersion:
    return min(releases, key=lambda each: each.key)


def _shape_problems(
    conversion: Conversion, config: Mapping[str, Any], named: str
) -> Iterator[GemquantError]:
    from gemquant.convert.candidates import group_problem

    release = conversion.release
    if reason := group_problem(config, conversion.dtype):
        yield UnsupportedError(f"{conversion.dtype.name}: {reason}.")
    heads = config["num_attention_heads"] * config["head_dim"]
    if release.square_attention and heads != config["hidden_size"]:
        yield UnsupportedError(
            f"{named} only reads models whose heads together ({heads}) equal the hidden size "
            f"({config['hidden_size']})."
        )
    if release.head_dims and config["head_dim"] not in release.head_dims:
        known = ", ".join(map(str, release.head_dims))
        yield UnsupportedError(f"{named} converts head sizes {known}, not {config['head_dim']}.")
