"""Every parser of files that others wrote: sound files, the form of each, and how it is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file

from gemquant import __main__ as program
from gemquant.calibration.documents import read_user_file
from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.quantizer_options import read_request
from gemquant.core.targets import accepted_schemes, read_target
from gemquant.errors import GemquantError, UsageError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.folder import FolderTensors
from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files
from gemquant.formats.gguf.find import open_gguf
from gemquant.formats.gguf.imatrix import read_imatrix
from gemquant.formats.gguf.source import GgufTensors
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.formats.gguf.vocabulary import tokenizer_parts, vocabulary
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.measure.gate.budget import read_budgets
from gemquant.models.chat import ChatTemplate, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.models.config import text_config
from gemquant.models.skeleton import Skeleton
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_gate import baseline_of, divergences, measured
from tests.helpers.tiny_gemma import tiny_config, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_report import check, verdict
from tests.helpers.tiny_sentencepiece import tiny_sentencepiece_files

ROOT = Path(__file__).parents[2]


class DefectError(Exception):
    """A command would have ended with exit code 70."""


@dataclass(frozen=True)
class Parser:
    """build: writes sound files. damaged: files → their form. read: raises GemquantError at most.

    share: of all cases in a long run; cheap parsers get more. slow_to_build: takes seconds.
    """

    build: Callable[[Path], object]
    damaged: Mapping[str, str]
    read: Callable[[Path], object]
    share: int
    slow_to_build: bool = False


def command(*args: str) -> None:
    """Run the command line silently; DefectError for what it would call internal.

    UsageError for every other exit code but 0.
    """

    def defect(error: Exception) -> int:
        raise DefectError from error

    before, program._internal_error = program._internal_error, defect
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            code = program.main(args)
    finally:
        program._internal_error = before
    if code:
        raise UsageError(f"exit code {code}")


def write(files: Mapping[str, bytes | str]) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return build


# ---------------------------------------------------------------- checkpoints


@cache
def tiny_text_config() -> Mapping[str, Any]:
    return text_config(tiny_config("gemma2"))


def build_model(folder: Path) -> None:
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    write_tiny_gemma(folder, "gemma2", overrides={**LLAMACPP["gemma2"], **small})


def read_safetensors(folder: Path) -> None:
    files = SafetensorsFiles([folder / "model.safetensors"])
    for name in files.shapes:
        with contextlib.suppress(GemquantError):
            files.tensor(name)


def build_safetensors(folder: Path) -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file({**tensors, "c": torch.ones(1)}, folder / "model.safetensors", metadata={"x": "y"})


def read_config(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    Skeleton(checkpoint.config, device="cpu", dtype=torch.float32)


def build_sentencepiece(folder: Path) -> None:
    write(tiny_sentencepiece_files())(folder)


def read_tokenizer(folder: Path) -> None:
    source = read_tokenizer_files(folder)
    source.tokenizer.encode("hello <bos> world", add_special_tokens=False)
    source.chat_template  # noqa: B018
    source.end_tokens  # noqa: B018
    source.special_tokens(tiny_text_config())
    vocabulary(tokenizer_parts(source.files, "x"), 1208)


def build_adapter(folder: Path) -> None:
    a, b = torch.randn(2, 128), torch.randn(384, 2)
    name = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "bias": "none",
        "use_dora": False,
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {},
        "modules_to_save": None,
        "target_modules": ["up_proj"],
        "base_model_name_or_path": "x/y",
        "use_rslora": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@cache
def whole_model() -> str:
    folder = Path(STATE["scratch"]) / "whole-model"
    write_tiny_gemma(folder, "gemma2", overrides=LLAMACPP["gemma2"])
    return str(folder)


def read_adapter(folder: Path) -> None:
    checkpoint = open_checkpoint(whole_model(), lora=(str(folder),))
    for name in checkpoint.names():
        checkpoint.rows(name, 0, 8)


# ---------------------------------------------------------------- GGUF


def build_gguf(folder: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 1}
    write_tiny_gguf(folder / "m.gguf", overrides={**LLAMACPP["gemma2"], **small})


def read_gguf(folder: Path) -> None:
    tensors = GgufTensors(folder / "m.gguf")
    for name, shape in tensors.shapes.items():
        tensors.read(name, 0, min(shape[0], 64), torch.float32)


def read_gguf_vocabulary(folder: Path) -> None:
    header = open_gguf(folder / "m.gguf")
    tokenizer = GgufTokenizer(header.metadata, "x")
    tokenizer.tokenizer.encode("hello world")
    tokenizer.special_tokens(tiny_text_config())


def build_parts(folder: Path) -> None:
    command(
        *("gguf", whole_model(), "--type", "Q8_0", "--split-max-size", "150KB"),
        *("--no-eval", "-o", str(folder / "made")),
    )
    for path in (folder / "made").glob("*.gguf"):
        path.rename(folder / path.name.replace(path.name[: path.name.index("-0000")], "m"))


def read_parts(folder: Path) -> None:
    tensors = GgufTensors(min(folder.glob("m-*.gguf")))
    for name, shape in tensors.shapes.items():
        tensors.read(name, 0, min(shape[0], 8), torch.float32)


IMATRICES = ("imatrix.gguf", "imatrix.dat")


def read_imatrices(folder: Path) -> None:
    for name in IMATRICES:
        with contextlib.suppress(GemquantError):
            read_imatrix(folder / name)


# ---------------------------------------------------------------- what users write

RECIPE = {
    "model": "google/gemma-2-2b",
    "quantizer": "rtn",
    "target": "cuda",
    "samples": 8,
    "seq_len": 64,
    "seed": 1,
    "calib": "default",
    "eval_windows": 0,
    "device": "cpu",
    "options": {"bits": 4, "group_size": 32, "symmetric": False, "skip": ["model.layers.0.*"]},
}


def read_recipe(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        made = QuantizerCommand("rtn")
        try:
            with (
                contextlib.redirect_stderr(io.StringIO()),
                made.make_context("rtn", ["--recipe", str(folder / name)]) as context,
            ):
                read_request(context, made.quantizer)
        except click.ClickException as error:
            raise UsageError(error.message) from None

    return read


def recipe_toml() -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in RECIPE.items() if key != "options"]
    options = RECIPE["options"]
    assert isinstance(options, dict)
    return "\n".join([*lines, "[options]", *(f"{k} = {json.dumps(v)}" for k, v in options.items())])


def read_one_target(folder: Path) -> None:
    target = read_target(folder / "mine.toml")
    for container in target.containers:
        for runtime in container.runtimes:
            accepted_schemes(runtime)


LINES = "\n".join(
    json.dumps(record)
    for record in (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "x"}]},
        {"text": "Über die Welt."},
        {"prompt": "a", "completion": "b"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    )
)


def read_text(folder: Path) -> None:
    for name in ("t.jsonl", "t.txt"):
        with contextlib.suppress(GemquantError):
            read_user_file(folder / name)


def read_template(folder: Path) -> None:
    source = (folder / "t.jinja").read_bytes().decode(errors="replace")
    messages = [{"role": r, "content": "x"} for r in ("system", "user", "assistant", "user")]
    with contextlib.suppress(GemquantError):
        render(ChatTemplate(source), messages[1:], add_generation_prompt=True)
    render(ChatTemplate(source), messages)


# ---------------------------------------------------------------- records and artifacts


def build_records(folder: Path) -> None:
    now = measured()
    (folder / "eval.json").write_bytes(now.to_json())
    (folder / "two.json").write_bytes(
        document(*(artifact(n, kl={"english": divergences()}) for n in "ab")).to_json()
    )
    (folder / "base.json").write_bytes(baseline_of(now).to_json())
    (folder / "verdict.json").write_bytes(verdict(now, check()).to_json())


def read_report(folder: Path) -> None:
    for name, *flags in (
        ("two.json",),
        ("eval.json", "--verdict", str(folder / "verdict.json")),
    ):
        command("report", str(folder / name), "--html", str(folder / "o.html"), "--force", *flags)


def read_gate(folder: Path) -> None:
    command("gate", str(folder / "eval.json"), "--baseline", str(folder / "base.json"))


ARTIFACTS: Mapping[str, tuple[str, ...]] = {
    "compressed": ("rtn", "--group-size", "32"),
    "autoawq": ("rtn", "--group-size", "32", "--target", "cuda", "--exporter", "awq-gemm"),
    "mlx": ("rtn", "--group-size", "32", "--target", "mps"),
    "nf4": ("nf4",),
    "int8": ("int8",),
    "gguf": ("gguf", "--type", "Q4_0"),
}


def build_artifact(kind: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        name, *flags = ARTIFACTS[kind]
        command(name, whole_model(), *flags, "--no-eval", "-o", str(folder / "a"))
        for path in (folder / "a").iterdir():
            shutil.copy(path, folder / ("m.gguf" if path.suffix == ".gguf" else path.name))
        if (folder / "m.gguf").exists():
            manifest = json.loads((folder / "manifest.json").read_text())
            (old,) = [each for each in manifest["files"] if each.endswith(".gguf")]
            manifest["files"]["m.gguf"] = manifest["files"].pop(old)
            (folder / "manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(folder / "a")

    return build


def read_artifact(folder: Path) -> None:
    """Put the hashes right, then verify and decode."""
    path = folder / "manifest.json"
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        manifest = json.loads(path.read_text())
        for name, record in manifest["files"].items():
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                record |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        path.write_text(json.dumps(manifest))
    command("verify", str(folder))
    command("show", str(folder))


def artifact_parser(kind: str, share: int) -> Parser:
    weights = {"m.gguf": "bytes"}
    if kind != "gguf":
        weights = {"model.safetensors": "safetensors", "config.json": "json"}
    return Parser(
        build_artifact(kind), {**weights, "manifest.json": "json"}, read_artifact, share, True
    )


STATE: dict[str, Any] = {}
"""scratch: a folder for what several parsers need."""

PARSERS: Mapping[str, Parser] = {
    "safetensors": Parser(
        build_safetensors, {"model.safetensors": "safetensors"}, read_safetensors, 480
    ),
    "shard-index": Parser(
        lambda folder: write_tiny_gemma(folder, "gemma2", shards=2),
        {"model.safetensors.index.json": "json"},
        lambda folder: FolderTensors(folder, tiny_text_config()),
        30,
    ),
    "config": Parser(build_model, {"config.json": "json"}, read_config, 5),
    "tokenizer": Parser(
        build_model,
        {"tokenizer.json": "json", "tokenizer_config.json": "json"},
        read_tokenizer,
        2,
    ),
    "tokenizer-model": Parser(
        build_sentencepiece,
        {"tokenizer.json": "json", "tokenizer.model": "bytes"},
        read_tokenizer,
        2,
        slow_to_build=True,
    ),
    "adapter": Parser(
        build_adapter,
        {"adapter_config.json": "json", "adapter_model.safetensors": "safetensors"},
        read_adapter,
        5,
    ),
    "gguf": Parser(build_gguf, {"m.gguf": "bytes"}, read_gguf, 40),
    "gguf-header": Parser(build_gguf, {"m.gguf": "bytes"}, lambda f: open_gguf(f / "m.gguf"), 190),
    "gguf-vocabulary": Parser(build_gguf, {"m.gguf": "bytes"}, read_gguf_vocabulary, 20),
    "gguf-parts": Parser(
        build_parts,
        {"m-*.gguf": "bytes"},
        read_parts,
        10,
        True,
    ),
    "imatrix": Parser(
        write({n: (ROOT / "tests/golden" / n).read_bytes() for n in IMATRICES}),
        dict.fromkeys(IMATRICES, "bytes"),
        read_imatrices,
        20,
    ),
    "recipe-json": Parser(
        write({"r.json": json.dumps(RECIPE)}), {"r.json": "json"}, read_recipe("r.json"), 10
    ),
    "recipe-toml": Parser(
        write({"r.toml": recipe_toml()}), {"r.toml": "toml"}, read_recipe("r.toml"), 10
    ),
    "target": Parser(
        write({"mine.toml": (ROOT / "targets/rk3588.toml").read_bytes()}),
        {"mine.toml": "toml"},
        read_one_target,
        30,
    ),
    "budget": Parser(
        write({"b.toml": (ROOT / "ci/budgets.toml").read_bytes()}),
        {"b.toml": "toml"},
        lambda folder: read_budgets(folder / "b.toml"),
        60,
    ),
    "calibration": Parser(
        write({"t.jsonl": LINES, "t.txt": "one\n\ntwo é\n"}),
        {"t.jsonl": "lines", "t.txt": "bytes"},
        read_text,
        60,
    ),
    "template": Parser(
        write({"t.jinja": VARIANTS["system-in-user"]}), {"t.jinja": "template"}, read_template, 3
    ),
    "report": Parser(
        build_records,
        dict.fromkeys(("eval.json", "two.json", "verdict.json"), "json"),
        read_report,
        1,
    ),
    "gate": Parser(build_records, {"eval.json": "json", "base.json": "json"}, read_gate, 3),
    "artifact-compressed": artifact_parser("compressed", 1),
    "artifact-autoawq": artifact_parser("autoawq", 1),
    "artifact-mlx": artifact_parser("mlx", 1),
    "artifact-nf4": artifact_parser("nf4", 1),
    "artifact-int8": artifact_parser("int8", 1),
    "artifact-gguf": artifact_parser("gguf", 1),
}
