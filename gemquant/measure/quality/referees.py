"""Artifacts that others made of the same original, measured like ours: what they are, and whose.

Their weights are read as their runtimes decode them; nothing in them is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from gemquant.core.artifact import MANIFEST_FILE
from gemquant.core.artifact.evaluation import ArtifactEvaluation, LevelEvaluation
from gemquant.core.artifact.manifest import quantization_record
from gemquant.core.protocols import Exporter, Weights
from gemquant.core.scheme import describe
from gemquant.core.tables import visible
from gemquant.core.untrusted import UntrustedFile, user_path
from gemquant.errors import GemquantError, UnsupportedError, UsageError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.hub import MODEL_FILES, download
from gemquant.formats.checkpoint.recognition import parse_hub_reference
from gemquant.formats.checkpoint.source import text_name
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gguf.config import FILE_TYPE
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.source import GgufWeights
from gemquant.formats.gptq import Gptq
from gemquant.formats.mlx import MLX
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.formats.safetensors_reader import SafetensorsFiles

GGUF = "gguf"
_METHODS: Mapping[str, type[Exporter]] = {
    "awq": AwqGemm,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "gptq": Gptq,
}
"""Readers by ``quant_method``."""
_CARD_LIMIT_BYTES = 1_000_000
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_WITH_MLX = re.compile(r"(mlx-(?:lm|vlm)) version \**([\w.]+?)\**[.\s]")
_TAGGED = re.compile(r"(?P<repository>[^:]+):(?P<tag>[\w-]+)")
_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Referee:
    """An artifact of others.

    path: its folder, or a GGUF file. made_by: what its metadata says of who made it. of: the model
    that it names as its base, empty where none. weights: None where they cannot be decoded here,
    with the reason in ``unread``.
    """

    name: str
    path: Path
    container: str
    scheme: str
    made_by: str
    of: str
    size_bytes: int
    bits_per_weight: float
    digest: str
    weights: Weights | None
    unread: str = ""

    def evaluation(self, levels: tuple[LevelEvaluation, ...]) -> ArtifactEvaluation:
        """Its part of a document."""
        return ArtifactEvaluation(
            name=self.name,
            container=self.container,
            quantizer="another's",
            scheme=self.scheme,
            digest=self.digest,
            size_bytes=self.size_bytes,
            bits_per_weight=self.bits_per_weight,
            made_by=self.made_by,
            levels=levels,
        )

    def caution(self, base_model: str | None) -> str | None:
        """What to say where it names another base than the original's. Case does not count."""
        names = [each.rpartition("/")[2].lower() for each in (self.of, base_model or "") if each]
        if len(names) < 2 or names[0] == names[1]:
            return None
        return f"{self.name} says that it was made from {self.of}, not from {base_model}"


