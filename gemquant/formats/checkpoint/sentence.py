"""What a sentence-transformers folder has besides the model: pooling, Dense modules, prompts.

``modules.json`` lists them in order: Transformer, Pooling, Dense modules, Normalize. Each but the
first has a folder with its configuration, a Dense module also ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CheckpointError, ProblemCollector, UnsupportedError
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.models.structure import DENSE, DENSE_MODULES

_MODULES, _PROMPTS = "modules.json", "config_sentence_transformers.json"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
SENTENCE_FILES = (_MODULES, _PROMPTS, "sentence_bert_config.json", f"[0-9]_*/{_CONFIG}")
"""Patterns of all but weights, as the Hub takes them."""
_MAX_BYTES = 500_000_000


@dataclass(frozen=True)
class SentenceModules:
    """The modules of a folder.

    names: of all files, inside the folder. dense: a Dense module's name, as llama.cpp has it → the
    file of its weights. sizes: the same → [in, out].
    """

    folder: Path = field(repr=False)
    names: Sequence[str]
    dense: Mapping[str, str]
    sizes: Mapping[str, Sequence[int]]

    @property
    def weights(self) -> Mapping[Path, Callable[[str], str]]:
        """Files of the Dense modules' weights, and how their tensors are named here."""
        return {self.folder / file: partial(_named, name) for name, file in self.dense.items()}

    @property
    def file_sizes(self) -> Mapping[str, int]:
        """Bytes of those files, by name inside the folder."""
        return {name: (self.folder / name).stat().st_size for name in self.dense.values()}

    @cached_property
    def prompts(self) -> Mapping[str, str]:
        """What stands before texts, by their purpose; empty where the folder names none."""
        if _PROMPTS not in self.names:
            return {}
        listed = read_json_object(contained(self.folder, _PROMPTS)).get("prompts")
        pairs = listed.items() if isinstance(listed, dict) else ()
        return {str(name): text for name, text in pairs if isinstance(text, str)}

    def contents(self) -> Mapping[str, bytes]:
        """All files by name."""
        paths = {name: contained(self.folder, name) for name in self.names}
        return {n: UntrustedFile(p, _MAX_BYTES, CheckpointError).bytes() for n, p in paths.items()}


def _named(module: str, stored: str) -> str:
    return f"{module}.{stored.removeprefix('linear.')}"


def with_modules(folder: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Any], SentenceModules]:
    """A config.json with the Dense modules' sizes, and all modules of an embedding model's folder.

    Raises what is missing, or what would be computed otherwise than here, all at once.
    """
    listed = UntrustedFile(contained(folder, _MODULES), _MAX_BYTES, CheckpointError).json()
    problems = ProblemCollector()
    kinds: list[str] = []
    paths: list[str] = []
    for module in listed if isinstance(listed, list) else [None]:
        fields = module if isinstance(module, dict) else {}
        kinds.append(str(fields.get("type")).rpartition(".")[2])
        paths.append(str(fields.get("path")))
    dense = kinds.count("Dense")
    expected = ["Transformer", "Pooling", *["Dense"] * dense, "Normalize"]
    if kinds not in (expected, expected[:-1]) or paths[0] or dense > len(DENSE):
        raise UnsupportedError(
            f"{folder / _MODULES}: {', '.join(kinds)}: read are Transformer in the folder itself, "
            f"Pooling, at most {len(DENSE)} Dense, Normalize."
        )
    configs = {
        path: problems.attempt(
            partial(lambda name: read_json_object(contained(folder, name)), f"{path}/{_CONFIG}")
        )
        for path in paths[1 : 2 + dense]
    }
    problems.refuse()
    pooling = configs[paths[1]].value
    modes = {key for key, value in pooling.items() if key.startswith("pooling_mode") and value}
    if modes != {"pooling_mode_mean_tokens"} and pooling.get("pooling_mode") != "mean":
        problems.append(
            UnsupportedError(f"{paths[1]}: pooling by {sorted(modes)}: only the mean is computed.")
        )
    if pooling.get("include_prompt") is False:
        problems.append(
            UnsupportedError(f"{paths[1]}: include_prompt false: the mean is of all tokens.")
        )
    sizes: dict[str, list[Any]] = {}
    for weight, path in zip(DENSE, paths[2 : 2 + dense], strict=False):
        config = configs[path].value
        activation = str(config.get("activation_function"))
        if config.get("bias") is not False or not activation.endswith(".Identity"):
            problems.append(
                UnsupportedError(
                    f"{path}: bias {config.get('bias')}, activation {activation}: read are Dense "
                    "modules without either."
                )
            )
        problems.attempt(partial(contained, folder, f"{path}/{_WEIGHTS}"))
        sizes[weight.removesuffix(".weight")] = [
            config.get(f"{end}_features") for end in ("in", "out")
        ]
    problems.refuse()
    files = dict(zip(sizes, (f"{path}/{_WEIGHTS}" for path in paths[2 : 2 + dense]), strict=True))
    names = [each for each in SENTENCE_FILES[:3] if (folder / each).exists()]
    names += [f"{path}/{_CONFIG}" for path in configs]
    modules = SentenceModules(folder, [*names, *files.values()], files, sizes)
    return {**raw, DENSE_MODULES: sizes}, modules
