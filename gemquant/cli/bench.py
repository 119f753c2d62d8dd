"""``gemquant bench``: how fast artifacts run, in the runtimes that are made for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.board import bench_on_board, bench_problems, bench_subjects, board_flags
from gemquant.cli.checks import too_small, unknown_place
from gemquant.cli.flags import CommaList, output_flags
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting
from gemquant.core.resources import default_threads
from gemquant.errors import GemquantError, ProblemCollector, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.core.progress import Progress
    from gemquant.measure.bench.document import Benchmark, Settings

DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALLEST = {
    "prompt_tokens": 2,
    "new_tokens": 2,
    "repetitions": 1,
    "warm_up_runs": 0,
    "threads": 1,
}


class BenchCommand(click.Command):
    """Measure artifacts, or read what was measured; print it, or what changed."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.cli import bench_tables, render

        given = dict(ctx.params)
        problems = [*problems_of(ctx), *_problems(given), *bench_problems(given)]
        if given["board"] is not None:
            given |= {"threads": 0, "device": "npu"}
        elif given["threads"] is None:
            given["threads"] = default_threads()
        refuse(problems)
        with reporter(quiet=given["quiet"]) as progress:
            before = _read(given["compare"]) if given["compare"] else None
            if given["dry_run"]:
                planned = _on_board(given) if given["board"] else _planned(given)
                bench_tables.plan(planned, as_json=given["as_json"])
                return
            after = _after(given, progress)
        if before is None:
            if given["as_json"]:
                render.print_json(after.model_dump(mode="json"))
            else:
                bench_tables.benchmark(after)
            return
        from gemquant.measure.bench.compare import compare

        comparison = compare(before, after)
        if given["as_json"]:
            render.print_json(comparison.model_dump(mode="json"))
        else:
            bench_tables.comparison(comparison)


def _problems(given: dict[str, Any]) -> list[GemquantError]:
    problems = [*too_small(given, SMALLEST), *unknown_place(given, DTYPES)]
    saved = [name for name in given["artifacts"] if _is_saved(name)]
    if saved and len(given["artifacts"]) > 1:
        problems.append(
            UsageError(
                f"{saved[0]}: a saved benchmark stands alone; artifacts are measured.",
                hint=f"gemquant bench --compare BEFORE.json {saved[0]}",
            )
        )
    return problems


def _is_saved(name: str) -> bool:
    return name.endswith(".json")


def _read(path: str) -> Benchmark:
    from gemquant.measure.bench.document import Benchmark

    return Benchmark.read(Path(path))


def _after(given: dict[str, Any], progress: Progress) -> Benchmark:
    """Measure, or read what was measured."""
    from gemquant.measure.bench import measure

    if _is_saved(given["artifacts"][0]):
        return _read(given["artifacts"][0])
    if given["board"]:
        return bench_on_board(given, bench_subjects(given), _settings(given), progress)
    return measure.run(_planned(given), _settings(given), progress)


def _on_board(given: dict[str, Any]) -> Any:
    from gemquant.measure.bench.measure import Measurement
    from gemquant.rockchip.bench import MODE, RUNTIME

    return [Measurement(each, RUNTIME, MODE) for each in bench_subjects(given)]


def _planned(given: dict[str, Any]) -> Any:
    from gemquant.measure.bench import measure
    from gemquant.measure.bench.subject import Subject

    _require_device(given["device"])
    problems, names = ProblemCollector(), dict.fromkeys(given["artifacts"])
    opened = [problems.attempt(partial(Subject.open, name)) for name in names]
    problems.refuse()
    subjects = [each.value for each in opened]
    _require_board(subjects)
    return measure.plan(
        subjects, device=given["device"], runtimes=given["runtimes"], modes=given["modes"]
    )


def _require_board(subjects: list[Any]) -> None:
    refuse(
        [
            UsageError(
                f"{each.name}: an RKLLM file runs on a board alone.",
                hint=f"gemquant bench {each.name} --board ssh://USER@HOST",
            )
            for each in subjects
            if each.container == "rkllm"
        ]
    )


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    from gemquant.cli.preparation import require_device

    require_device(device)


def _settings(given: dict[str, Any]) -> Settings:
    from gemquant.measure.bench.document import Settings

    return Settings.model_validate({name: given[name] for name in Settings.model_fields})


command = BenchCommand(
    "bench",
    params=[
        click.Argument(["artifacts"], nargs=-1, required=True, metavar="ARTIFACT..."),
        click.Option(
            ["--compare"],
            metavar="BEFORE.json",
            help="Print what changed since an earlier benchmark of the same machine.",
        ),
        setting(
            "--prompt-tokens",
            type=int,
            default=128,
            metavar="N",
            help="Length of the prompt, <bos> included.",
        ),
        setting(
            "--new-tokens",
            type=int,
            default=64,
            metavar="N",
            help="Tokens to generate, greedily, wherever the text would end.",
        ),
        setting("--repetitions", type=int, default=5, metavar="N", help="Runs that count."),
        setting(
            "--warm-up-runs",
            type=int,
            default=2,
            metavar="N",
            help="Runs before them, reported apart.",
        ),
        setting(
            "--runtimes",
            type=CommaList(),
            instead="all that load the artifact",
            metavar="NAME,…",
            help="Runtimes: llama.cpp, mlx-lm, onnxruntime-genai, transformers.",
        ),
        setting(
            "--modes",
            type=CommaList(),
            instead="all that the device makes sensible",
            metavar="NAME,…",
            help="Modes: eager, sdpa, flash-attention-2, static, compiled of transformers; default "
            "of others.",
        ),
        setting(
            "--device", default="cpu", metavar="cpu|cuda|mps", help="Where the runtime computes."
        ),
        setting(
            "--dtype",
            default="auto",
            metavar="|".join(DTYPES),
            help="Type that transformers computes in; auto is the files' own.",
        ),
        setting(
            "--threads",
            type=int,
            instead="physical cores",
            metavar="N",
            help="Processor threads of the runtime.",
        ),
        *board_flags(),
        click.Option(
            ["--tokenizer"],
            metavar="MODEL",
            help="With --board: the model whose tokenizer makes the prompt, if no manifest says.",
        ),
        click.Option(
            ["--dry-run"], is_flag=True, help="Say what would be measured; measure nothing."
        ),
        *output_flags(),
    ],
    help="""Measure how fast artifacts run, and in how much memory.

    Every artifact, in every runtime that loads it and every mode of that, is loaded in a process of
    its own: prompt and new tokens a second, time to the first token, peak memory, size, load time;
    the median of the repetitions and their range, warm-up apart. A plain checkpoint's folder and a
    GGUF file can be measured beside artifacts. The machine's condition is recorded as far as it
    tells; results of different machines are not compared. docs/bench.md describes the JSON.""",
    epilog="""\b
Examples:
  gemquant bench gemma-2-2b-gguf
  gemquant bench gemma-2-2b gemma-2-2b-awq gemma-2-2b-nf4 --device cuda
  gemquant bench gemma-2-2b-gguf --threads 4 --json > before.json
  gemquant bench gemma-2-2b-gguf --threads 4 --compare before.json
  gemquant bench --compare before.json after.json
  gemquant bench gemma-2-2b-it-rkllm --board ssh://rock@rock-5b.local""",
)
