"""``gemquant plan``: what fits a device, how large and how fast, before anything is done."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import (
    Repeated,
    Size,
    complete_target,
    defaults_flag,
    flag,
    flags,
    model_argument,
    output_flags,
    target_folder_flag,
)
from gemquant.cli.settings import problems_of, setting, target_folders
from gemquant.core.progress import reporter
from gemquant.core.resources import human_bytes, human_seconds, total_memory
from gemquant.errors import UsageError

if TYPE_CHECKING:
    from gemquant.convert.candidates import Candidate
    from gemquant.convert.estimate import Estimate, EstimateRequest, Headers, TowerNeeds
    from gemquant.core.targets import Target

ADVISED = ("bfloat16", "w8-g128", "Q8_0", "Q6_K", "Q5_K_M", "w4-g128", "Q4_K_M", "Q3_K_M", "Q2_K")
"""One scheme for each step of bits; what else there is takes ``--all``."""
MOST_TAKE = "Q4_K_M"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one target can take."""

    target: Target
    request: EstimateRequest
    rows: Sequence[Estimate]
    refused: Sequence[Candidate]

    def advised(self, generation: str) -> list[Estimate]:
        """One row for each step of bits, in the target's preferred container; else all rows."""
        order = next((v for k, v in self.target.preference.items() if k == generation), ())
        places = {container: place for place, container in enumerate(order)}
        chosen: dict[str, Estimate] = {}
        for row in sorted(self.rows, key=lambda r: places.get(r.candidate.container, len(places))):
            if row.candidate.scheme in ADVISED:
                chosen.setdefault(row.candidate.scheme, row)
        return [row for row in self.rows if row in chosen.values()] or list(self.rows)

    def most_take(self) -> Estimate | None:
        """Q4_K_M, or an NPU's default, if it fits; else the largest that does."""
        default = self.target.npu.default_dtype if self.target.npu else MOST_TAKE
        fitting = [row for row in self.rows if row.fits is not False]
        usual = [row for row in fitting if row.candidate.scheme == default]
        return next(iter([*usual, *fitting]), None)


