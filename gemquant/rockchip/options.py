"""The options of ``gemquant rkllm``, and the rules of chips and toolkit releases for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gemquant.core.options import option
from gemquant.core.resources import human_bytes
from gemquant.errors import GemquantError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from gemquant.core.targets.device import Npu, NpuDtype
    from gemquant.core.targets.target import Target
    from gemquant.core.targets.toolkit import Toolkit, ToolkitVersion


@dataclass(frozen=True)
class RkllmOptions:
    """RKLLM files for Rockchip's NPUs, through the vendor's own toolkit.

    The toolkit runs under an interpreter of its own (--toolkit), reads a folder that is written for
    it, and decides the numbers. With --prepare-only nothing of it is needed: folder, calibration
    and job are left to be converted elsewhere.
    """

    name: ClassVar[str] = "rkllm"
    target: ClassVar[str] = "rk3588"

    quantized_dtype: str = option("", "Quantized dtype, such as w8a8; empty for the target's own.")
    optimization_level: int = option(0, "1: more exact, far slower to convert.", choices=(0, 1))
    algorithm: str = option("normal", "Quantization algorithm of the toolkit: normal, grq, gdq.")
    gptq: bool = option(
        False, "Round to int8 here, each column making up for the errors before it; grouped w8a8."
    )
    smooth: bool = option(
        True, "Fold outliers of activations into the weights first; for plain w8a8, exact."
    )
    npu_cores: int = option(0, "NPU cores to run on; 0 for all.", minimum=0)
    hybrid_rate: float = option(
        0.0, "Share of layers in the grouped form of the dtype, or in the plain one of a grouped."
    )
    max_context: int = option(0, "Longest context; 0 leaves it to the toolkit.", minimum=0)
    simulate: int = option(
        0, "Windows of each evaluation slice that the toolkit's simulator predicts.", minimum=0
    )
    emulate: int = option(
        2, "Windows of each evaluation slice that w8a8 is emulated on, here; 0 for none.", minimum=0
    )


@dataclass(frozen=True)
class Conversion:
    """What to convert to: an NPU's dtype by a release of its toolkit, every option resolved."""

    npu: Npu
    toolkit: Toolkit
    release: ToolkitVersion
    dtype: NpuDtype
    options: RkllmOptions


def npu_of(target: Target) -> Npu:
    """The target's NPU; UsageError where it has none."""
    if target.npu is None:
        raise UsageError(
            f"--target {target.name}: has no NPU.", hint="As in: gemquant rkllm --target rk3588"
        )
    return target.npu


def resolved(options: RkllmOptions, npu: Npu) -> RkllmOptions:
    """Fill in what the target decides."""
    return dataclasses.replace(
        options,
        quantized_dtype=options.quantized_dtype.lower() or npu.default_dtype,
        npu_cores=options.npu_cores or max(npu.cores),
    )


def option_problems(options: RkllmOptions, npu: Npu) -> list[GemquantError]:
    """Everything that the chip does not take, whatever the model and the toolkit.

    options: resolved.
    """
    found: list[GemquantError] = []
    dtype, name = npu.dtype(options.quantized_dtype), options.quantized_dtype
    if dtype is None:
        known = ", ".join(each.name for each in npu.dtypes)
        found.append(UsageError(f"--quantized-dtype {name}: {npu.platform} takes {known}."))
    elif options.algorithm not in dtype.algorithms:
        known = ", ".join(dtype.algorithms)
        found.append(
            UsageError(f"--algorithm {options.algorithm}: {npu.platform} takes {known} for {name}.")
        )
    if options.gptq:
        found += _gptq_problems(options, npu)
    if options.npu_cores not in npu.cores:
        cores = ", ".join(map(str, npu.cores))
        found.append(UsageError(f"--npu-cores {options.npu_cores}: {npu.platform} takes {cores}."))
    if not 0 <= options.hybrid_rate < npu.hybrid_rate_below:
        found.append(
            UsageError(
                f"--hybrid-rate {options.hybrid_rate:g}: must be at least 0 and below "
                f"{npu.hybrid_rate_below:g}.",
                hint="A rate of 1 is the other dtype: give that.",
            )
        )
    elif options.hybrid_rate and dtype is not None and not dtype.hybrid:
        found.append(UsageError(f"--hybrid-rate {options.hybrid_rate:g}: {name} has no hybrid."))
    if options.max_context > npu.max_context or options.max_context % npu.context_multiple:
        below = min(options.max_context, npu.max_context)
        fits = below - below % npu.context_multiple
        found.append(
            UsageError(
                f"--max-context {options.max_context}: must be a multiple of "
                f"{npu.context_multiple}, and at most {npu.max_context}.",
                hint=f"Use --max-context {fits}." if fits else None,
            )
        )
    return found


