"""Convert a checkpoint with rkllm-toolkit: write its input, run it, verify and describe the file.

The order of reading: RkllmJob, convert, prepare.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gemquant.convert import pipeline
from gemquant.convert.candidates import weight_count
from gemquant.convert.duration import Duration, evaluation_duration, planned_duration
from gemquant.convert.external import plain_dtype
from gemquant.convert.plan import SMALL_FILES_BYTES, Job, plan
from gemquant.core.artifact import (
    Artifact,
    CallRecord,
    SmoothingRecord,
    finalize,
    staged,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.artifact.manifest import licence_of
from gemquant.core.protocols import Progress, Quantizer, Silence
from gemquant.core.recipe import Recipe
from gemquant.errors import GemquantError, UnsupportedError, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.checkpoint.tokenizer_files import with_chat_template
from gemquant.formats.gptq import Gptq
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.measure.quality.runtime_logits import RuntimeLogits
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.cast import Cast
from gemquant.rockchip.artifact import (
    ANSWER,
    PREPARED,
    ConvertResult,
    PreparedRecord,
    file_problems,
    rkllm_manifest,
)
from gemquant.rockchip.calls import CALIBRATION, MODEL, calls
from gemquant.rockchip.options import Conversion
from gemquant.rockchip.programs import PROGRAMS
from gemquant.rockchip.simulation import FOLDER as LOGITS
from gemquant.rockchip.simulation import LogitsScorer, certificate, simulation_job
from gemquant.rockchip.smoothing import Folds, emulated, smooths
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool

if TYPE_CHECKING:
    import torch

    from gemquant.calibration.windows import TokenWindows

PROGRAM = PROGRAMS / "rkllm_convert.py"
JOB, CONVERT = "job.json", "convert.py"
SMOOTHING, EMULATED = "smoothing.json", "emulated.json"
QUANTIZE_CONFIG = "quantize_config.json"
TOKENIZER_MODEL, TOKENIZER = "tokenizer.model", "tokenizer.json"


@dataclass(frozen=True)
class RkllmJob:
    """One file to convert.

    file: its name. template: Jinja source. prompts: the toolkit's calibration, empty if the release
    takes none. windows: calibration text for GPTQ codes or SmoothQuant scales, else None.
    simulated, emulated: evaluation slices for the toolkit's simulator and for our emulation.
    """

    recipe: Recipe
    conversion: Conversion
    out: Path
    file: str
    force: bool
    template: str
    prompts: Sequence[Mapping[str, str]]
    windows: TokenWindows | None = None
    simulated: Sequence[TokenWindows] = ()
    emulated: Sequence[TokenWindows] = ()


@dataclass(frozen=True)
class Preparation:
    """Changes to the weights before the toolkit, and their emulation."""

    smoothing: SmoothingRecord | None
    certificates: tuple[LevelEvaluation, ...]


def reading_problems(conversion: Conversion, checkpoint: Checkpoint) -> list[GemquantError]:
    """Files that this release needs and the model does not have."""
    release = conversion.release
    if not release.tokenizer_model or TOKENIZER_MODEL in checkpoint.tokenizer_files():
        return []
    return [
        UnsupportedError(
            f"{conversion.toolkit.name} {release.version} needs {TOKENIZER_MODEL}; "
            f"{checkpoint.ref} has none.",
            hint="Use the published folder, which has one, or a newer release.",
        )
    ]


def needed_bytes(job: RkllmJob, checkpoint: Checkpoint) -> int:
    """Space for the plain folder and the converted file, which is at most as large."""
    (planned,) = plan(
        [_plain(job, checkpoint, job.out.with_name(f".{job.out.name}.p"))], checkpoint
    )
    return 2 * planned.total_bytes + SMALL_FILES_BYTES


def preparing(job: RkllmJob, checkpoint: Checkpoint) -> Duration:
    """Predict how long ``prepare`` takes."""
    smoothed = smooths(job.conversion.dtype, job.conversion.options)
    folds = Folds(job.conversion) if smoothed else None
    planned = plan(
        [_plain(job, checkpoint, job.out.with_name(f".{job.out.name}.p"), folds)], checkpoint
    )
    models = 1 + smoothed
    emulation = evaluation_duration(
        checkpoint, job.recipe, job.emulated, models=2 * models, heads=4 * models
    )
    return planned_duration(planned, checkpoint, job.windows, ()).joined(emulation)


def converting(job: RkllmJob, checkpoint: Checkpoint) -> Duration:
    """Predict how long the toolkit takes."""
    rates = job.conversion.toolkit.conversion.seconds_per_million
    rate = rates[job.conversion.options.optimization_level]
    return Duration({job.conversion.toolkit.name: rate * weight_count(checkpoint.config) / 1e6})


def prepare(job: RkllmJob, checkpoint: Checkpoint, folder: Path, progress: Progress) -> Preparation:
    """Write the toolkit's input: model folder, calibration prompts and job.

    folder: exists, on the file system of the result.
    """
    progress.start("writing the toolkit's input", 0)
    folds = Folds(job.conversion) if smooths(job.conversion.dtype, job.conversion.options) else None
    with TemporaryDirectory(dir=folder, prefix=".plain.") as scratch:
        plain, model = Path(scratch) / "plain", folder / MODEL
        pipeline.run(
            plan([_plain(job, checkpoint, plain, folds)], checkpoint),
            checkpoint,
            calibration=job.windows,
            evaluation=(),
            calibration_dtype=None if job.windows is None else _torch_dtype(job.recipe.calib_dtype),
            progress=Silence() if job.windows is None else progress,
        )
        model.mkdir()
        for path in sorted(plain.iterdir()):
            if path.name == "config.json" or path.name.startswith("model"):
                os.replace(path, model / path.name)  # noqa: PTH105 (one file system)
    for name, content in tokenizer_files(checkpoint, job).items():
        (model / name).write_bytes(content)
    if job.conversion.options.gptq:
        _write_json(model / QUANTIZE_CONFIG, _quantize_config(model / "config.json"))
    if job.prompts:
        _write_json(folder / CALIBRATION, list(job.prompts))
    _write_json(folder / JOB, worker_job(job, checkpoint))
    smoothing = None if folds is None else folds.record(checkpoint)
    if smoothing is not None:
        _write_json(folder / SMOOTHING, smoothing.model_dump(mode="json"))
    certificates = emulated(
        job.conversion,
        checkpoint,
        model,
        job.emulated,
        smoothed=smoothing is not None,
        progress=progress,
    )
    if any(each.slices for each in certificates):
        _write_json(folder / EMULATED, [each.model_dump(mode="json") for each in certificates])
    return Preparation(smoothing, certificates)


def tokenizer_files(checkpoint: Checkpoint, job: RkllmJob) -> dict[str, bytes]:
    """Tokenizer files with the chat template, in the format that the release reads."""
    files = with_chat_template(checkpoint.tokenizer_files(), job.template)
    if job.conversion.release.merges == "text" and TOKENIZER in files:
        tokenizer = json.loads(files[TOKENIZER])
        merges = tokenizer["model"].get("merges", [])
        tokenizer["model"]["merges"] = [
            merge if isinstance(merge, str) else " ".join(merge) for merge in merges
        ]
        files[TOKENIZER] = json.dumps(tokenizer, ensure_ascii=False).encode()
    return files


def worker_job(job: RkllmJob, checkpoint: Checkpoint) -> dict[str, Any]:
    """The job of ``programs/rkllm_convert.py``, on this machine or another."""
    dtype = "float16" if job.conversion.options.gptq else plain_dtype(checkpoint)
    toolkit = job.conversion.toolkit
    return {
        "toolkit": [toolkit.name, job.conversion.release.version],
        "releases": toolkit.releases,
        "imports": toolkit.imports,
        "calls": calls(job.conversion, dtype=dtype, file=job.file),
        "file": job.file,
    }


def prepare_only(job: RkllmJob, checkpoint: Checkpoint, progress: Progress) -> Preparation:
    """Write the toolkit's input, its program and what ``seal`` takes to ``job.out``."""
    with staged(job.out, force=False, needed_bytes=needed_bytes(job, checkpoint)) as folder:
        prepared = prepare(job, checkpoint, folder, progress)
        shutil.copyfile(PROGRAM, folder / CONVERT)
        calls = (CallRecord(**call, returned=0) for call in worker_job(job, checkpoint)["calls"])
        manifest = rkllm_manifest(
            job.recipe,
            job.conversion,
            checkpoint,
            ConvertResult(calls=tuple(calls), python="", versions={}),
            file_bytes=1,  # until the file is there
            windows=job.windows,
            smoothing=prepared.smoothing,
            certificates=prepared.certificates,
        )
        record = PreparedRecord(
            manifest=manifest,
            file=job.file,
            weights=weight_count(checkpoint.config),
            card=checkpoint.provenance.card,
        )
        (folder / PREPARED).write_text(record.model_dump_json(indent=2), encoding="utf-8")
        licence = licence_of(manifest)
        (folder / "NOTICE").write_text(licence.notice, encoding="utf-8")
        (folder / "README.md").write_text(_readme(job), encoding="utf-8")
    return prepared


