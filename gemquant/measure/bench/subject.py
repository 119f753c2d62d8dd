"""What is benchmarked: an artifact, a plain checkpoint's folder, or a GGUF file."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemquant.errors import ArtifactError

PLAIN = "safetensors"
_SAMPLE = "sample:"
_LEFT_OUT = {"manifest.json", "README.md", "NOTICE"}
_CONTAINERS: Mapping[str, str] = {
    "awq": "awq-gemm",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "metal": "metal",
}
"""transformers' ``quant_method`` and the container that it says."""


@dataclass(frozen=True)
class Subject:
    """Something to run. name: as the user named it. path: a folder or a GGUF file."""

    name: str
    path: Path
    container: str

    @classmethod
    def open(cls, name: str) -> Self:
        """Tell what a path holds; ArtifactError where it is nothing that a runtime loads."""
        from gemquant.core.artifact import MANIFEST_FILE, read_manifest
        from gemquant.formats.checkpoint.sample import assembled, sample_named

        if name.startswith(_SAMPLE):
            return cls(name, assembled(sample_named(name.removeprefix(_SAMPLE))), "gguf")
        path = Path(name)
        if path.is_file() and path.suffix == ".gguf":
            return cls(name, path, "gguf")
        if path.is_file() and path.suffix == ".rkllm":
            return cls(name, path, "rkllm")
        if not path.is_dir():
            raise ArtifactError(
                f"{name}: neither a folder nor a GGUF file.",
                hint="Name an artifact, a checkpoint's folder, or a .gguf file.",
            )
        if (path / MANIFEST_FILE).is_file():
            return cls(name, path, read_manifest(path).container)
        if (path / "config.json").is_file() or (path / "genai_config.json").is_file():
            return cls(name, path, _container_of(name, path))
        if any(path.glob("*.gguf")):
            return cls(name, path, "gguf")
        raise ArtifactError(f"{name}: holds neither manifest.json, config.json nor a .gguf file.")

    @property
    def files(self) -> list[Path]:
        """Its files, but those that no runtime reads."""
        if self.path.is_file():
            return [self.path]
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file())
        return [file for file in files if file.name not in _LEFT_OUT]

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return sum(file.stat().st_size for file in self.files)

    def tokenizer(self) -> tuple[Any, int]:
        """Its tokenizer (of the package ``tokenizers``), and the id of BOS."""
        from gemquant.runtimes.llamacpp_model import gguf_file

        if self.container == "gguf":
            return _from_gguf(gguf_file(self.path))
        from tokenizers import Tokenizer

        from gemquant.formats.checkpoint.bounded_json import read_json_object

        file = self.path / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise ArtifactError(f"{file} cannot be read: {error}") from error
        if (genai := self.path / "genai_config.json").is_file():
            config = read_json_object(genai).get("model")
        else:
            config = read_json_object(self.path / "config.json")
            config = config.get("text_config", config)
        bos = config.get("bos_token_id") if isinstance(config, dict) else None
        if type(bos) is not int:
            raise ArtifactError(f"{self.name}: its configuration has no bos_token_id.")
        return tokenizer, bos


def _container_of(name: str, folder: Path) -> str:
    from gemquant.formats.checkpoint.bounded_json import read_json_object

    if (folder / "genai_config.json").is_file():
        return "onnx"
    config = read_json_object(folder / "config.json")
    described = config.get("quantization_config")
    if "quantization" in config:
        return "mlx"
    if not isinstance(described, dict):
        return PLAIN
    method = str(described.get("quant_method", "none"))
    if method not in _CONTAINERS:
        raise ArtifactError(
            f"{name}: quant_method {method} is none of {', '.join(_CONTAINERS)}.",
        )
    return _CONTAINERS[method]


def _from_gguf(path: Path) -> tuple[Any, int]:
    from gemquant.formats.gguf.header import read_gguf_header
    from gemquant.formats.gguf.tokenizer import GgufTokenizer

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        metadata = read_gguf_header(path, data).metadata
    made = GgufTokenizer(metadata, str(path))
    return made.tokenizer, int(metadata["tokenizer.ggml.bos_token_id"])
