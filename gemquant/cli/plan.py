"""``gemquant plan``: what fits a device, how large and how fast, before anything is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gemquant.cli.flags import (
    Size,
    complete_target,
    defaults_flag,
    output_flags,
    target_folder_flag,
)
from gemquant.cli.settings import problems_of, setting, target_folders
from gemquant.errors import UsageError

if TYPE_CHECKING:
    from gemquant.convert.candidates import Candidate
    from gemquant.convert.estimate import Estimate, EstimateRequest, Headers
    from gemquant.core.targets import Target


class PlanCommand(click.Command):
    """Read headers, predict, print."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.convert.estimate import EstimateRequest, estimate, read_headers
        from gemquant.core.targets import load_target

        flags, problems = ctx.params, problems_of(ctx)
        if (
            flags["memory"] is None
            and ctx.get_parameter_source("memory") is ParameterSource.DEFAULT
        ):
            problems.append(UsageError("--memory: missing.", hint="As in: --memory 8G"))
        context = problems.attempt(lambda: _context(flags["context"]))
        target = problems.attempt(
            lambda: load_target(flags["target"], target_folders(flags["target_folder"]))
        )
        headers = problems.attempt(lambda: read_headers(_model(flags["model"])))
        problems.refuse()
        request = EstimateRequest(
            flags["memory"], context.value, flags["device_model"], flags["bandwidth"]
        )
        rows, refused = estimate(target.value, headers.value.config, request)
        if flags["as_json"]:
            _print_json(headers.value, target.value, request, rows, refused)
        else:
            _print(headers.value, target.value, request, rows, refused)


def _context(context: int | None) -> int:
    if context is None or context < 1:
        raise UsageError(f"--context {context}: must be at least 1.")
    return context


def _model(model: str | None) -> str:
    if not model:
        raise UsageError(
            "MODEL: missing.", hint="As in: gemquant plan google/gemma-2-2b --memory 8G"
        )
    return model


# ---------------------------------------------------------------- what is printed


def _print(
    headers: Headers,
    target: Target,
    request: EstimateRequest,
    rows: Sequence[Estimate],
    refused: Sequence[Candidate],
) -> None:
    from gemquant.cli.render import print_tables, table
    from gemquant.convert.candidates import weight_count
    from gemquant.core.resources import human_bytes

    speed = rows[0].speed if rows else None
    at_most = "at most " if speed is not None and speed.basis == "bound" else ""
    size = f"{weight_count(headers.config) / 1e9:.2f} billion weights"
    parts: list[Any] = [
        f"{headers.ref}: {size}, {headers.config['model_type']}; {target.description}",
        f"memory {human_bytes(request.memory_bytes)}, context {request.context} tokens"
        + (f", cache {human_bytes(rows[0].cache_bytes)}" if rows else ""),
        "",
    ]
    listing = table(
        "container",
        "scheme",
        "file",
        "memory",
        "fits",
        "tok/s",
        "needs",
        numbers=("file", "memory", "tok/s"),
    )
    for row in rows:
        fits = "yes" if row.fits else "no"
        word = "spare" if row.fits else "short"
        listing.add_row(
            row.candidate.container,
            row.candidate.scheme,
            human_bytes(row.candidate.file_bytes),
            human_bytes(row.memory_bytes),
            f"{fits}, {human_bytes(abs(row.spare_bytes))} {word}",
            f"{row.tokens_per_second:.3g} – {row.tokens_per_second_full:.3g}",
            ", ".join(row.candidate.requires[:1]),
        )
    parts.append(listing)
    parts += [f"{each.container} {each.scheme}: not possible: {each.refused}." for each in refused]
    parts += ["", "Everything here is predicted from headers; nothing was measured on this model."]
    parts += _basis(target, rows, at_most)
    print_tables(*parts)


