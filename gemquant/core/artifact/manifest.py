"""``manifest.json``: what an artifact is, where it comes from, and what was measured on it.

No dates, host names or paths of this machine: the same recipe and checkpoint give the same bytes.
The JSON Schema in ``docs/manifest.schema.json`` is generated from these models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.artifact.manifest_v1 import read_certificates
from gemquant.core.json_document import Document, Record
from gemquant.core.resources import human_bytes
from gemquant.core.scheme import INTEGER, describe
from gemquant.errors import ArtifactError
from gemquant.models.architecture import ARCHITECTURES, registered
from gemquant.models.licences import GEMMA_TERMS, Licence, licence_named
from gemquant.models.structure import DENSE, tower_of

if TYPE_CHECKING:
    from gemquant.core.protocols import GridUse, Layout, PlainSpec

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION: Literal[2] = 2

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Record):
    """One file of the artifact."""

    sha256: Sha256 = Field(description="SHA-256 of the file's bytes, hexadecimal.")
    bytes: int = Field(ge=0, description="Size of the file in bytes.")


class Source(Record):
    """The checkpoint that was converted."""

    ref: str = Field(
        description="The checkpoint as the user named it: a Hub id, a folder, a GGUF file or a "
        "sample."
    )
    revision: str | None = Field(default=None, description="Commit hash of a Hub checkpoint.")
    files: Mapping[str, Sha256] = Field(
        description="SHA-256 of each weight file read; a merged LoRA's are prefixed with `lora/`."
    )


class SchemeRecord(Record):
    """How some linear layers are stored: w ≈ scale · (value of the code − zero point)."""

    bits: int = Field(ge=1, le=32, description="Bits per code.")
    group_size: int = Field(
        ge=-1, description="Input channels that share a scale; -1 for a whole output channel."
    )
    symmetric: bool = Field(description="The zero point is 2^(bits − 1) everywhere.")
    codes: str = Field(
        default=INTEGER,
        exclude_if=lambda codes: codes == INTEGER,
        description="What a code stands for where it is not the integer itself: `nf4`, `fp4`, "
        "`llm.int8`, or one of ggml's formats: `Q4_K`, `F16`, …",
    )
    modules: tuple[str, ...] = Field(description="The layers stored so.")


class Quantization(Record):
    """What was stored how."""

    quantizer: str = Field(description="The algorithm that decided the numbers: `awq`, `rtn`, …")
    schemes: tuple[SchemeRecord, ...] = Field(description="Quantized layers, by scheme.")
    unquantized: tuple[str, ...] = Field(
        description="Matrices kept in floating point (embedding, head, layers left out)."
    )
    float_dtype: str = Field(description="Type of everything in floating point: `bfloat16`, …")
    bits_per_weight: float = Field(
        gt=0,
        description="Bits of all stored tensors over the number of weights, embeddings included.",
    )


class TowerRecord(Record):
    """A tower or projector that passed through as the checkpoint has it, or a GGUF of all."""

    name: str = Field(description="`vision_tower`, `multi_modal_projector`, …; a GGUF's file.")
    tensors: int = Field(ge=1, description="How many tensors it has.")
    bytes: int = Field(ge=0, description="Size of their values.")
    dtype: str = Field(description="Their type: `bfloat16`, …; of several all, with commas.")


class TableRecord(Record):
    """A table that is read by rows."""

    weights: int = Field(ge=1, description="How many it has.")
    bytes: int = Field(ge=0, description="Size of its tensors.")
    bits_per_weight: float = Field(gt=0, description="The same in bits, over its weights.")

    def __str__(self) -> str:
        return f"{human_bytes(self.bytes)}, {self.bits_per_weight:.2f} bits per weight"


class Fallback(Record):
    """A layer that was not stored as asked."""

    module: str = Field(description="The layer.")
    stored: str = Field(description="What it was stored as instead.")
    reason: str = Field(description="Why.")


class CalibrationRecord(Record):
    """The text that statistics were gathered on."""

    name: str = Field(description="Name of the mixture, or of the user's file or data set.")
    windows: int = Field(ge=1, description="Number of windows.")
    seq_len: int = Field(ge=1, description="Tokens per window, the BOS included.")
    digest: str = Field(
        description="`sha256:` of the token stream as little-endian 32-bit integers."
    )


class RoutedRecord(Record):
    """How many calibration tokens reached each expert of a layer."""

    layer: int = Field(ge=0, description="Number of the decoder layer.")
    tokens: tuple[int, ...] = Field(description="Calibration tokens that reached each expert.")
    least: int = Field(description="Fewest tokens for an expert to have statistics of its own.")
    few: tuple[int, ...] = Field(
        description="Experts that fewer reached: quantized with their layer's statistics."
    )


class ActivationRangeRecord(Record):
    """The largest activation seen, against what float16 can hold."""

    largest: float = Field(ge=0, description="Largest absolute activation seen.")
    where: str = Field(description="The module whose output, or input, it was.")
    limit: float = Field(default=65504.0, description="Largest float16.")
    fits_float16: bool = Field(description="The largest activation is below the limit.")


class CallRecord(Record):
    """One call of a foreign tool, as it was made."""

    function: str = Field(description="The tool's function.")
    arguments: Mapping[str, JsonValue] = Field(
        description="Every argument that was passed; paths are relative to the tool's folder."
    )
    returned: int = Field(description="What it returned: 0 for success.")


class ConversionRecord(Record):
    """What a vendor's converter was given, not what it was meant to be given."""

    tool: str = Field(description="The converter's distribution.")
    version: str = Field(description="Its release.")
    python: str = Field(description="The Python that it ran under.")
    platform: str = Field(description="The chip that the file is for.")
    dtype: str = Field(description="The quantized dtype.")
    runtime: str = Field(description="The oldest runtime that is known to load the file.")
    driver: str = Field(description="The oldest NPU driver.")
    calls: tuple[CallRecord, ...] = Field(description="Its calls, in order.")
    least_bytes: int | None = Field(
        default=None,
        exclude_if=lambda least: least is None,
        description="The smallest file that such a model was expected to make.",
    )
    most_bytes: int | None = Field(
        default=None,
        exclude_if=lambda most: most is None,
        description="The largest file that such a model was expected to make.",
    )


