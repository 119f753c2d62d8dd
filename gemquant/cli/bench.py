"""``gemquant bench``: how fast artifacts run, and in how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.artifacts import missing
from gemquant.cli.board import bench_on_board, bench_problems, bench_subjects, board_flags
from gemquant.cli.flags import (
    CommaList,
    complete_model,
    document_flag,
    flag,
    flags,
    output_flags,
    runtime_flags,
    too_small,
    unknown_place,
)
from gemquant.cli.settings import problems_of, setting
from gemquant.core.progress import print_end, reporter
from gemquant.core.resources import default_threads
from gemquant.errors import GemquantError, UsageError, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemquant.core.protocols import Progress
    from gemquant.measure.bench.document import Benchmark
    from gemquant.measure.bench.measure import BenchRequest, Measurement

DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALLEST = {
    "prompt_tokens": 2,
    "new_tokens": 2,
    "repetitions": 1,
    "warm_up_runs": 0,
    "threads": 1,
}


@click.command(
    "bench",
    epilog="""\b
Examples:
  gemquant bench gemma-2-2b-gguf
  gemquant bench gemma-2-2b gemma-2-2b-awq gemma-2-2b-nf4 --device cuda
  gemquant bench gemma-2-2b-gguf --threads 4 -o before.json
  gemquant bench gemma-2-2b-gguf --threads 4 --compare before.json
  gemquant bench --compare before.json after.json
  gemquant bench gemma-2-2b-it-rkllm --board ssh://rock@rock-5b.local""",
)
@flags(
    click.Argument(
        ["artifacts"],
        nargs=-1,
        required=True,
        metavar="ARTIFACT...",
        shell_complete=complete_model,
    ),
    click.Option(
        ["--compare"],
        metavar="BEFORE.json",
        help="Print what changed since an earlier benchmark of the same machine.",
    ),
    setting(
        "--prompt-tokens",
        "-p",
        type=int,
        default=128,
        metavar="N",
        help="Prompt length with <bos>.",
    ),
    setting(
        "--new-tokens",
        "-n",
        type=int,
        default=64,
        metavar="N",
        help="Tokens to generate, greedily, even past the end of the text.",
    ),
    setting(
        "--repetitions", "--runs", "-r", type=int, default=5, metavar="N", help="Runs that count."
    ),
    setting(
        "--warm-up-runs",
        type=int,
        default=2,
        metavar="N",
        help="Runs before them, reported separately.",
    ),
    setting(
        "--runtimes",
        type=CommaList(),
        instead="all that load the artifact",
        metavar="NAME,…",
        help="Runtimes: llama.cpp, mlx-lm, onnxruntime-genai, transformers, vllm.",
    ),
    setting(
        "--modes",
        type=CommaList(),
        instead="all that make sense on the device",
        metavar="NAME,…",
        help="Modes: eager, sdpa, flash-attention-2, static, compiled in transformers; default "
        "in others.",
    ),
    *runtime_flags(
        DTYPES,
        default="auto",
        help="Type that transformers computes in; auto is the type of the files.",
    ),
    *board_flags(),
    click.Option(
        ["--tokenizer"],
        metavar="MODEL",
        help="With --board: model whose tokenizer makes the prompt, without a manifest.",
    ),
    flag("--dry-run", "List what would be measured; measure nothing."),
    document_flag("the benchmark, for --compare, gate and report,"),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Measure how fast artifacts run, and in how much memory.

    Each artifact is loaded in its own process, in every runtime that loads it and every mode of
    that: prompt and new tokens per second, time to the first token, peak memory, size, load time.
    Figures are the median of the repetitions with their range; warm-up runs are separate. Plain
    checkpoint folders and GGUF files can be measured too. The machine's condition is recorded;
    results of different machines are not compared. docs/bench.md describes the JSON.
    """
    if absent := missing(ctx.params["artifacts"]):
        refuse([*problems_of(ctx), *_problems(ctx.params), *absent])

    from gemquant.cli import bench_tables, render
    from gemquant.core.artifact.staged_files import document_problems, write_document
    from gemquant.measure.bench.compare import compare
    from gemquant.measure.bench.document import Benchmark

    params = dict(ctx.params)
    problems = [*problems_of(ctx), *_problems(params), *bench_problems(params)]
    problems += document_problems(params["output"], Benchmark)
    if params["board"] is not None:
        params |= {"threads": 0, "device": "npu"}
    elif params["threads"] is None:
        params["threads"] = default_threads()
    refuse(problems)
    request = _request(params)
    with reporter(quiet=params["quiet"]) as progress:
        before = Benchmark.read(Path(params["compare"])) if params["compare"] else None
        if params["dry_run"]:
            planned = _board_plan(params) if params["board"] else request.plan()
            bench_tables.plan(planned, as_json=params["as_json"])
            return
        after = _measure(request, params, progress)
    if params["output"] is not None:
        write_document(params["output"], after)
    result = after if before is None else compare(before, after)
    if params["as_json"]:
        render.print_json(result.model_dump(mode="json"))
    elif isinstance(result, Benchmark):
        bench_tables.benchmark(result)
    else:
        bench_tables.comparison(result)
    print_end(quiet=params["quiet"])


def _problems(params: dict[str, Any]) -> list[GemquantError]:
    problems = [*too_small(params, SMALLEST), *unknown_place(params, DTYPES)]
    saved = [name for name in params["artifacts"] if _is_saved(name)]
    if saved and len(params["artifacts"]) > 1:
        problems.append(
            UsageError(
                f"{saved[0]}: a saved benchmark cannot be combined with artifacts to measure.",
                hint=f"gemquant bench --compare BEFORE.json {saved[0]}",
            )
        )
    return problems


def _is_saved(name: str) -> bool:
    return name.endswith(".json")


def _request(params: dict[str, Any]) -> BenchRequest:
    from gemquant.measure.bench.document import Settings
    from gemquant.measure.bench.measure import BenchRequest

    settings = Settings.model_validate({name: params[name] for name in Settings.model_fields})
    return BenchRequest(params["artifacts"], settings, params["runtimes"], params["modes"])


def _measure(request: BenchRequest, params: dict[str, Any], progress: Progress) -> Benchmark:
    """Measure, or read a saved benchmark."""
    from gemquant.measure.bench.document import Benchmark
    from gemquant.measure.bench.measure import run

    if _is_saved(request.artifacts[0]):
        return Benchmark.read(Path(request.artifacts[0]))
    if params["board"]:
        return bench_on_board(params, bench_subjects(params), request.settings, progress)
    return run(request.plan(), request.settings, progress)


def _board_plan(params: dict[str, Any]) -> Sequence[Measurement]:
    from gemquant.measure.bench.measure import Measurement
    from gemquant.rockchip.bench import MODE, RUNTIME

    return [Measurement(each, RUNTIME, MODE) for each in bench_subjects(params)]