def _readme(job: RkllmJob) -> str:
    toolkit, release = job.conversion.toolkit, job.conversion.release
    named, python = f"{toolkit.name} {release.version}", " or ".join(release.python)
    return f"""# {job.recipe.model}, prepared for {named}

Written by `gemquant rkllm --prepare-only`, for {job.conversion.npu.platform} in
{job.conversion.dtype.name}. Nothing is converted yet, and no toolkit was executed here.

1. On x86-64 Linux, install {named} for Python {python} from
   {toolkit.releases}
   (`{toolkit.lookalike}` on PyPI is another package). Then run `python {CONVERT}` in this folder.
2. Bring {job.file} and {ANSWER} back to where gemquant is installed, and make them an artifact
   with manifest and card: `gemquant rkllm THIS-FOLDER --converted {job.file} -o ARTIFACT`

`{MODEL}/` is what the toolkit reads, `{JOB}` every call, `{PREPARED}` what the manifest will say.
`NOTICE` names the licence, which holds for the converted file too.
"""


def convert(
    job: RkllmJob,
    checkpoint: Checkpoint,
    *,
    interpreter: Interpreter,
    limits: Limits,
    threads: int,
    progress: Progress,
) -> Artifact:
    """Prepare, convert, verify, write the manifest; nothing unfinished stays."""
    needed = needed_bytes(job, checkpoint)
    with staged(job.out, force=job.force, needed_bytes=needed) as folder:
        with TemporaryDirectory(
            dir=folder.parent, prefix=f".{job.out.name}.", suffix=".tool"
        ) as scratch:
            prepared = prepare(job, checkpoint, Path(scratch), progress)
            document, listener = worker_job(job, checkpoint), progress
            expected: RuntimeLogits | None = None
            if job.simulated:
                expected = RuntimeLogits(checkpoint, job.simulated, progress=progress)
                document["simulation"] = simulation_job(job.conversion.release, expected)
                listener = LogitsScorer(progress, Path(scratch) / LOGITS, expected)
            result = run_tool(
                Tool(job.conversion.toolkit.name, PROGRAM),
                document,
                ConvertResult,
                interpreter=interpreter,
                limits=limits,
                folder=Path(scratch),
                threads=threads,
                progress=listener,
            )
            refuse(file_problems(Path(scratch) / job.file, job.conversion, checkpoint.config))
            os.replace(Path(scratch) / job.file, folder / job.file)  # noqa: PTH105
        certificates = prepared.certificates
        if expected is not None:
            conversion = job.conversion
            measured = certificate(conversion.toolkit.name, conversion.release, expected)
            certificates = (*certificates, measured)
        manifest = rkllm_manifest(
            job.recipe,
            job.conversion,
            checkpoint,
            result,
            file_bytes=(folder / job.file).stat().st_size,
            windows=job.windows,
            smoothing=prepared.smoothing,
            certificates=certificates,
        )
        finalize(folder, manifest, original_card=checkpoint.provenance.card)
    return Artifact.open(job.out)