class FoldRecord(Record):
    """Linears that read one input, and what divides that input: max|x|^a / max|w|^b."""

    linears: tuple[str, ...] = Field(description="The linears, all of one layer.")
    folded_into: str = Field(description="The norm or linear before, whose output is divided.")
    by_activations: float = Field(description="The exponent a of the inputs' maxima.")
    by_weights: float = Field(description="The exponent b of the weights' maxima.")


class SmoothingRecord(Record):
    """Outliers of activations folded into weights: the function stays, 8 bits lose less."""

    folds: tuple[FoldRecord, ...] = Field(description="Every fold, layer by layer.")
    float_dtype: str = Field(description="Type that the folded weights were handed over in.")


class GridRecord(Record):
    """How much of the checkpoint lies on a 4-bit grid, as quantization-aware training leaves it.

    Found in a sample of rows of every matrix.
    """

    matrices: int = Field(ge=0, description="Matrices that were tested.")
    on_grid: int = Field(ge=0, description="Matrices that lie on a grid.")
    groups: int = Field(ge=0, description="Sampled groups of 32 weights that can tell.")
    groups_on_grid: int = Field(ge=0, description="Of these, those on a grid.")
    carried: tuple[str, ...] = Field(
        description="Matrices whose codes and scales were carried over instead of rounded anew."
    )
    scale_error: float = Field(
        ge=0,
        description="Largest relative error of a sampled scale in the type that stores it; 0 where "
        "all weights are those of the checkpoint.",
    )

    def __str__(self) -> str:
        share = self.groups_on_grid / self.groups if self.groups else 0.0
        # Never all or none for what is only near it.
        percent = f"{share:.1%}" if share in (0.0, 1.0) else f"{min(max(share, 1e-3), 0.999):.1%}"
        verb = "lies" if self.on_grid == 1 else "lie"
        return (
            f"{self.on_grid} of {self.matrices} matrices {verb} on a 4-bit grid ({percent} of the "
            "groups sampled)"
        )


class TokensWithoutRow(Record):
    """Tokens of the tokenizer whose ids lie beyond the embedding's rows."""

    count: int = Field(ge=1, description="How many there are.")
    first: tuple[str, ...] = Field(description="The first of them.")

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        what = "1 token has" if self.count == 1 else f"{self.count} tokens have"
        return f"{what} no row in the embedding and cannot be used: {', '.join(self.first)}{more}"


