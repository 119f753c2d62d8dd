"""What a device accepts, read from ``targets/*.toml``: containers, schemes, dtypes, runtimes.

A target is data. Which container is the default follows from the generation of Gemma and from the
scheme; each runtime says which schemes it loads, with its sources. ``targets/toolkits/*.toml``
describe every release of a vendor's converter.
"""

from __future__ import annotations

import datetime as dt
import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gemquant.core.json_document import Record
from gemquant.core.resources import data_folder
from gemquant.core.scheme import BLOCK_FORMATS, INTEGER, Scheme, describe, in_words
from gemquant.core.untrusted import MAX_TOML_BYTES, UntrustedFile
from gemquant.errors import ArtifactError, ProblemCollector, UnsupportedError, UsageError
from gemquant.models.architecture import registered

if TYPE_CHECKING:
    from gemquant.core.artifact import Manifest


Generation = Annotated[str, AfterValidator(registered)]
"""A generation of Gemma as ``loading_kind`` names it: by its text model's ``model_type``, with
per-layer inputs and quantized experts apart."""

NonEmpty = Annotated[str, Field(min_length=1)]
Sources = Annotated[tuple[NonEmpty, ...], Field(min_length=1)]


class Speed(Record):
    """How fast weights are read while decoding: a token takes bytes / bandwidth + a constant.

    device: the chip or board. schemes: names of those it holds for; empty for all.
    gb_per_second: 10⁹ bytes a second. basis: ``fitted`` to measured decoding, with the constant, or
    ``bound``, the memory's own bandwidth, which no runtime exceeds and none quite reaches.
    """

    device: NonEmpty
    gb_per_second: Annotated[float, Field(gt=0)]
    milliseconds_per_token: Annotated[float, Field(ge=0)] = 0.0
    basis: Literal["fitted", "bound"]
    schemes: tuple[NonEmpty, ...] = ()
    sources: Sources
    note: str = ""


class Footprint(Record):
    """Memory that a runtime needs besides weights and key-value cache.

    runtime_mib: a constant. vocabulary_bytes: for each token of the vocabulary.
    window_cache: generations whose sliding layers keep no more than their window.
    """

    runtime_mib: Annotated[float, Field(ge=0)]
    vocabulary_bytes: Annotated[float, Field(ge=0)] = 0.0
    window_cache: tuple[Generation, ...] = ()
    basis: Literal["fitted", "estimate"]
    sources: Sources


class NpuDtype(Record):
    """One quantized dtype of an NPU's toolkit.

    group_size: -1 for one scale per output channel. hybrid: the dtype that a hybrid rate mixes in.
    """

    name: NonEmpty
    weight_bits: Literal[4, 8]
    activation_bits: Literal[8, 16]
    group_size: Annotated[int, Field(ge=-1)]
    algorithms: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    hybrid: bool


class Npu(Record):
    """What the toolkit accepts for this chip, and what the board must have.

    hybrid_rate_below: rates are at least 0 and below this. driver: the oldest NPU driver.
    """

    platform: NonEmpty
    toolkit: NonEmpty
    dtypes: Annotated[tuple[NpuDtype, ...], Field(min_length=1)]
    default_dtype: NonEmpty
    cores: Annotated[tuple[int, ...], Field(min_length=1)]
    optimization_levels: tuple[int, ...]
    hybrid_rate_below: float
    max_context: Annotated[int, Field(ge=1)]
    context_multiple: Annotated[int, Field(ge=1)]
    driver: NonEmpty
    sources: Sources

    def dtype(self, name: str) -> NpuDtype | None:
        """The quantized dtype of a name, or None."""
        return next((dtype for dtype in self.dtypes if dtype.name == name), None)


class Schemes(Record):
    """A product of bit widths, group sizes and symmetry, for one meaning of the codes."""

    bits: Annotated[tuple[int, ...], Field(min_length=1)]
    group_sizes: Annotated[tuple[int, ...], Field(min_length=1)]
    symmetric: Annotated[tuple[bool, ...], Field(min_length=1)]
    codes: NonEmpty = INTEGER

    def include(self, scheme: Scheme) -> bool:
        """Whether the product contains ``scheme``."""
        return (
            scheme.bits in self.bits
            and scheme.group_size in self.group_sizes
            and scheme.symmetric in self.symmetric
            and scheme.codes == self.codes
        )