def _plain(job: RkllmJob, checkpoint: Checkpoint, out: Path, folds: Folds | None = None) -> Job:
    """The job that writes the toolkit's model: a plain one, or a GPTQ checkpoint.

    folds: collects the folded SmoothQuant scales; None without smoothing.
    """
    conversion = job.conversion
    if conversion.options.gptq:
        quantizer = AWQ(bits=8, group_size=conversion.dtype.group_size, symmetric=True, scale=False)
        recipe = Recipe(model=job.recipe.model, quantizer="awq", exporter="gptq", text_only=True)
        return Job(quantizer, Gptq(), out, recipe)
    dtype = plain_dtype(checkpoint)
    deciding: Quantizer = Cast(dtype) if folds is None else folds.quantizer
    recipe = Recipe(
        model=job.recipe.model, quantizer=deciding.name, exporter="safetensors", text_only=True
    )
    return Job(deciding, PlainSafetensors(_torch_dtype(dtype)), out, recipe)


def _quantize_config(config: Path) -> dict[str, Any]:
    """What AutoGPTQ's loader reads; config.json has the same for transformers."""
    quantization: dict[str, Any] = json.loads(config.read_text())["quantization_config"]
    return {**quantization, "model_name_or_path": None, "model_file_base_name": "model"}


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _write_json(path: Path, document: Any) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