@click.command(
    "plan",
    epilog="""\b
Examples:
  gemquant plan google/gemma-2-2b --target rk3588 --memory 8G --context 4096
  gemquant plan ./my-gemma --target cuda --memory 24G --device-model "RTX 4090"
  gemquant plan gemma.gguf --target cpu --target rk3588 --all
  gemquant plan gemma.gguf --target cpu --memory 16GiB --bandwidth 60 --json""",
)
@flags(
    model_argument(),
    Repeated(
        ["--target"],
        multiple=True,
        default=("cuda",),
        show_default=True,
        metavar="NAME",
        help="Device to plan for; repeatable. See `gemquant targets`.",
        shell_complete=complete_target,
        envvar="GEMQUANT_TARGET",
    ),
    setting(
        "--memory",
        type=Size(),
        metavar="SIZE",
        instead="this machine's, if it is such a device",
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
    flag("--text-only", "Plan the text model alone of a multimodal Gemma, without its towers."),
    flag("--all", "List every scheme, not one for each step of bits."),
    target_folder_flag(),
    defaults_flag(),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Predict size, memory and speed of the schemes that a target takes.

    The prediction uses headers alone: weights, a 16-bit key-value cache (only the window in sliding
    layers, if the runtime drops the rest), and the memory of the runtime itself; of a multimodal
    Gemma its towers and the activations of one image, where the container keeps them. Decoding
    reads every weight once per token, so memory bandwidth limits its speed. From a Hub id only
    config.json is downloaded.
    """
    problems = problems_of(ctx)
    context, ref, bandwidth = params["context"], params["model"], params["bandwidth"]
    if context is not None and context < 1:
        problems.append(UsageError(f"--context {context}: must be at least 1."))
    if not ref:
        problems.append(
            UsageError("MODEL: missing.", hint="As in: gemquant plan google/gemma-2-2b")
        )
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        problems.append(UsageError(f"--bandwidth {bandwidth:g}: must be above 0."))
    names = dict.fromkeys(n for text in params["target"] or () for n in text.split(",") if n)
    if not names:
        problems.append(UsageError("--target: missing.", hint="As in: --target cpu"))
    own = problems.attempt(lambda: target_folders(params["target_folder"]))
    folders = own.value if own.succeeded else ()
    with reporter(quiet=params["quiet"]) as progress:
        progress.start(f"reading {ref}", 0)

        from gemquant.core.targets import load_target
        from gemquant.formats.checkpoint.recognition import check_place

        targets = [problems.attempt(partial(load_target, name, folders)) for name in names]
        problems.refuse()
        check_place(ref)  # before torch is loaded

        from gemquant.convert.estimate import EstimateRequest, estimate, read_headers

        headers = read_headers(ref)
        if params["text_only"]:
            headers = dataclasses.replace(headers, towers=None)
        plans = []
        for target in (each.value for each in targets):
            memory = params["memory"] or _own_memory(target.name)
            request = EstimateRequest(memory, context, params["device_model"], bandwidth)
            found = estimate(target, headers.config, request, headers.towers)
            plans.append(Plan(target, request, *found))
    if params["as_json"]:
        _print_json(headers, plans)
    else:
        _print(headers, plans, everything=params["all"])


def _own_memory(target: str) -> int | None:
    """Memory of this machine where it is such a device; None where it is not, or has none."""
    if target == "cpu" or (target == "mps" and sys.platform == "darwin"):
        return total_memory()
    if target == "cuda":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory
    return None


# ---------------------------------------------------------------- what is printed


def _print(headers: Headers, plans: Sequence[Plan], *, everything: bool) -> None:
    from gemquant.cli.render import print_tables, table
    from gemquant.convert.candidates import active_weights, table_size, weight_count
    from gemquant.models.structure import PER_LAYER_TABLE

    weights, generation = weight_count(headers.config), headers.config["model_type"]
    active = active_weights(headers.config)
    table_weights = table_size(headers.config, PER_LAYER_TABLE)
    shown = [
        (plan, row)
        for plan in plans
        for row in (plan.rows if everything else plan.advised(generation))
    ]
    tight = any(row.fits is False for _, row in shown)
    numbers = ("bits", "file", "table", "memory", "tok/s")
    listing = table(
        *(["target"] if len(plans) > 1 else []),
        *("bits", "scheme", "file"),
        *(["table"] if table_weights else []),
        "memory",
        *(["fits"] if tight else []),
        "tok/s",
        "gemquant …" if not everything else "needs",
        numbers=numbers,
    )
    for plan, row in shown:
        candidate = row.candidate
        fits = {None: "", True: "yes"}.get(
            row.fits, f"no, {human_bytes(-(row.spare_bytes or 0))} short"
        )
        listing.add_row(
            *([plan.target.name] if len(plans) > 1 else []),
            f"{8 * candidate.file_bytes / weights:.1f}",
            f"{candidate.container} {candidate.scheme}" if everything else candidate.scheme,
            human_bytes(candidate.file_bytes + row.tower_bytes),
            *([human_bytes(candidate.table_bytes)] if table_weights else []),
            human_bytes(row.memory_bytes),
            *([fits] if tight else []),
            f"{_rate(row.tokens_per_second)} – {_rate(row.tokens_per_second_full)}",
            ", ".join(candidate.requires[:1])
            if everything
            else _command(candidate, headers).removeprefix("gemquant "),
        )
    parts: list[Any] = [f"{headers.ref}: {weights / 1e9:.2f} billion weights, {generation}"]
    if table_weights:
        parts.append(
            f"table: {table_weights / 1e9:.2f} billion of them give every layer an input for each "
            "token; a token reads a row"
        )
    if headers.towers is not None:
        parts += _towers(headers.towers, [row for plan in plans for row in plan.rows])
    if active < weights:
        parts.append(f"active: {active / 1e9:.2f} billion weights are read for a token")
    for plan in plans:
        memory, cache = plan.request.memory_bytes, _cache(plan.rows)
        parts.append(
            f"{plan.target.name}: {plan.target.description}; "
            + (f"memory {human_bytes(memory)}, " if memory else "memory not given (--memory), ")
            + f"context {plan.request.context} tokens{cache}"
        )
    parts += ["", listing]
    parts += [
        f"{each.container} {each.scheme}: not possible: {each.refused}."
        for plan in plans
        for each in plan.refused
        if everything or plan.target.npu or not plan.rows
    ]
    hidden = sum(len(plan.rows) for plan in plans) - len(shown)
    parts += [f"{hidden} more with --all."] if hidden else []
    parts += ["", "Everything here is predicted from headers; nothing was measured on this model."]
    for plan in plans:
        parts += _basis(plan)
    for plan in plans:
        best, words = plan.most_take(), "nothing fits"
        if best is not None:
            words = f"most people take: {_command(best.candidate, headers)}"
        parts.append(f"{plan.target.name}: {words}")
    print_tables(*parts)


def _towers(towers: TowerNeeds, rows: Sequence[Estimate]) -> list[str]:
    """What a model sees and hears with, and which containers keep it."""
    sizes = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in towers.weights.items())
    holding = dict.fromkeys(row.candidate.container for row in rows if row.tower_bytes)
    where = f"in {', '.join(holding)}" if holding else "in no container of these"
    lines = [f"towers: {sizes} million weights, {human_bytes(towers.bytes)} {where}"]
    if towers.image is not None:
        lines.append(
            f"an image: {towers.image.tokens} tokens of the context, and "
            f"{human_bytes(towers.image_bytes)} while it is read"
        )
    return lines


def _command(candidate: Candidate, headers: Headers) -> str:
    return candidate.command.replace("MODEL", shlex.quote(headers.ref))


def _cache(rows: Sequence[Estimate]) -> str:
    """The size of keys and values, by the two kinds of layers where both are there."""
    if not rows:
        return ""
    full, both = rows[0].full_cache_bytes, rows[0].cache_bytes
    words = f", cache {human_bytes(both)}"
    if 0 < full < both:
        words += f": {human_bytes(full)} in full layers, {human_bytes(both - full)} in sliding ones"
    return words


def _rate(tokens_per_second: float) -> str:
    """A speed with three figures.

    >>> _rate(1263.4), _rate(52.17)
    ('1260', '52.2')
    """
    return f"{float(f'{tokens_per_second:.3g}'):g}"


def _basis(plan: Plan) -> list[str]:
    """Where the figures come from."""
    target, rows, lines = plan.target, plan.rows, []
    for speed in dict.fromkeys(row.speed for row in rows):
        at_most = "at most " if speed.basis == "bound" else ""
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
        effort = human_bytes(slow.conversion_bytes), human_seconds(slow.conversion_seconds)
        lines += [
            f"converting, an estimate: {effort[0]} of memory, {effort[1]} at optimization level 0.",
            f"needed: {'; '.join(slow.requires)}. File sizes are estimates.",
        ]
    return lines


def _print_json(headers: Headers, plans: Sequence[Plan]) -> None:
    from gemquant.cli.render import print_json
    from gemquant.convert.candidates import active_weights, table_size, weight_count
    from gemquant.models.structure import PER_LAYER_TABLE

    documents = [
        {
            "model": headers.ref,
            "architecture": headers.config["model_type"],
            "weights": weight_count(headers.config),
            "active_weights": active_weights(headers.config),
            "table_weights": table_size(headers.config, PER_LAYER_TABLE),
            "tower_weights": dict(headers.towers.weights) if headers.towers else {},
            "image_tokens": headers.towers.image.tokens
            if headers.towers and headers.towers.image
            else 0,
            "target": plan.target.name,
            "request": dataclasses.asdict(plan.request),
            "measured": False,
            "candidates": [_document(row) for row in plan.rows],
            "not_possible": [
                {"container": c.container, "scheme": c.scheme, "reason": c.refused}
                for c in plan.refused
            ],
            "footprint": plan.target.footprint.model_dump(mode="json")
            if plan.target.footprint
            else None,
        }
        for plan in plans
    ]
    print_json(documents if len(documents) > 1 else documents[0])


def _document(row: Estimate) -> dict[str, Any]:
    figures = dataclasses.asdict(row)
    candidate = figures.pop("candidate")
    del candidate["refused"]
    speed = row.speed.model_dump(mode="json")
    return {**candidate, **figures, "fits": row.fits, "speed": speed}