class Runtime(Record):
    """A program that loads a container, its requirements, and what it accepts.

    decompresses: it runs the weights in its own dtype, whatever they were stored in.
    """

    name: NonEmpty
    requires: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    dtypes: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    generations: Annotated[tuple[Generation, ...], Field(min_length=1)]
    schemes: tuple[Schemes, ...]
    sources: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    note: str = ""
    decompresses: bool = False

    def loads(self, generation: str, schemes: Iterable[Scheme]) -> bool:
        """Whether this runtime loads that generation with all of those schemes.

        A runtime without schemes loads what is not quantized at all, and nothing else does.
        """
        required = list(schemes)
        return (
            generation in self.generations
            and bool(required) == bool(self.schemes)
            and all(any(accepted.include(s) for accepted in self.schemes) for s in required)
        )


class TargetContainer(Record):
    """A file format that the device's runtimes load."""

    exporter: NonEmpty
    description: NonEmpty
    choose: str = ""
    runtimes: Annotated[tuple[Runtime, ...], Field(min_length=1)]


class Target(Record):
    """A device: its containers, and which of them is the default for each generation.

    npu: where a vendor's toolkit makes the file, and no exporter of ours. footprint, speeds: what
    runs take besides the weights, and how fast devices of this kind read them.
    """

    name: NonEmpty
    description: NonEmpty
    dtypes: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    preference: dict[Generation, tuple[NonEmpty, ...]] = Field(default_factory=dict)
    npu: Npu | None = None
    containers: Annotated[tuple[TargetContainer, ...], Field(validate_default=True)] = ()
    footprint: Footprint | None = None
    speeds: tuple[Speed, ...] = ()

    @field_validator("containers")
    @classmethod
    def _makes_something(
        cls, containers: tuple[TargetContainer, ...], info: ValidationInfo
    ) -> tuple[TargetContainer, ...]:
        if not containers and info.data.get("npu") is None:
            raise ValueError("needs at least one, or a table npu")
        return containers

    @model_validator(mode="after")
    def _preferences_exist(self) -> Target:
        known = self.exporters
        for generation, names in self.preference.items():
            for name in names:
                if name not in known:
                    raise ValueError(f"preference.{generation} names {name!r}, not a container")
        return self

    @property
    def exporters(self) -> tuple[str, ...]:
        """Names of the exporters whose containers this target takes."""
        return tuple(container.exporter for container in self.containers)

    def container(self, exporter: str) -> TargetContainer:
        """Return the container that ``exporter`` writes; UsageError if the target has none."""
        for container in self.containers:
            if container.exporter == exporter:
                return container
        raise UsageError(
            f"--exporter {exporter}: not a container of target {self.name}.",
            hint=f"Use one of: {', '.join(self.exporters)}." if self.exporters else self._npu_hint,
        )

    @property
    def _npu_hint(self) -> str:
        return f"Use: gemquant rkllm MODEL --target {self.name}"

    def runtimes(
        self, exporter: str, generation: str, schemes: Sequence[Scheme]
    ) -> tuple[Runtime, ...]:
        """Return the runtimes of this device that will load the artifact."""
        runtimes = self.container(exporter).runtimes
        return tuple(runtime for runtime in runtimes if runtime.loads(generation, schemes))

    def loading(self, generation: str) -> bool:
        """Whether some runtime loads a generation in some scheme."""
        runtimes = (runtime for container in self.containers for runtime in container.runtimes)
        return any(generation in runtime.generations for runtime in runtimes)

    def preferred(self, generation: str, schemes: Sequence[Scheme]) -> str | None:
        """The first container of a generation's preference that some runtime loads."""
        loaded = (n for n in self._preference(generation) if self.runtimes(n, generation, schemes))
        return next(loaded, None)

    def _preference(self, generation: str) -> Sequence[str]:
        return self.preference.get(
            generation, self.preference.get(generation.partition("+")[0], ())
        )

    def default_exporter(self, generation: str, schemes: Sequence[Scheme]) -> str:
        """Choose the preferred container of a generation that some runtime loads.

        UnsupportedError if there is none; it lists what each container accepts.
        """
        if self.npu is not None and not self.containers:
            raise UnsupportedError(
                f"target {self.name} takes files of its vendor's toolkit only.",
                hint=self._npu_hint,
            )
        if name := self.preferred(generation, schemes):
            return name
        preferred = self._preference(generation)
        described = ", ".join(dict.fromkeys(map(describe, schemes))) or UNQUANTIZED
        accepted = dict.fromkeys(
            f"{container.exporter}: {words}"
            for container in self.containers
            if container.exporter in preferred
            for runtime in container.runtimes
            if generation in runtime.generations and runtime.schemes
            for words in accepted_schemes(runtime)
        )
        if not accepted:
            others = ", ".join(t.name for t in targets() if t.loading(generation))
            raise UnsupportedError(
                f"target {self.name}: no runtime is known to load {generation}.",
                hint=f"These targets have one: {others}." if others else None,
            )
        raise UnsupportedError(
            f"{described}: no runtime of target {self.name} loads that for {generation}.",
            hint=f"Accepted are {'; '.join(accepted)}.",
        )