def _gptq_problems(options: RkllmOptions, npu: Npu) -> list[GemquantError]:
    """Codes made here are imported as they are: nothing else of the toolkit may decide them."""
    dtype = npu.dtype(options.quantized_dtype)
    fitting = [d.name for d in npu.dtypes if d.weight_bits == 8 and d.group_size > 0]
    found: list[GemquantError] = []
    if dtype is not None and dtype.name not in fitting:
        hint = f"Use --quantized-dtype {fitting[0]}." if fitting else None
        known = ", ".join(fitting) or "none here"
        found.append(UsageError(f"--gptq: goes with 8 bits in groups ({known}).", hint=hint))
    if options.hybrid_rate:
        found.append(
            UsageError(
                f"--gptq with --hybrid-rate {options.hybrid_rate:g}: the toolkit would round some "
                "layers again."
            )
        )
    return found


def release_problems(conversion: Conversion, config: Mapping[str, Any]) -> list[GemquantError]:
    """Everything that this release of the toolkit does not read or does not offer."""
    release, options, npu = conversion.release, conversion.options, conversion.npu
    named = f"{conversion.toolkit.name} {release.version}"
    generation = config["model_type"]
    found: list[GemquantError] = []
    able = conversion.toolkit.converting(npu.platform, generation, conversion.dtype.name)
    hint = f"Use {conversion.toolkit.name} {able[0].version} or newer." if able else None
    wrong = (
        (generation not in release.generations, f"does not read {generation}"),
        (npu.platform not in release.platforms, f"does not know {npu.platform}"),
        (conversion.dtype.name not in release.dtypes, f"has no {conversion.dtype.name}"),
        (options.algorithm not in release.algorithms, f"has no algorithm {options.algorithm}"),
    )
    found += [UnsupportedError(f"{named} {what}.", hint=hint) for holds, what in wrong if holds]
    absent = (
        ("hybrid_rate", bool(options.hybrid_rate), f"--hybrid-rate {options.hybrid_rate:g}"),
        ("max_context", bool(options.max_context), f"--max-context {options.max_context}"),
        (
            "num_npu_core",
            options.npu_cores != max(npu.cores),
            f"--npu-cores {options.npu_cores}",
        ),
    )
    found += [
        UnsupportedError(f"{flag}: {named} has no such option.", hint=_offering(conversion, name))
        for name, asked, flag in absent
        if asked and name not in release.build
    ]
    if options.simulate and release.simulator is None:
        found.append(UnsupportedError(f"--simulate: {named} has no simulator."))
    groups = release.gptq_int8_groups
    if options.gptq and conversion.dtype.group_size not in groups:
        having = [each for each in conversion.toolkit.versions if each.gptq_int8_groups]
        first = min(having, key=lambda each: each.key)
        sizes = ", ".join(map(str, groups)) or "none"
        found.append(
            UnsupportedError(
                f"--gptq: of 8-bit GPTQ checkpoints {named} imports groups of {sizes}.",
                hint=f"{first.version} and newer import groups of "
                f"{', '.join(map(str, first.gptq_int8_groups))}.",
            )
        )
    return [*found, *_shape_problems(conversion, config, named)]


def memory_problems(toolkit: Toolkit, weights: int, *, host_bytes: int) -> list[GemquantError]:
    """Refuse what the host has not the memory for, by the toolkit's estimate."""
    needed = int(toolkit.conversion.bytes_per_weight * weights)
    if needed <= host_bytes:
        return []
    return [
        UnsupportedError(
            f"converting takes about {human_bytes(needed)} of memory; {human_bytes(host_bytes)} "
            "are allowed here.",
            hint="Use --prepare-only, and convert where there is more; or --tool-memory SIZE.",
        )
    ]


def _offering(conversion: Conversion, parameter: str) -> str | None:
    having = [each for each in conversion.toolkit.versions if parameter in each.build]
    return f"{min(having, key=lambda each: each.key).version} and newer have it."


def _shape_problems(
    conversion: Conversion, config: Mapping[str, Any], named: str
) -> list[GemquantError]:
    from gemquant.convert.estimate.npu import group_problem

    release = conversion.release
    found: list[GemquantError] = []
    reason = group_problem(config, conversion.dtype)
    if reason is not None:
        found.append(UnsupportedError(f"{conversion.dtype.name}: {reason}."))
    heads = config["num_attention_heads"] * config["head_dim"]
    if release.square_attention and heads != config["hidden_size"]:
        found.append(
            UnsupportedError(
                f"{named} reads no model whose heads together ({heads}) differ from its hidden "
                f"size ({config['hidden_size']})."
            )
        )
    if release.head_dims and config["head_dim"] not in release.head_dims:
        known = ", ".join(map(str, release.head_dims))
        found.append(
            UnsupportedError(f"{named} converts heads of {known}, not of {config['head_dim']}.")
        )
    return found
