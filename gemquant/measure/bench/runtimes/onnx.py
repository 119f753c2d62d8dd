"""onnxruntime-genai, on the folders that its own model builder made."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gemquant.errors import ArtifactError
from gemquant.formats.checkpoint.bounded_json import read_json_object
from gemquant.measure.bench.engine import Load, Mode, Timing

CONFIG_FILE = "genai_config.json"
PACKAGES = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda"}


@dataclass(frozen=True)
class OnnxGenai:
    """The runtime."""

    name: str = "onnxruntime-genai"
    packages: Sequence[str] = (
        "onnxruntime-genai",
        "onnxruntime",
        "onnxruntime-genai-cuda",
        "onnxruntime-gpu",
    )

    def unavailable(self, container: str, device: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        del container  # there is one
        package = PACKAGES.get(device.partition(":")[0])
        if package is None:
            return f"onnxruntime-genai runs on {', '.join(PACKAGES)}, not on {device}"
        # The build for CUDA runs on processors too.
        if any(_version(each) for each in (package, PACKAGES["cuda"])):
            return None
        install = "'gemquant[onnx]'" if package == PACKAGES["cpu"] else package
        return f"{package} not installed; pip install {install}"

    def modes(self, folder: Path, device: str) -> Sequence[Mode]:
        """One: as the folder's own configuration says, on the device that it was made for."""
        made_for, asked = _made_for(folder), device.partition(":")[0]
        if made_for != asked:
            return [Mode("default", f"made for {made_for}, not for {asked}")]
        return [Mode("default")]

    def prepare(self) -> None:
        """Import onnxruntime-genai."""
        import onnxruntime_genai  # noqa: F401

    def load(self, asked: Load) -> LoadedOnnx:
        """Load a folder; ArtifactError where onnxruntime-genai refuses it."""
        import onnxruntime_genai

        threads = {"intra_op_num_threads": asked.threads}
        try:
            config = onnxruntime_genai.Config(str(asked.path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
            model = onnxruntime_genai.Model(config)
        except Exception as error:
            # It raises a plain RuntimeError, or a class of onnxruntime's own, for anything.
            raise ArtifactError(f"onnxruntime-genai refuses {asked.path}: {error}") from error
        found = [f"{name} {version}" for name in self.packages if (version := _version(name))]
        return LoadedOnnx(f"{', '.join(found)}; on {model.device_type}", model)


@dataclass(frozen=True)
class LoadedOnnx:
    """A model of onnxruntime-genai."""

    software: str
    model: Any

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Forget what was before, and continue a prompt by exactly so many tokens, greedily."""
        import onnxruntime_genai

        started = time.perf_counter()
        length = len(prompt) + new_tokens
        options = onnxruntime_genai.GeneratorParams(self.model)
        # As many as asked for, wherever the text would end.
        options.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(self.model, options)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        prefilled = time.perf_counter()
        tokens: list[int] = []
        first = 0.0
        while len(tokens) < new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            first = first or time.perf_counter() - started
        return Timing(tokens, prefilled - started, first, time.perf_counter() - started)

    def peak_device_bytes(self) -> int | None:
        """onnxruntime does not tell."""
        return None


def _made_for(folder: Path) -> str:
    """``cpu`` or ``cuda``, by the providers that the folder's configuration names."""
    config = read_json_object(folder / CONFIG_FILE)
    try:
        providers = config["model"]["decoder"]["session_options"].get("provider_options", [])
        return "cuda" if any("cuda" in provider for provider in providers) else "cpu"
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE} is not as the builder writes it.") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


RUNTIME = OnnxGenai()