class Manifest(Document):
    """All that is known of an artifact."""

    schema_version: Literal[2] = Field(  # type: ignore[assignment]  # read as version 1 too
        default=SCHEMA_VERSION, description="Version of this document's layout."
    )
    container: str = Field(description="The container format: `awq-gemm`, `compressed-tensors`, …")
    architecture: Annotated[str, AfterValidator(registered)] = Field(
        description="The text model's `model_type`.",
        json_schema_extra={"enum": [*ARCHITECTURES]},
    )
    base_model: str | None = Field(
        default=None, description="Hub id of the model that this one derives from."
    )
    license: str = Field(
        default=GEMMA_TERMS.name, description="Licence identifier, as the Hub spells it."
    )
    source: Source = Field(description="The checkpoint that was converted.")
    recipe: Mapping[str, JsonValue] = Field(
        description="Every option of the run, defaults included; `gemquant --recipe` accepts it."
    )
    quantization: Quantization = Field(description="What was stored how.")
    fallbacks: tuple[Fallback, ...] = Field(
        default=(), description="Layers that were not stored as asked."
    )
    calibration: CalibrationRecord | None = Field(
        default=None, description="The calibration text; null if none was used."
    )
    routed: tuple[RoutedRecord, ...] = Field(
        default=(),
        exclude_if=lambda records: not records,
        description="Tokens that reached each layer's experts; left out where there are none.",
    )
    activation_range: ActivationRangeRecord | None = Field(
        default=None, description="Largest activation seen in the trace; null without a trace."
    )
    conversion: ConversionRecord | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="How a vendor's converter was called; left out where none was.",
    )
    smoothing: SmoothingRecord | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="Scales folded into the weights before they were converted; left out where "
        "there are none.",
    )
    per_layer_embedding: TableRecord | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="The table that gives every token an input for every layer, a large part of an "
        "E model; left out where there is none.",
    )
    towers: tuple[TowerRecord, ...] = Field(
        default=(),
        exclude_if=lambda records: not records,
        description="Towers and projectors of a multimodal model, not quantized; left out where "
        "there are none.",
    )
    certificates_of: Literal["text model"] | None = Field(
        default=None,
        exclude_if=lambda part: part is None,
        description="The part that certificates are of, where there are towers.",
    )
    tokens_without_row: TokensWithoutRow | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="Tokens that no text may hold, since the embedding has no rows for them; left "
        "out where there are none.",
    )
    grid: GridRecord | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="How much of the checkpoint lies on a 4-bit grid; left out where nothing does.",
    )
    certificates: tuple[LevelEvaluation, ...] = Field(
        default=(),
        description="What was measured, one entry per level; at level `emulated` one per corner.",
    )
    libraries: Mapping[str, str] = Field(
        description="Versions of the libraries that decide bytes, gemquant's own among them; "
        "gemquant-kernels is a digest of its C kernels, or none where they were not built."
    )
    files: Mapping[str, FileRecord] = Field(
        default_factory=dict, description="Every file of the artifact but this one."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, document: Any) -> Any:
        """Read a manifest of version 1, whose certificates had another form."""
        if not isinstance(document, dict) or document.get("schema_version") != 1:
            return document
        certificates = read_certificates(document.get("certificates", ()))
        return {**document, "schema_version": SCHEMA_VERSION, "certificates": certificates}


def gguf_files(manifest: Manifest) -> list[str]:
    """GGUF files of the text model: one, or its parts in order."""
    towers = tower_file(manifest)
    return sorted(name for name in manifest.files if name.endswith(".gguf") and name != towers)


def tower_file(manifest: Manifest) -> str | None:
    """The file that holds the towers and nothing else, where the container has one."""
    return next((tower.name for tower in manifest.towers if tower.name in manifest.files), None)


WEIGHT_FILES = (".gguf", ".safetensors", ".rkllm", ".onnx", ".data")


def original_bytes(manifest: Manifest) -> int:
    """Size of the weights before, in bfloat16: two bytes for each; of towers as they are."""
    stored = sum(f.bytes for name, f in manifest.files.items() if name.endswith(WEIGHT_FILES))
    towers = sum(tower.bytes for tower in manifest.towers)
    return round(16 * (stored - towers) / manifest.quantization.bits_per_weight) + towers


FORMAT_OPTION = "type"
"""A quantizer's option that names a mixture of formats, as ``Q4_K_M``."""


def scheme_label(manifest: Manifest) -> str:
    """The mixture that was asked for where the quantizer makes one, else its layers' schemes."""
    options = manifest.recipe.get("options")
    mixture = options.get(FORMAT_OPTION) if isinstance(options, dict) else None
    if isinstance(mixture, list) and mixture:
        return ", ".join(map(str, mixture))
    schemes = map(describe, manifest.quantization.schemes)
    return " + ".join(dict.fromkeys(schemes)) or manifest.quantization.float_dtype


def artifact_label(manifest: Manifest) -> str:
    """A name in a few words: ``Q4_K_M``, ``awq, 4 bits, groups of 128, zero points``."""
    words = scheme_label(manifest)
    return words if manifest.container == "gguf" else f"{manifest.quantization.quantizer}, {words}"


def model_name(manifest: Manifest) -> str:
    """Name of the model that was quantized, as in the names of its files."""
    for file in gguf_files(manifest):
        name, found, _ = file.rpartition(f"-{scheme_label(manifest)}")
        if found:
            return name
    return (manifest.base_model or manifest.source.ref).rstrip("/").rsplit("/", 1)[-1]