def open_referee(ref: str) -> Referee:
    """Open a GGUF file, a folder, or either on the Hub; headers alone are read.

    ref: also ``OWNER/NAME``, and ``OWNER/NAME:Q4_K_M`` for the GGUF file of a type. UsageError for
    what is none of these; ArtifactError, CheckpointError or UnsupportedError for what it holds.
    """
    path = user_path(ref)
    if not path.exists():
        path = _from_hub(ref)
    if path.is_dir() and (path / MANIFEST_FILE).exists():
        raise UsageError(
            f"--referee {ref}: gemquant made it.", hint=f"gemquant eval … {ref}, without --referee."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        path = _only_gguf(path, ref)
    return _folder(path) if path.is_dir() else _gguf(path)


def _from_hub(ref: str) -> Path:
    tagged = _TAGGED.fullmatch(ref)
    reference = parse_hub_reference(tagged["repository"] if tagged else ref)
    if reference is None or ref.lower().endswith(".gguf"):
        raise UsageError(
            f"--referee {ref}: neither a file or folder, nor a model on the Hub.",
            hint="As in: --referee OWNER/NAME-GGUF:Q4_K_M, or --referee OWNER/NAME-AWQ",
        )
    if not tagged:
        return download(*reference, files=MODEL_FILES)
    folder = download(*reference, files=(f"*{tagged['tag']}*.gguf", "README.md"))
    return _only_gguf(folder, ref, f"*{tagged['tag']}*.gguf")


def _only_gguf(folder: Path, ref: str, pattern: str = "*.gguf") -> Path:
    files = [
        file
        for file in sorted(folder.glob(pattern))
        if "mmproj" not in file.name and "imatrix" not in file.name
    ]
    models = {_PART.sub("", file.stem) for file in files}
    if len(models) != 1:
        found = ", ".join(sorted(models)) or "no GGUF file, nor a config.json"
        raise UsageError(
            f"--referee {ref}: holds {found}: name one file.",
            hint="A file's path, or OWNER/NAME:TYPE of a repository on the Hub.",
        )
    return files[0]


# ---------------------------------------------------------------- GGUF


def _gguf(path: Path) -> Referee:
    weights = GgufWeights(path)
    metadata = weights.metadata
    stem = _PART.sub("", path.stem)
    files = [f for f in sorted(path.parent.glob("*.gguf")) if _PART.sub("", f.stem) == stem]
    number = metadata.get(FILE_TYPE)
    label = next((name for name, each in FILE_TYPES.items() if each.number == number), None)
    return Referee(
        stem,
        path,
        GGUF,
        label or f"file type {number}",
        _gguf_maker(metadata),
        _base(metadata) or _front_matter(path.parent).get("base_model", ""),
        *_measures(files, weights),
        weights,
    )


def _gguf_maker(metadata: Mapping[str, Any]) -> str:
    """``general.quantized_by``, and what llama-quantize writes of an importance matrix."""
    said = [_said(metadata, "general.quantized_by")]
    if file := _said(metadata, "quantize.imatrix.file"):
        text = _said(metadata, "quantize.imatrix.dataset")
        chunks = _said(metadata, "quantize.imatrix.chunks_count")
        said.append(
            f"importance matrix {Path(file.replace(chr(92), '/')).name}"
            + (f" of {Path(text.replace(chr(92), '/')).name}" if text else "")
            + (f", {chunks} chunks" if chunks else "")
        )
    return "; ".join(filter(None, said)) or "its metadata says nothing of who made it"


def _base(metadata: Mapping[str, Any]) -> str:
    url = _said(metadata, "general.base_model.0.repo_url")
    named = url.partition("huggingface.co/")[2].strip("/")
    return named or _said(metadata, "general.base_model.0.name").replace(" ", "-")


def _said(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return visible(str(value)) if isinstance(value, str | int) else ""


# ---------------------------------------------------------------- folders


def _folder(folder: Path) -> Referee:
    config = read_json_object(folder / "config.json")
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if "quantization" in config and method is None:
        reader: type[Exporter] = MLX
    elif quantization is None:
        reader = PlainSafetensors
    elif isinstance(method, str) and method in _METHODS:
        reader = _METHODS[method]
    else:
        raise UnsupportedError(
            f"{folder}: quant_method {method!r}: not one that is read here.",
            hint=f"They are {', '.join(_METHODS)}, MLX's, and GGUF files.",
        )
    weights: Weights | None = None
    unread, scheme = "", method or reader.name
    try:
        weights = reader().open(folder)
    except GemquantError as error:
        parts = [part.message.rstrip(".") for part in error.parts]
        more = f"; and {len(parts) - 3} more" if parts[3:] else ""
        unread = f"it cannot be decoded here: {'; '.join(parts[:3])}{more}"
    files = sorted(folder.glob("*.safetensors"))
    if weights is not None:
        record = quantization_record("", weights.layout, float_dtype="", file_bytes=1)  # type: ignore[attr-defined]
        scheme = " + ".join(dict.fromkeys(map(describe, record.schemes))) or "not quantized"
    matter = _front_matter(folder)
    return Referee(
        folder.resolve().name if not _snapshot(folder) else folder.parents[1].name.split("--")[-1],
        folder,
        reader.name,
        scheme,
        "; ".join(_folder_makers(folder, config, matter)) or "its files say nothing of who made it",
        matter.get("base_model", ""),
        *_measures(files, weights),
        weights,
        unread,
    )


def _snapshot(folder: Path) -> bool:
    """Whether a folder is one of the Hub's cache, named by a commit."""
    return folder.parent.name == "snapshots"


def _folder_makers(
    folder: Path, config: Mapping[str, Any], matter: Mapping[str, str]
) -> Iterator[str]:
    if who := matter.get("quantized_by"):
        yield who
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        meta = quantization.get("meta")
        producers = meta.get("quantizer") if isinstance(meta, dict) else None
        if producers:
            several = producers if isinstance(producers, list) else [producers]
            yield visible(", ".join(map(str, several)))
        elif (folder / "recipe.yaml").is_file():
            yield "llm-compressor (recipe.yaml)"
        if quantization.get("quant_method") == "compressed-tensors":
            yield f"compressed-tensors {visible(str(quantization.get('version')))}"
    if "quantization" in config:
        found = _WITH_MLX.search(_card(folder))
        yield f"{found[1]} {found[2]}" if found else "MLX, by its config.json"
    if isinstance(version := config.get("transformers_version"), str):
        yield f"transformers {visible(version)}"


def _card(folder: Path) -> str:
    file = folder / "README.md"
    try:
        return UntrustedFile(file, _CARD_LIMIT_BYTES).bytes().decode(errors="replace")
    except GemquantError:
        return ""


def _front_matter(folder: Path) -> dict[str, str]:
    """Texts of the card's front matter; of a list the first."""
    match = _FRONT_MATTER.match(_card(folder))
    try:
        matter = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        matter = None
    firsts = {
        key: value[0] if isinstance(value, list) and value else value
        for key, value in (matter if isinstance(matter, dict) else {}).items()
    }
    return {str(k): visible(v) for k, v in firsts.items() if isinstance(v, str)}


def _measures(files: list[Path], weights: Weights | None) -> tuple[int, float, str]:
    """Size, bits per weight of the text model, and a digest over names and hashes."""
    size = sum(file.stat().st_size for file in files)
    lines = []
    for file in files:
        with file.open("rb") as stream:
            lines.append(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n")
    digest = f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    if weights is None:
        return size, 16.0, digest
    towers = 0
    if files and files[0].suffix == ".safetensors":
        stored = SafetensorsFiles(files)
        multimodal = any(text_name(name) not in (None, name) for name in stored.shapes)
        towers = sum(
            prod(shape) * stored.stored_dtype(name).itemsize
            for name, shape in stored.shapes.items()
            if multimodal and text_name(name) is None
        )
    count = sum(prod(weights.shape(name)) for name in weights.names())
    return size, 8 * (size - towers) / count, digest


# ---------------------------------------------------------------- of the same model


def vocabulary_problems(referee: Referee, tokens: Mapping[str, int]) -> list[GemquantError]:
    """Whether token ids mean what the original's mean. tokens: the original's, by text.

    A few may differ: some publishers rename unused tokens.
    """
    theirs = _tokens(referee)
    shared = [text for text, number in theirs.items() if tokens.get(text) == number]
    if not theirs or len(shared) >= 0.99 * min(len(theirs), len(tokens)):
        return []
    return [
        UnsupportedError(
            f"--referee {referee.name}: of another model: {len(theirs) - len(shared)} of its "
            f"{len(theirs)} tokens have other numbers than the original's.",
            hint="Name an artifact of the same original, or the original with --against.",
        )
    ]


def _tokens(referee: Referee) -> dict[str, int]:
    """Its tokens by text; empty where it has no tokenizer."""
    if referee.container == GGUF:
        assert isinstance(referee.weights, GgufWeights)
        stored = referee.weights.metadata.get("tokenizer.ggml.tokens")
        return {str(text): n for n, text in enumerate(stored)} if stored is not None else {}
    file = referee.path / "tokenizer.json"
    if not file.is_file():
        return {}
    try:
        model = json.loads(UntrustedFile(file, 200_000_000).bytes())["model"]["vocab"]
        return {str(text): int(number) for text, number in model.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