UNQUANTIZED = "weights in floating point"


def accepted_schemes(runtime: Runtime) -> list[str]:
    """Describe every scheme that a runtime accepts; named block formats share one line."""
    formats = [product.codes for product in runtime.schemes if product.codes in BLOCK_FORMATS]
    others = [
        in_words(p.bits, p.group_sizes, p.symmetric, p.codes)  # 3/4 bits, groups of 64/128, …
        for p in runtime.schemes
        if p.codes not in BLOCK_FORMATS
    ]
    return [*others, *(["/".join(formats)] if formats else [])] or [UNQUANTIZED]


# ---------------------------------------------------------------- loading


def target_files(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Map target names to files: the shipped ones, then those of the user's folders, which win."""
    return {
        file.stem: file
        for folder in (data_folder("targets"), *folders)
        for file in sorted(folder.glob("*.toml"))
    }


def targets(folders: Sequence[Path] = ()) -> list[Target]:
    """Read every target, sorted by name; all problems of all files at once."""
    problems, files = ProblemCollector(), target_files(folders)
    attempts = [problems.attempt(partial(read_target, files[name])) for name in sorted(files)]
    problems.refuse()
    return [attempt.value for attempt in attempts]


def load_target(name: str, folders: Sequence[Path] = ()) -> Target:
    """Read the target called ``name``; UsageError with suggestions if there is none."""
    files = target_files(folders)
    if name not in files:
        close = difflib.get_close_matches(name, files, n=2) or sorted(files)
        raise UsageError(
            f"--target {name}: no such target.",
            hint=f"Did you mean {' or '.join(close)}? See: gemquant targets",
        )
    return read_target(files[name])


def read_target(file: Path) -> Target:
    """Read and validate one target file; every problem in it is reported at once."""
    data = UntrustedFile(file, MAX_TOML_BYTES).toml()
    try:
        return Target.model_validate({**data, "name": file.stem})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc'])) or 'target'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise UsageError(
            f"{file}: not a valid target.{os.linesep}    " + f"{os.linesep}    ".join(lines),
            hint="docs/new-target.md describes every key.",
        ) from None


# ---------------------------------------------------------------- toolkits