def fallbacks_by_reason(manifest: Manifest) -> dict[tuple[str, str], list[str]]:
    """Layers that were not stored as asked, by what they are stored as and why."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for each in manifest.fallbacks:
        grouped.setdefault((each.stored, each.reason), []).append(each.module)
    return grouped


def grid_record(use: GridUse, scale_dtype: str = "") -> GridRecord:
    """What a quantizer found. scale_dtype: the type that its container stores scales in."""
    groups, on_grid = use.groups
    errors = [share.scale_errors.get(scale_dtype, 0.0) for share in use.carried.values()]
    return GridRecord(
        matrices=len(use.surveyed),
        on_grid=len(use.on_grid),
        groups=groups,
        groups_on_grid=on_grid,
        carried=tuple(name.removesuffix(".weight") for name in use.carried),
        scale_error=max(errors, default=0.0),
    )


def quantization_record(
    quantizer: str, layout: Layout, *, float_dtype: str, file_bytes: int
) -> Quantization:
    """Describe a layout; ``file_bytes`` is the size of all weight files together."""
    modules: dict[tuple[int, int, bool, str], list[str]] = {}
    unquantized = []
    weights = 0
    for name, spec in layout.items():
        module = name.removesuffix(".weight")
        weights += math.prod(spec.shape)
        # The layout's types are in a higher layer, so a scheme is recognised by its presence.
        scheme = getattr(spec, "scheme", None)
        if scheme is not None:
            key = (scheme.bits, scheme.group_size, scheme.symmetric, scheme.codes)
            modules.setdefault(key, []).append(module)
        elif len(spec.shape) == 2 and name not in DENSE:  # which are copied, file by file
            unquantized.append(module)
    schemes = tuple(
        SchemeRecord(
            bits=bits, group_size=size, symmetric=symmetric, codes=codes, modules=tuple(names)
        )
        for (bits, size, symmetric, codes), names in modules.items()
    )
    return Quantization(
        quantizer=quantizer,
        schemes=schemes,
        unquantized=tuple(unquantized),
        float_dtype=float_dtype,
        bits_per_weight=8 * file_bytes / weights,
    )


def licence_of(manifest: Manifest) -> Licence:
    """The terms under which an artifact stands."""
    return licence_named(manifest.license, ARCHITECTURES[manifest.architecture].licence)


def tower_records(towers: Mapping[str, PlainSpec]) -> tuple[TowerRecord, ...]:
    """Describe towers' tensors, by published names or by those of a container."""
    grouped: dict[str, list[PlainSpec]] = {}
    for name, spec in towers.items():
        grouped.setdefault(tower_of(name), []).append(spec)
    return tuple(
        TowerRecord(
            name=name,
            tensors=len(specs),
            bytes=sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs),
            dtype=", ".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in specs})),
        )
        for name, specs in sorted(grouped.items())
    )


# ---------------------------------------------------------------- container and manifest

_LISTED = 8


def structure_problems(manifest: Manifest, layout: Layout) -> list[ArtifactError]:
    """Compare a container's own layout with the manifest, layer by layer.

    Symmetry is left out: AWQ's container stores the zero points of both kinds and does not tell
    them apart.
    """
    quantization = manifest.quantization
    read = quantization_record(
        quantization.quantizer, layout, float_dtype=quantization.float_dtype, file_bytes=1
    )
    described, stored = _module_schemes(quantization), _module_schemes(read)
    differing = [
        f"{module} ({stored.get(module, 'absent')}, not {described.get(module, 'absent')})"
        for module in {**described, **stored}
        if described.get(module) != stored.get(module)
    ]
    if not differing:
        return []
    rest = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    return [
        ArtifactError(
            "These are not stored as the manifest describes: "
            f"{', '.join(differing[:_LISTED])}{rest}."
        )
    ]


def tower_problems(manifest: Manifest, towers: Mapping[str, PlainSpec]) -> list[ArtifactError]:
    """Compare a container's own towers with the manifest."""
    stored = {each.name: each for each in tower_records(towers)}
    described = {each.name: each for each in manifest.towers}
    return [
        ArtifactError(f"{name} is not stored as the manifest describes.")
        for name in {**described, **stored}
        if described.get(name) != stored.get(name)
    ]


def _module_schemes(quantization: Quantization) -> dict[str, str]:
    schemes = dict.fromkeys(quantization.unquantized, "unquantized")
    for scheme in quantization.schemes:
        codes = "" if scheme.codes == INTEGER else f" {scheme.codes}"
        words = f"{scheme.bits} bits{codes}, group size {scheme.group_size}"
        schemes |= dict.fromkeys(scheme.modules, words)
    return schemes
