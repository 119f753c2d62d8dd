"""The container ``onnx``: logits from onnxruntime, speed from onnxruntime-genai.

onnxruntime-genai's builder writes the folders. Its own loop is what users run, but it returns no
logits; plain onnxruntime runs the same graph and does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.tokenizer_files import token_ids
from gemquant.runtimes.runtime import (
    DEFAULTS,
    POSITIONS_AT_ONCE,
    Chunk,
    LoadOptions,
    LogitsRuntime,
    Mode,
    Requirement,
    SpeedRuntime,
    Timing,
    Window,
    cpu_place,
    installed_version,
    likeliest,
)

INSTALL = "pip install 'gemquant[onnx]'"
MODEL_FILE = "model.onnx"
CONFIG_FILE = "genai_config.json"
GENAI_PACKAGES: Mapping[str, str] = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda"}

Array = np.ndarray[Any, Any]


class OnnxRuntime(LogitsRuntime):
    """A graph loaded in onnxruntime, on the processor."""

    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[Sequence[str]] = ("onnxruntime", "onnxruntime-gpu")

    def __init__(self, path: Path, session: Any, threads: int) -> None:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))["model"]
        decoder = config["decoder"]
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self._session = session
        self._empty: Mapping[str, Array] = {
            each.name: np.zeros(shape, dtype=np.float32)
            for each in session.get_inputs()
            if each.name.startswith("past_key_values.")
        }
        self.end_tokens = token_ids(config["eos_token_id"])
        self.software = f"onnxruntime {_any_version(self.packages)}; {cpu_place(threads)}"

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return onnxruntime, in either of its builds."""
        del container, device
        unmet = None if _any_version(cls.packages) else f"onnxruntime not installed; {INSTALL}"
        return Requirement(install=INSTALL, unmet=unmet)

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder to compute on the processor, whatever the device.

        RuntimeMissingError also if the folder is made for a GPU.
        """
        cls.require(path, container, options.device)
        dtype = _dtype(path)
        if dtype != "float32":
            raise RuntimeMissingError(f"made for NVIDIA GPUs, in {dtype}: not executed here")
        import onnxruntime
        import torch

        threads = options.threads or torch.get_num_threads()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(path / MODEL_FILE), settings, providers=["CPUExecutionProvider"]
            )
            return cls(path, session, threads)
        except Exception as error:
            # onnxruntime raises a dozen classes of its own for what is wrong with a model.
            raise ArtifactError(f"onnxruntime refuses {path}: {error}") from error

    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield the wanted logits; keys and values are cached from one chunk to the next."""
        import torch

        for number, window in enumerate(windows):
            ids, cache = np.array(window.ids, dtype=np.int64), dict(self._empty)
            for start in range(0, len(ids), POSITIONS_AT_ONCE):
                piece = ids[start : start + POSITIONS_AT_ONCE]
                rows, cache = self._run(piece, cache, start=start)
                skipped = max(0, window.first - start)
                if skipped < len(piece):
                    yield Chunk(number, start + skipped, torch.from_numpy(rows[skipped:]))

    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the tokens that greedily follow a prompt."""
        ids, cache, start = np.array(prompt, dtype=np.int64), dict(self._empty), 0
        for _ in range(limit):
            rows, cache = self._run(ids, cache, start=start)
            start += len(ids)
            token = likeliest(rows[-1], suppressed)
            yield token
            ids = np.array([token], dtype=np.int64)

    def _run(
        self, ids: Array, cache: Mapping[str, Array], *, start: int
    ) -> tuple[Array, dict[str, Array]]:
        """Append tokens (n,) at ``start``; return their logits (n, vocabulary) and the cache."""
        mask = np.ones((1, start + len(ids)), dtype=np.int64)
        feed = {"input_ids": ids[None], "attention_mask": mask, **cache}
        names = [name.replace("past_key_values.", "present.") for name in cache]
        logits, *present = self._session.run(["logits", *names], feed)
        return logits[0], dict(zip(cache, present, strict=True))


class OnnxGenai(SpeedRuntime):
    """A folder loaded in onnxruntime-genai, on the device that it was made for."""

    name: ClassVar[str] = "onnxruntime-genai"
    packages: ClassVar[Sequence[str]] = (
        "onnxruntime-genai",
        "onnxruntime",
        "onnxruntime-genai-cuda",
        "onnxruntime-gpu",
    )
    modules: ClassVar[Sequence[str]] = ("onnxruntime_genai",)

    def __init__(self, model: Any) -> None:
        self._model = model
        versions = [f"{name} {v}" for name in self.packages if (v := installed_version(name))]
        self.software = f"{', '.join(versions)}; on {model.device_type}"

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return the build for the device; that for CUDA runs on processors too."""
        del container
        package = GENAI_PACKAGES.get(device.partition(":")[0])
        if package is None:
            places = ", ".join(GENAI_PACKAGES)
            return Requirement(unmet=f"onnxruntime-genai runs on {places}, not on {device}")
        install = INSTALL if device == "cpu" else f"pip install {package}"
        if installed_version(GENAI_PACKAGES["cuda"]) is not None:
            return Requirement(install=install)
        return Requirement((package,), install)

    @classmethod
    def modes(cls, path: Path, device: str) -> Sequence[Mode]:
        """Return the one that the folder's configuration describes, on its device only."""
        built_for, requested = _built_for(path), device.partition(":")[0]
        not_run = None if built_for == requested else f"made for {built_for}, not for {requested}"
        return [Mode("default", not_run)]

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder."""
        cls.require(path, container, options.device)
        import onnxruntime_genai

        session = {"intra_op_num_threads": options.threads} if options.threads else {}
        try:
            config = onnxruntime_genai.Config(str(path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            return cls(onnxruntime_genai.Model(config))
        except Exception as error:
            # It raises a plain RuntimeError, or a class of onnxruntime's own, for anything.
            raise ArtifactError(f"onnxruntime-genai refuses {path}: {error}") from error

    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens."""
        import onnxruntime_genai

        started = time.perf_counter()
        length = len(prompt) + new_tokens
        params = onnxruntime_genai.GeneratorParams(self._model)
        # As many as requested, wherever the text would end.
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        prefilled = time.perf_counter()
        tokens: list[int] = []
        first = 0.0
        while len(tokens) < new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            first = first or time.perf_counter() - started
        return Timing(tokens, prefilled - started, first, time.perf_counter() - started)


def _dtype(path: Path) -> str:
    """Type of everything that is not quantized, from config.json."""
    try:
        return str(json.loads((path / "config.json").read_text(encoding="utf-8"))["dtype"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path / 'config.json'} has no dtype: {error}") from None


def _built_for(path: Path) -> str:
    """``cpu`` or ``cuda``, from the providers in the folder's configuration."""
    config = read_json_object(path / CONFIG_FILE)
    try:
        providers = config["model"]["decoder"]["session_options"].get("provider_options", [])
        return "cuda" if any("cuda" in provider for provider in providers) else "cpu"
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path / CONFIG_FILE} is not as the builder writes it.") from error


def _any_version(packages: Sequence[str]) -> str | None:
    return next((v for package in packages if (v := installed_version(package))), None)
