"""A tiny plain folder in transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemquant.convert.plugins import exporter
from gemquant.core.artifact import Artifact, seal, staged
from gemquant.errors import UnsupportedError, UsageError
from gemquant.formats.mlx import MLX
from gemquant.models.chat import render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes.chat.engine import ContextFullError, Message
from gemquant.runtimes.chat.opening import Opened, Wanted, open_engine
from gemquant.runtimes.chat.sampling import Sampling
from tests.helpers.tiny_artifact import (
    tiny_header,
    tiny_manifest,
    write_tiny_artifact,
    write_tiny_weights,
)
from tests.helpers.tiny_gemma import tiny_tokenizer, write_tiny_tokenizer

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def artifact(path: Path, container: str) -> Artifact:
    """A finished folder with a tokenizer."""
    header = tiny_header(exporter(container))
    with staged(path, force=False, needed_bytes=0) as folder:
        write_tiny_weights(folder, exporter(container), header)
        write_tiny_tokenizer(folder)
        seal(folder, tiny_manifest(header, container))
    return Artifact.open(path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = artifact(tmp_path_factory.mktemp("a") / "artifact", "compressed-tensors").path
    wanted = Wanted(
        str(folder), "exact", 1, chat_template="system-in-user", context=256, device="cpu"
    )
    made = open_engine(wanted, HELLO)
    yield made
    made.engine.close()


def test_an_answer_comes_in_pieces(opened: Opened):
    sampling = Sampling(seed=1, max_tokens=6)
    pieces = list(opened.engine.answer(HELLO, sampling, threading.Event()))
    assert pieces
    assert list(opened.engine.answer(HELLO, sampling, threading.Event())) == pieces


def test_the_likeliest_answer_is_that_of_the_model_alone(opened: Opened):
    text = render(VARIANTS["system-in-user"], HELLO, add_generation_prompt=True)
    ids = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    assert ids.count(2) == 1
    runner = opened.engine._runner  # type: ignore[attr-defined]
    alone = runner.generate(ids, max_new_tokens=6)
    greedy = Sampling(temperature=0, max_tokens=6)
    said = "".join(opened.engine.answer(HELLO, greedy, threading.Event()))
    assert said == tiny_tokenizer().decode(alone, skip_special_tokens=True)


def test_a_stop_ends_the_answer_soon(opened: Opened):
    stop = threading.Event()
    pieces = opened.engine.answer(HELLO, Sampling(seed=1, max_tokens=200), stop)
    next(pieces)
    stop.set()
    assert len(list(pieces)) < 150


def test_a_conversation_that_does_not_fit_is_said_not_to(opened: Opened):
    long: list[Message] = [{"role": "user", "content": "Hello " * 300}]
    with pytest.raises(ContextFullError, match="leave no room for an answer in a context of 256"):
        opened.engine.answer(long, Sampling(), threading.Event())


def test_the_description_names_the_runtime_and_its_type(opened: Opened):
    assert opened.engine.description.startswith("transformers ")
    assert "float32 on cpu" in opened.engine.description
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_here_is_named(opened: Opened, device: str):
    folder = str(opened.engine._runner.model.name_or_path)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=f"--device {device}: not on this machine"):
        open_engine(Wanted(folder, "auto", 1, device=device), HELLO)


@pytest.mark.parametrize("preset", ["speed", "memory"])
def test_a_16_bit_preset_answers(opened: Opened, preset: str):
    folder = str(opened.engine._runner.model.name_or_path)  # type: ignore[attr-defined]
    other = open_engine(Wanted(folder, preset, 1, device="cpu"), HELLO).engine
    assert "bfloat16 on cpu" in other.description
    assert list(other.answer(HELLO, Sampling(seed=1, max_tokens=4), threading.Event()))
    other.close()


def test_an_mlx_artifact_names_the_program_that_runs_it(tmp_path: Path):
    folder = write_tiny_artifact(tmp_path / "a", MLX()).path
    with pytest.raises(UnsupportedError) as refusal:
        open_engine(Wanted(str(folder), "auto", 1), HELLO)
    assert refusal.value.hint == f"On a Mac: mlx_lm.chat --model {folder}"


def test_a_folder_that_is_no_artifact_names_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"holds no GGUF, and is no artifact"):
        open_engine(Wanted(str(tmp_path), "auto", 1), HELLO)