class ToolkitVersion(Record):
    """One release.

    requires: its own exact pins, as far as published. load, build, export: parameters of its three
    functions, in order. driver: the oldest NPU driver. tokenizer_model: ``tokenizer.model`` must be
    there. merges: how its tokenizers package reads them. calibration: ``prompt`` where a dataset of
    templated prompts is taken. square_attention: heads · head_dim must be the hidden size.
    head_dims: those that convert; empty for any. head_bits: of the stored head, where that is not
    the dtype's. magic: how its files begin, in hexadecimal, where that is known. wheels: SHA-256 of
    known ones. gptq_int8_groups: group sizes of the 8-bit GPTQ checkpoints that it imports.
    simulator: how it predicts on a PC what the NPU would; None where it cannot.
    """

    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    released: dt.date
    python: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    requires: tuple[NonEmpty, ...]
    generations: Annotated[tuple[Generation, ...], Field(min_length=1)]
    platforms: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    dtypes: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    algorithms: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    load: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    build: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    export: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    driver: NonEmpty
    tokenizer_model: bool
    merges: Literal["text", "pairs"]
    calibration: Literal["none", "prompt"]
    square_attention: bool = False
    head_dims: tuple[int, ...] = ()
    head_bits: int | None = None
    magic: NonEmpty | None = None
    wheels: tuple[NonEmpty, ...] = ()
    gptq_int8_groups: tuple[int, ...] = ()
    simulator: Literal["evaluator", "get_logits"] | None = None
    sources: Sources

    @property
    def key(self) -> tuple[int, ...]:
        """The version as a sort key."""
        return version_key(self.version)


class Conversion(Record):
    """Rough cost of a conversion. seconds_per_million: weights, by optimization level."""

    seconds_per_million: Annotated[tuple[float, ...], Field(min_length=1)]
    bytes_per_weight: Annotated[float, Field(gt=0)]
    sources: Sources


class Toolkit(Record):
    """A converter. name: its distribution; imports: its module; lookalike: another's package."""

    name: NonEmpty
    imports: NonEmpty
    lookalike: NonEmpty
    releases: NonEmpty
    conversion: Conversion
    versions: Annotated[tuple[ToolkitVersion, ...], Field(min_length=1)]

    def version(self, number: str) -> ToolkitVersion | None:
        """The release of a number, or None."""
        return next((each for each in self.versions if each.version == number), None)

    @property
    def newest(self) -> ToolkitVersion:
        """The newest known release."""
        return max(self.versions, key=lambda each: each.key)

    def converting(self, platform: str, generation: str, dtype: str) -> tuple[ToolkitVersion, ...]:
        """Releases that convert a generation to a dtype for a platform, the oldest first."""
        releases = (
            each
            for each in self.versions
            if platform in each.platforms
            and generation in each.generations
            and dtype in each.dtypes
        )
        return tuple(sorted(releases, key=lambda each: each.key))


def load_toolkit(name: str) -> Toolkit:
    """Read a toolkit's file; UsageError if the file is missing or not valid."""
    file = data_folder("targets") / "toolkits" / f"{Path(name).name}.toml"
    return UntrustedFile(file, MAX_TOML_BYTES).table(Toolkit)


def converted_problems(
    path: Path, magic: str | None, bounds: tuple[int, int], dtype: str
) -> Iterator[ArtifactError]:
    """Compare a converted file's beginning and size with what its release writes."""
    size, (least, most) = path.stat().st_size, bounds
    with path.open("rb") as file:
        first = file.read(4).hex()
    if magic is not None and first != magic:
        yield ArtifactError(f"{path.name} begins with {first}; RKLLM files begin with {magic}.")
    if not least <= size <= most:
        yield ArtifactError(
            f"{path.name} has {size} bytes; expected for {dtype} are {least} to {most}."
        )


def conversion_problems(folder: Path, manifest: Manifest) -> Iterator[ArtifactError]:
    """Compare a vendor's file, whose weights cannot be read back, with the manifest."""
    record, suffix = manifest.conversion, f".{manifest.container}"
    names = [name for name in manifest.files if name.endswith(suffix)]
    if record is None:
        yield ArtifactError(f"{folder}: the manifest has no conversion.")
    elif len(names) != 1:
        yield ArtifactError(f"{folder} has {len(names)} {suffix} files; it must have one.")
    else:
        release = load_toolkit(record.tool).version(record.version)
        magic = None if release is None else release.magic
        bounds = (record.least_bytes or 0, record.most_bytes or sys.maxsize)
        yield from converted_problems(folder / names[0], magic, bounds, record.dtype)


def version_key(text: str) -> tuple[int, ...]:
    """Numbers of a version, for comparison.

    >>> version_key("1.2.10") > version_key("1.2.9"), version_key("v0.9.8")
    (True, (0, 9, 8))
    """
    return tuple(int(part) for part in text.lstrip("v").split(".") if part.isdigit())
