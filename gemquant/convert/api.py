"""What ``import gemquant`` offers: the jobs of the command line as functions.

Every function checks everything first and raises a GemquantError that names all problems. It shows
progress on stderr, or in a notebook, unless ``progress`` is False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gemquant.calibration.suites import SuiteText
from gemquant.convert.estimate import Estimate, EstimateRequest, estimate, read_headers
from gemquant.convert.external_options import ImatrixOptions
from gemquant.convert.imatrix import ImatrixStep
from gemquant.convert.plugins import open_weights
from gemquant.convert.run import RunRequest, default_memory, plan_run
from gemquant.convert.run_recipe import IMATRIX, RunJob, RunRecipe, preset
from gemquant.core.artifact import Artifact
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.core.progress import reporter
from gemquant.core.protocols import Progress
from gemquant.core.resources import default_threads, parse_size
from gemquant.core.targets import Target, load_target
from gemquant.errors import ProblemCollector, UnsupportedError, UsageError, refuse
from gemquant.measure.quality.evaluation import Evaluation, EvaluationRequest, name_problems


def quantize(
    model: str | Path,
    quantizer: str,
    *,
    output: str | Path | None = None,
    progress: bool = True,
    threads: int | None = None,
    force: bool = False,
    **settings: Any,
) -> Artifact:
    """Make one artifact, or return it where the same call has made it before.

    model: folder, Hub id, GGUF file or sample. quantizer: awq, rtn, nf4, int8, gguf, …
    output: the folder; by default a name made from model and scheme, here. threads: by default the
    physical cores. force: replace what stands at ``output``. settings: the quantizer's options and
    those of a recipe, named as in docs/run.md: ``group_size=64, samples=32, target="cuda"``.
    """
    place = {} if output is None else {"name": Path(output).name}
    folder = Path() if output is None else Path(output).parent
    recipe = RunRecipe(
        "quantize", [str(model)], None, {}, [{"quantizer": quantizer, **settings, **place}]
    )
    jobs = _expanded([recipe])
    if len(jobs) != 1:
        raise UsageError(
            f"quantize: {len(jobs)} artifacts for one call.", hint="gemquant.run makes several."
        )
    return _make(jobs, folder, progress=progress, threads=threads, force=force)[0]


def run(
    recipe: str | Path | Mapping[str, Any],
    *models: str | Path,
    output: str | Path | None = None,
    progress: bool = True,
    threads: int | None = None,
    memory: str | None = None,
    force: bool = False,
) -> list[Artifact]:
    """Make every artifact of a recipe, in as few passes over the checkpoint as memory allows.

    recipe: a file, the name of a preset, or the same as a mapping (docs/run.md). models: in place
    of the recipe's. output: the folder of the artifacts' folders. memory: what one pass may hold,
    such as ``"8G"``. Jobs of other programs (onnx, rkllm, AutoAWQ) need the command line.
    """
    if isinstance(recipe, Mapping):
        read = RunRecipe.of(recipe, "recipe")
    else:
        path = Path(recipe)
        read = RunRecipe.load(path if path.suffix else preset(str(recipe)))
    folder = Path(output or read.output or Path())
    jobs = _expanded([read.for_models([str(each) for each in models])])
    return _make(jobs, folder, progress=progress, threads=threads, memory=memory, force=force)


def evaluate(
    *artifacts: str | Path | Artifact,
    suite: str | None = None,
    native: bool = True,
    progress: bool = True,
    threads: int | None = None,
    **settings: Any,
) -> EvaluationDocument:
    """Measure artifacts of one original: perplexity, KL divergence, top-1, with 95 % intervals.

    suite: default, long, multilingual, chat, code, or a text file; None for the text of the
    artifacts' own certificates. native: also in the runtime of each, where that is installed.
    settings: ``against, eval_windows, eval_positions, eval_slices, seq_len, seed, device, dtype,
    precision, by_layer``.
    """
    problems = ProblemCollector()
    opened = [problems.attempt(partial(_opened, each)) for each in artifacts]
    found = [each.value for each in opened if each.succeeded]
    problems += name_problems(found)
    problems.refuse()
    text = None if suite is None else SuiteText.named(suite)
    if text is not None:
        sizes = {"eval_slices": "slices", "eval_windows": "windows", "seq_len": "seq_len"}
        text = text.reduced(**{word: settings.get(name) for name, word in sizes.items()})
    request = EvaluationRequest(suite=text, native=native, **settings)
    recipe = request.recipe(found)
    refuse([*recipe.problems(), *request.problems()])
    with reporter(quiet=not progress) as report:
        evaluation = Evaluation.open(found, request, recipe, threads or default_threads(), report)
        return evaluation.measure(open_weights, report)


def plan(
    model: str | Path,
    target: str,
    *,
    memory: str | None = None,
    context: int = 4096,
    device: str | None = None,
    bandwidth: float | None = None,
    text_only: bool = False,
) -> list[Estimate]:
    """Predict size, memory and speed of what a target takes, the largest first; headers only.

    memory: of the device, such as ``"8G"``; without it nothing is said to fit. device: one of the
    target's, for its bandwidth. bandwidth: GB/s, where none of them is yours. text_only: without
    the towers of a multimodal model.
    """
    size = None if memory is None else parse_size(memory, flag="memory")
    request = EstimateRequest(size, context, device, bandwidth)
    headers = read_headers(str(model))
    towers = None if text_only else headers.towers
    return estimate(load_target(target), headers.config, request, towers)[0]


def load(path: str | Path) -> Artifact:
    """Open a finished artifact, its every file checked; ``manifest.certificates`` has the figures.

    ArtifactError that lists every difference from the manifest.
    """
    return Artifact.open(Path(path))


def _opened(artifact: str | Path | Artifact) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else load(artifact)


def _expanded(recipes: Sequence[RunRecipe]) -> list[RunJob]:
    problems = ProblemCollector()
    jobs = [job for recipe in recipes for job in recipe.expand({IMATRIX: ImatrixOptions}, problems)]
    problems.refuse()
    return jobs


def _make(
    jobs: Sequence[RunJob],
    folder: Path,
    *,
    progress: bool,
    threads: int | None,
    memory: str | None = None,
    force: bool = False,
) -> list[Artifact]:
    request = RunRequest(
        jobs,
        folder,
        (),
        threads or default_threads(),
        default_memory() if memory is None else parse_size(memory, flag="memory"),
        _tool,
        force=force,
    )
    with reporter(quiet=not progress) as report:
        return plan_run(request, report).run(report)


def _tool(job: RunJob, _: Target, request: RunRequest, progress: Progress) -> ImatrixStep:
    if job.recipe.quantizer == IMATRIX:
        return ImatrixStep.of(job, request, progress)
    raise UnsupportedError(
        f"{job.place}: another program decides its numbers.", hint="Run it with gemquant run."
    )
