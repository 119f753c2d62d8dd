"""A folder as on the Hub: config.json, safetensors in one or several files, a tokenizer."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.core.scheme import describe
from gemquant.errors import (
    CheckpointError,
    GemquantError,
    ProblemCollector,
    UnsupportedError,
    listed,
    refuse,
)
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.formats.checkpoint.pack_quantized import packed_matrices
from gemquant.formats.checkpoint.recognition import check_folder, not_a_model
from gemquant.formats.checkpoint.sentence import SentenceModules
from gemquant.formats.checkpoint.source import is_wrapped, text_name
from gemquant.formats.checkpoint.towers import Towers, read_towers
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.models.architecture import (
    architecture_of,
    places_in_stacks,
    stacked_tensors,
    tensor_shapes,
)
from gemquant.models.structure import EMBEDDING, HEAD, Stack

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_log = logging.getLogger(__name__)

_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})")
_NOT_WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors")
_FLOATS = ("BF16", "F16", "F32")
_CHUNK_VALUES = 1 << 22
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json as it is. Raises CheckpointError where there is none."""
    check_folder(folder)
    return read_json_object(contained(folder, "config.json"))


class FolderTensors:
    """The text model's tensors of a folder, under the text-only names.

    config: the text configuration, with ``tie_word_embeddings`` as the weights have it.
    modules: of an embedding model.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        modules: SentenceModules | None = None,
        quantization: Any | None = None,
    ) -> None:
        """Read all headers; raise everything that does not fit the configuration at once.

        quantization: ``quantization_config`` of config.json, where matrices are packed.
        """
        files, promised = _weight_files(folder)
        self._mapped = SafetensorsFiles(files, others=modules.weights if modules else {})
        self._stored_names, problems = _text_names(self._mapped, config)
        self._packed = (
            packed_matrices(self._mapped, self._stored_names, quantization) if quantization else {}
        )
        known = self._stored_names.keys() | self._packed.keys()
        alone = len({HEAD, EMBEDDING} & known) == 1
        tied = HEAD not in self._packed and _tie(self._mapped, self._stored_names)
        if alone and not config["tie_word_embeddings"]:
            _log.warning(
                "%s: config.json parts head and embedding, and only one of them is stored: it is "
                "both.",
                folder,
            )
        self.config: Mapping[str, Any] = {**config, "tie_word_embeddings": tied}
        problems += _promise_problems(self._mapped, promised, tied=tied)
        stacks = {
            name: stack
            for name, stack in stacked_tensors(config).items()
            if not any(part in known for part in stack.parts)
        }
        packed = {name: matrix.shape for name, matrix in self._packed.items()}
        problems += _shape_problems(self._mapped, self._stored_names, packed, self.config, stacks)
        refuse(problems)
        self._places = places_in_stacks(stacks, tensor_shapes(config))

    def towers(self, folder: Path, raw: Mapping[str, Any]) -> Towers | None:
        """What the folder has beside the text model. raw: its config.json."""
        return read_towers(folder, raw, self.config, self._mapped)

    @property
    def files(self) -> Sequence[Path]:
        """The weight files, in the order of their names."""
        return self._mapped.files

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor of the text model."""
        plain = {name: self._mapped.shapes[stored] for name, stored in self._stored_names.items()}
        return plain | {name: matrix.shape for name, matrix in self._packed.items()}

    @property
    def packed(self) -> Mapping[str, str]:
        """Format of every matrix that is packed."""
        return {name: describe(matrix.scheme) for name, matrix in self._packed.items()}

    def stored_dtype(self, name: str) -> torch.dtype:
        """The type in the file; float32 for packed matrices."""
        if name in self._packed:
            return torch.float32
        stack, _ = self._places.get(name, (name, 0))
        return self._mapped.stored_dtype(self._stored_names[stack])

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` in ``dtype``."""
        if name in self._packed:
            return self._packed[name].rows(self._mapped, start, stop).dequantize().to(dtype)
        if name not in self._places:
            return self._mapped.read(self._stored_names[name], start, stop, dtype)
        stack, first = self._places[name]
        return self._mapped.rows(self._stored_names[stack], first + start, first + stop, dtype)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files, and which of them the index promises each tensor to be in."""
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [contained(folder, SINGLE)], {}
    if not (folder / INDEX).exists():
        if names := _without_index(folder):
            return [contained(folder, name) for name in names], {}
        raise _no_weights(folder)
    index = read_json_object(contained(folder, INDEX)).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / INDEX}: holds no weight_map.")
    problems = ProblemCollector()
    names = sorted({str(name) for name in index.values()})
    files = [problems.attempt(partial(contained, folder, name)) for name in names]
    problems.refuse()
    return [file.value for file in files], {tensor: str(name) for tensor, name in index.items()}


def _without_index(folder: Path) -> list[str]:
    """Names of the weight files of a folder without an index, if it is clear which they are."""
    names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    models: dict[str, list[str]] = {}  # shards by what they have in common
    for name in names:
        if name not in _NOT_WEIGHTS:
            models.setdefault(_SHARD.sub(r"\1-of-\3", name), []).append(name)
    if len(models) > 1:
        models = {each: files for each, files in models.items() if each.startswith("model")}
    if not models:
        return []
    if len(models) > 1:
        raise CheckpointError(
            f"{folder}: neither {SINGLE} nor {INDEX} is there, and several other files are: "
            f"{listed(names, 8)}.",
            hint="Keep those of one model there.",
        )
    (files,) = models.values()
    match = _SHARD.match(files[0])
    if match and len(files) != int(match[3]):
        raise CheckpointError(
            f"{folder}: {int(match[3])} shards make the model, and {len(files)} are there: "
            f"{listed(files, 4)}.",
            hint="Download the checkpoint again.",
        )
    _log.warning("%s: there is no %s; read is: %s.", folder, INDEX, listed(files, 4))
    return files


def _no_weights(folder: Path) -> GemquantError:
    if (other := not_a_model(folder, configured=False)) is not None:
        return other
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return UnsupportedError(
            f"{folder}: only pickled weights ({', '.join(pickles[:8])}); loading a pickle "
            "can run any code, so only safetensors are read.",
            hint="Save the model once with transformers: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors.",
        )
    return CheckpointError(
        f"{folder}: neither {SINGLE} nor {INDEX} is there.",
        hint="Download the weights too: hf download MODEL --local-dir FOLDER",
    )


def _text_names(
    mapped: SafetensorsFiles, config: Mapping[str, Any]
) -> tuple[dict[str, str], list[GemquantError]]:
    """Map text-only names to stored names."""
    names: dict[str, str] = {}
    twice: list[str] = []
    problems: list[GemquantError] = []
    unused = architecture_of(config).unused
    for stored in mapped.shapes:
        name = text_name(stored)
        if name is None or unused(config, name):
            continue
        if name in names:
            twice.append(f"{names[name]} and {stored}")
        names[name] = stored
    if twice:
        problems.append(
            CheckpointError(f"{len(twice)} tensors are stored under two names: {listed(twice, 2)}.")
        )
    wrapped = [name for name, stored in names.items() if is_wrapped(stored)]
    if wrapped and not architecture_of(config).embeds:  # which are published so
        _log.warning(
            "%d tensors are read under the name that Gemma has for them: %s is %s.",
            len(wrapped),
            names[wrapped[0]],
            wrapped[0],
        )
    return names, problems


def _tie(mapped: SafetensorsFiles, names: dict[str, str]) -> bool:
    """Whether head and embedding are one matrix; if so, ``names`` holds the embedding alone.

    The stored weights decide, as in transformers 5, and not config.json: two equal matrices or one
    of the two are tied, two different ones are not.
    """
    head, embedding = names.get(HEAD), names.get(EMBEDDING)
    if head is None:
        return True
    if embedding is None:
        names[EMBEDDING] = head
    elif not _equal(mapped, head, embedding):
        return False
    del names[HEAD]
    return True


def _equal(mapped: SafetensorsFiles, first: str, second: str) -> bool:
    """Compare two matrices row block by row block, as float32."""
    shape = mapped.shapes[first]
    if shape != mapped.shapes[second]:
        return False
    if not {mapped.format_dtype(name) for name in (first, second)} <= set(_FLOATS):
        return False
    step = max(1, _CHUNK_VALUES // max(math.prod(shape[1:]), 1))
    return all(
        torch.equal(*(mapped.read(n, row, row + step, torch.float32) for n in (first, second)))
        for row in range(0, shape[0], step)
    )


def _promise_problems(
    mapped: SafetensorsFiles, promised: Mapping[str, str], *, tied: bool
) -> list[GemquantError]:
    shared = (HEAD, EMBEDDING) if tied else ()
    missing = [
        f"{tensor} ({file})"
        for tensor, file in promised.items()
        if tensor not in mapped.shapes and text_name(tensor) not in shared
    ]
    if not missing:
        return []
    return [CheckpointError(f"{INDEX} lists tensors that no shard holds: {listed(missing, 8)}.")]


def _shape_problems(
    mapped: SafetensorsFiles,
    names: Mapping[str, str],
    packed: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    stacks: Mapping[str, Stack],
) -> list[GemquantError]:
    parts = {part for stack in stacks.values() for part in stack.parts}
    expected: dict[str, tuple[int, ...]] = {
        name: shape for name, shape in tensor_shapes(config).items() if name not in parts
    }
    expected |= {name: stack.shape for name, stack in stacks.items()}
    problems: list[GemquantError] = []
    missing = [name for name in expected if name not in names and name not in packed]
    if missing:
        problems.append(
            CheckpointError(
                f"{len(missing)} tensors are missing: {listed(missing, 8)}.",
                hint="Download the checkpoint again; a shard may be absent.",
            )
        )
    unexpected = [stored for name, stored in names.items() if name not in expected]
    unexpected += [name for name in packed if name not in expected]
    if unexpected:
        problems.append(
            UnsupportedError(
                f"{len(unexpected)} tensors are not part of a {config['model_type']}: "
                f"{listed(unexpected, 8)}.",
                hint="Adapters must be merged first, or given with --lora.",
            )
        )
    for name, shape in expected.items():
        if packed.get(name, shape) != shape:
            problems.append(
                CheckpointError(
                    f"{name}: weight_shape {packed[name]}, and config.json implies {shape}."
                )
            )
        if name not in names:
            continue
        stored = names[name]
        if mapped.shapes[stored] != shape:
            problems.append(
                CheckpointError(
                    f"{stored}: shape {mapped.shapes[stored]}, and config.json implies {shape}."
                )
            )
        if mapped.format_dtype(stored) not in _FLOATS:
            problems.append(
                UnsupportedError(
                    f"{stored}: stored as {mapped.format_dtype(stored)}; "
                    f"read are {', '.join(_FLOATS)}."
                )
            )
    return problems
