"""``NAME.llamafile.json``: what a llamafile was put together from, written beside it.

No dates, host names or paths of this machine. ``docs/llamafile.md`` describes each key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from gemquant.core.artifact.manifest import Sha256
from gemquant.core.json_document import Document, Record
from gemquant.errors import ArtifactError

SUFFIX = ".json"
_MAX_BYTES = 16_000_000


class PartRecord(Record):
    """A file, or a stretch of one."""

    name: str = Field(description="Name of the file or of the zip entry, without folders.")
    bytes: int = Field(ge=0, description="Size.")
    sha256: Sha256 = Field(description="SHA-256 of the bytes, hexadecimal.")


class RuntimeRecord(Record):
    """The executable at the beginning, byte for byte."""

    origin: str = Field(description="The URL that it was downloaded from, or its file's name.")
    bytes: int = Field(ge=1, description="Size: the llamafile begins with as many bytes of it.")
    sha256: Sha256 = Field(description="SHA-256 of the runtime as it was given.")
    version: str | None = Field(
        description="First line that the finished file answered to `--version`; null where it was "
        "not run."
    )
    entries: tuple[str, ...] = Field(
        description="Zip entries of the runtime's own that the llamafile lists again."
    )


class WeightsRecord(PartRecord):
    """The GGUF."""

    offset: int | None = Field(
        description="Where its data begins in the llamafile; null where it is a file of its own."
    )
    architecture: str = Field(description="`general.architecture` of its header.")
    license: str | None = Field(description="`general.license` of its header.")


class LlamafileRecord(Document):
    """All that a llamafile was put together from."""

    schema_version: Literal[1] = Field(default=1, description="Version of this document's layout.")
    kind: Literal["llamafile"] = Field(default="llamafile", description="What this describes.")
    file: PartRecord = Field(description="The executable.")
    runtime: RuntimeRecord = Field(description="The runtime in it.")
    weights: WeightsRecord = Field(description="The weights in it, or beside it.")
    arguments: tuple[str, ...] = Field(description="Default arguments; the user's own follow them.")
    libraries: Mapping[str, str] = Field(description="Version of gemquant.")


def record_path(llamafile: Path) -> Path:
    """Where the record of a llamafile stands."""
    return llamafile.with_name(llamafile.name + SUFFIX)


def read_record(llamafile: Path) -> LlamafileRecord:
    """Read the record beside a llamafile; ArtifactError where it is missing or none."""
    path = record_path(llamafile)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtifactError(f"{path} has more than {_MAX_BYTES} bytes: not a record.")
        return LlamafileRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ArtifactError(
            f"{path} does not describe a llamafile: {where}: {first['msg']}."
        ) from None
