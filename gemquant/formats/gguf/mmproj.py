"""The mmproj file: what a multimodal Gemma sees and hears with, next to the GGUF of its text.

Byte for byte as llama.cpp's ``convert_hf_to_gguf.py --mmproj`` writes it, where the processor's
files and the card give what it wants.

Source: llama.cpp ``conversion/base.py`` (``MmprojModel``, ``prepare_tensors``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGML_QUANT_VERSION
from torch import Tensor

from gemquant.core.artifact import Manifest, TowerRecord
from gemquant.errors import (
    ArtifactError,
    CheckpointError,
    GemquantError,
    UnsupportedError,
)
from gemquant.formats.gguf.config import FILE_TYPE
from gemquant.formats.gguf.header import read_gguf_header
from gemquant.formats.gguf.metadata import QUANTIZATION_VERSION, general_metadata
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.values import Metadata, boolean, float32, float32s, string, uint32
from gemquant.formats.gguf.vocabulary import parsed_json
from gemquant.formats.gguf.writer import StoredTensor, file_layout
from gemquant.formats.preallocated import FileLayout
from gemquant.formats.source_file import SourceFile
from gemquant.models.architecture import architecture_of
from gemquant.models.mmproj import MMPROJ, is_mmproj
from gemquant.models.structure import MmprojFacts, MmprojKey
from gemquant.numerics.ggml import quantize_rows
from gemquant.numerics.ggml_types import TYPES, GgmlType

if TYPE_CHECKING:
    from gemquant.formats.checkpoint.towers import Towers
    from gemquant.formats.source_model import Origin

_WITHOUT = "Convert the text model alone: --mmproj none, or --text-only"


@dataclass(frozen=True)
class Mmproj:
    """The mmproj file of a checkpoint.

    kind: F16, BF16 or Q8_0, of every matrix but those that llama.cpp wants otherwise.
    """

    origin: Origin
    kind: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{MMPROJ}-{self.origin.name}-{self.kind}.gguf"

    def problems(self) -> list[GemquantError]:
        """Everything that llama.cpp cannot have, or would compute differently."""
        if self._facts_or_none is None:
            return [UnsupportedError("llama.cpp has no towers of this model.", hint=_WITHOUT)]
        try:
            settings = self._settings()
            refused = list(self._facts.refused(self._towers.config, settings))
            self._keys(settings)
        except CheckpointError as error:
            return [CheckpointError(error.message, hint=error.hint or _WITHOUT)]
        return [
            UnsupportedError(f"config.json: {key} {str(value)[:80]}: {rule}.", hint=_WITHOUT)
            for key, value, rule in refused
        ]

    def tensors(self) -> dict[str, StoredTensor]:
        """What is stored, by published name, in the order of the file."""
        stored = {}
        for name in self._towers.by_file():
            if (place := self._facts.place(name)) is not None:
                value = torch.empty(
                    self._towers.shape(name), dtype=self._towers.stored_dtype(name), device="meta"
                )
                shape = tuple(self._value(place[1], value).shape)
                stored[name] = StoredTensor(place[0], shape, self._type(place, shape))
        return stored

    def layout(self) -> FileLayout:
        """The file before any data."""
        tensors = list(self.tensors().values())
        weights = sum(prod(tensor.shape) for tensor in tensors)
        files, provenance = self.origin.tokenizer_files, self.origin.provenance
        generation = parsed_json(files, "generation_config.json", provenance.base_model)
        metadata: Metadata = {
            "general.architecture": string("clip"),
            "general.type": string("mmproj"),
            **general_metadata(provenance, generation, sizes=(weights, weights, 0, 0), name=None),
            FILE_TYPE: uint32(FILE_TYPES[self.kind].number),
            **{key: _typed(value) for key, value in self._keys(self._settings()).items()},
            QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
        }
        return file_layout(tensors, metadata)

    def encoded(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The bytes of a published tensor, uint8, by its name in the file; empty for none."""
        place = self._facts.place(name)
        if place is None:
            return {}
        value = self._value(place[1], tensor).to(torch.float32)
        kind = self._type(place, tuple(value.shape))
        if kind.name == "F16" and value.abs().max() > torch.finfo(torch.float16).max:
            raise UnsupportedError(
                f"{name} holds {value.abs().max().item():g}, and float16 at most 65504.",
                hint="--mmproj BF16",
            )
        return {place[0]: quantize_rows(value.reshape(-1, value.shape[-1]), kind)}

    @property
    def _towers(self) -> Towers:
        towers = self.origin.checkpoint.towers
        assert towers is not None
        return towers

    @property
    def _facts_or_none(self) -> MmprojFacts | None:
        return architecture_of(self.origin.config).gguf.mmproj

    @property
    def _facts(self) -> MmprojFacts:
        facts = self._facts_or_none
        assert facts is not None
        return facts

    def _value(self, module: str, tensor: Tensor) -> Tensor:
        # As upstream: in float32, or in the file's float16.
        exact = tensor if tensor.dtype == torch.float16 else tensor.to(torch.float32)
        return self._facts.values(module, exact, self._towers.config)

    def _type(self, place: tuple[str, str], shape: tuple[int, ...]) -> GgmlType:
        name, module = place
        matrix = len(shape) > 1 and name.endswith(".weight")
        if not matrix or module in self._facts.in_float32:
            return TYPES["F32"]
        if module == "v.patch_embd":
            return TYPES["F16" if self.kind == "F16" else "F32"]
        kind = TYPES["F16" if module in self._facts.in_float16 else self.kind]
        return TYPES["F16"] if shape[-1] % kind.block else kind

    def _keys(self, settings: Mapping[str, Any]) -> Mapping[str, MmprojKey]:
        return self._facts.keys(self._towers.config, self.origin.config["hidden_size"], settings)

    def _settings(self) -> dict[str, Any]:
        """What the processor's files say, in one object, as upstream merges them."""
        merged: dict[str, Any] = {}
        for name in ("preprocessor_config.json", "processor_config.json"):
            content = json.loads(self._towers.processor_files.get(name, b"{}"))
            images = content.get("image_processor")
            merged |= {**content, **(images if isinstance(images, dict) else {})}
        for key, default in (("image_mean", self._facts.mean), ("image_std", self._facts.std)):
            merged[key] = _three_numbers(key, merged.get(key, [default] * 3))
        length = merged.get("image_seq_length", 256)
        if type(length) is not int or not 0 < length < 2**20:
            raise CheckpointError(f"processor: image_seq_length {str(length)[:80]}: not a number.")
        return merged


