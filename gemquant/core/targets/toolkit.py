"""The schema of a vendor's converter in targets/toolkits/*.toml: every release, as data."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from gemquant.core.resources import data_folder
from gemquant.core.targets.device import Data, Generation, NonEmpty, Sources
from gemquant.core.untrusted import MAX_TOML_BYTES, UntrustedFile, wrong_fields
from gemquant.errors import UsageError


class ToolkitVersion(Data):
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


class Conversion(Data):
    """Rough cost of a conversion. seconds_per_million: weights, by optimization level."""

    seconds_per_million: Annotated[tuple[float, ...], Field(min_length=1)]
    bytes_per_weight: Annotated[float, Field(gt=0)]
    sources: Sources


class Toolkit(Data):
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
    try:
        return Toolkit.model_validate(UntrustedFile(file, MAX_TOML_BYTES).toml())
    except ValidationError as error:
        raise UsageError(f"{file}: {wrong_fields(error)}.") from None


def version_key(text: str) -> tuple[int, ...]:
    """Numbers of a version, for comparison.

    >>> version_key("1.2.10") > version_key("1.2.9"), version_key("v0.9.8")
    (True, (0, 9, 8))
    """
    return tuple(int(part) for part in text.lstrip("v").split(".") if part.isdigit())