def _basis(target: Target, rows: Sequence[Estimate], at_most: str) -> list[str]:
    from gemquant.core.resources import human_bytes

    lines = []
    for speed in dict.fromkeys(row.speed for row in rows):
        constant = (
            f" and {speed.milliseconds_per_token:g} ms a token"
            if speed.milliseconds_per_token
            else ""
        )
        lines.append(
            f"tok/s, {at_most}with the cache empty – full: {speed.device}, "
            f"{speed.gb_per_second:g} GB/s{constant}, {speed.basis}; {'; '.join(speed.sources)}."
            + (f" {speed.note}" if speed.note else "")
        )
    if target.footprint is not None and rows:
        lines.append(
            f"besides weights and cache: {human_bytes(rows[0].overhead_bytes)}, "
            f"{target.footprint.basis}; {'; '.join(target.footprint.sources)}."
        )
    slow = next((row.candidate for row in rows if row.candidate.conversion_seconds), None)
    if slow is not None and slow.conversion_seconds and slow.conversion_bytes:
        effort = human_bytes(slow.conversion_bytes), _duration(slow.conversion_seconds)
        lines += [
            f"converting, an estimate: {effort[0]} of memory, {effort[1]} at optimization level 0.",
            f"needed: {'; '.join(slow.requires)}. File sizes are estimates.",
        ]
    return lines


def _duration(seconds: float) -> str:
    """Say a duration roughly.

    >>> _duration(8), _duration(1300), _duration(40000)
    ('8 seconds', '22 minutes', '11 hours')
    """
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.0f} hours"


def _print_json(
    headers: Headers,
    target: Target,
    request: EstimateRequest,
    rows: Sequence[Estimate],
    refused: Sequence[Candidate],
) -> None:
    from gemquant.cli.render import print_json
    from gemquant.convert.candidates import weight_count

    print_json(
        {
            "model": headers.ref,
            "architecture": headers.config["model_type"],
            "weights": weight_count(headers.config),
            "target": target.name,
            "request": dataclasses.asdict(request),
            "measured": False,
            "candidates": [_document(row) for row in rows],
            "not_possible": [
                {"container": c.container, "scheme": c.scheme, "reason": c.refused} for c in refused
            ],
            "footprint": target.footprint.model_dump(mode="json") if target.footprint else None,
        }
    )


def _document(row: Estimate) -> dict[str, Any]:
    candidate = dataclasses.asdict(row.candidate)
    del candidate["refused"]
    return {
        **candidate,
        "cache_bytes": row.cache_bytes,
        "overhead_bytes": row.overhead_bytes,
        "memory_bytes": row.memory_bytes,
        "spare_bytes": row.spare_bytes,
        "fits": row.fits,
        "tokens_per_second": row.tokens_per_second,
        "tokens_per_second_full": row.tokens_per_second_full,
        "speed": row.speed.model_dump(mode="json"),
    }


command = PlanCommand(
    "plan",
    params=[
        click.Argument(["model"], required=False, envvar="GEMQUANT_MODEL", metavar="[MODEL]"),
        setting(
            "--target",
            default="cuda",
            metavar="NAME",
            help="Device to plan for; see `gemquant targets`.",
            complete=complete_target,
        ),
        setting(
            "--memory",
            type=Size(),
            metavar="SIZE",
            help="Memory that the device has for the model: 8G, 16GiB.",
        ),
        setting("--context", type=int, default=4096, metavar="N", help="Tokens in the cache."),
        setting(
            "--device-model",
            metavar="NAME",
            instead="the first that the target lists",
            help="Which of the target's devices, for its memory's bandwidth.",
        ),
        setting(
            "--bandwidth",
            type=float,
            metavar="GB/S",
            help="The memory's bandwidth, where no listed device is yours.",
        ),
        target_folder_flag(),
        defaults_flag(),
        *output_flags(),
    ],
    help="""Predict size, memory and speed of every scheme that a target takes.

    The prediction uses headers alone: weights, a 16-bit key-value cache (only the window in sliding
    layers, if the runtime drops the rest), and the memory of the runtime itself. Decoding reads
    every weight once per token, so memory bandwidth limits its speed. From a Hub id only
    config.json is downloaded.""",
    epilog="""\b
Examples:
  gemquant plan google/gemma-2-2b --target rk3588 --memory 8G --context 4096
  gemquant plan ./my-gemma --target cuda --memory 24G --device-model "RTX 4090"
  gemquant plan gemma.gguf --target cpu --memory 16GiB --bandwidth 60 --json""",
)