def _three_numbers(key: str, value: Any) -> list[float]:
    each = value if isinstance(value, list) else []
    fits = len(each) == 3 and all(type(v) in (int, float) and isfinite(v) for v in each)
    if not fits or (key == "image_std" and 0 in each):
        raise CheckpointError(
            f"the processor's {key} {str(value)[:80]}: must be three numbers, of the colours."
        )
    return [float(v) for v in each]


def _typed(value: MmprojKey) -> Any:
    if isinstance(value, str):
        return string(value)
    if isinstance(value, bool):
        return boolean(value)
    if isinstance(value, Sequence):
        return float32s(value)
    return float32(value) if isinstance(value, float) else uint32(value)


# ---------------------------------------------------------------- finished files


def mmproj_record(name: str, tensors: Sequence[StoredTensor], size: int) -> TowerRecord:
    """Describe a file of towers for the manifest; size: of the whole file."""
    types = sorted({tensor.type.name for tensor in tensors})
    return TowerRecord(name=name, tensors=len(tensors), bytes=size, dtype=", ".join(types))


def mmproj_problems(folder: Path, manifest: Manifest) -> Iterator[ArtifactError]:
    """Compare an artifact's file of towers with its manifest, from the header alone."""
    found = next((path.name for path in folder.glob("*.gguf") if is_mmproj(path.name)), None)
    described = {each.name: each for each in manifest.towers}
    if found is None and not described:
        return
    if found is None or found not in described:
        missing = ", ".join(described) or "none"
        yield ArtifactError(f"{folder}: {found or 'no mmproj file'}; the manifest has {missing}.")
        return
    file = SourceFile(folder / found)
    try:
        header = read_gguf_header(file)
    except CheckpointError as error:
        yield ArtifactError(error.message)
        return
    kinds = ", ".join(sorted({entry.type.name for entry in header.tensors.values()}))
    record = described[found]
    if header.metadata.get("general.type") != "mmproj" or (len(header.tensors), kinds) != (
        record.tensors,
        record.dtype,
    ):
        yield ArtifactError(f"{folder / found} is not what the manifest describes.")
