"""What ``bench`` and ``tasks`` run: an artifact, a plain checkpoint's folder, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
"""transformers' ``quant_method`` → container."""


@dataclass(frozen=True)
class Subject:
    """Something to run. name: as the user wrote it. path: a folder or a GGUF file."""

    name: str
    path: Path
    container: str

    @classmethod
    def open(cls, name: str) -> Self:
        """Recognize what a path holds; ArtifactError if no runtime loads it."""
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
        raise ArtifactError(f"{name}: contains no manifest.json, config.json or .gguf file.")

    @property
    def files(self) -> list[Path]:
        """Its files, except those that no runtime reads."""
        if self.path.is_file():
            return [self.path]
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file())
        return [file for file in files if file.name not in _LEFT_OUT]

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return sum(file.stat().st_size for file in self.files)


def _container_of(name: str, folder: Path) -> str:
    from gemquant.formats.checkpoint.files import read_json_object

    if (folder / "genai_config.json").is_file():
        return "onnx"
    config = read_json_object(folder / "config.json")
    quantization = config.get("quantization_config")
    if "quantization" in config:
        return "mlx"
    if not isinstance(quantization, dict):
        return PLAIN
    method = str(quantization.get("quant_method", "none"))
    if method not in _CONTAINERS:
        raise ArtifactError(
            f"{name}: quant_method {method}: must be one of {', '.join(_CONTAINERS)}."
        )
    return _CONTAINERS[method]
