"""A tiny plain folder in transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gemquant.convert.plugins import exporter
from gemquant.core.artifact import Artifact, finalize, staged
from gemquant.errors import UnsupportedError, UsageError
from gemquant.formats.mlx import MLX
from gemquant.models.chat import ChatTemplate, Message, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes.chat.load import ChatRequest, load_chat_model
from gemquant.runtimes.chat.session import ContextFullError, TransformersChat
from gemquant.runtimes.sampling import Sampling
from gemquant.runtimes.text import TextInterface
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_artifact import (
    tiny_header,
    tiny_manifest,
    write_tiny_artifact,
    write_tiny_weights,
)
from tests.helpers.tiny_gemma import tiny_tokenizer, write_tiny_tokenizer
from tests.helpers.tiny_sentencepiece import write_convertible_gemma

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def artifact(path: Path, container: str) -> Artifact:
    """A finished folder with a tokenizer."""
    header = tiny_header(exporter(container))
    with staged(path, force=False, needed_bytes=0) as folder:
        write_tiny_weights(folder, exporter(container), header)
        write_tiny_tokenizer(folder)
        finalize(folder, tiny_manifest(header, container))
    return Artifact.open(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersChat:
    folder = artifact(tmp_path_factory.mktemp("a") / "artifact", "compressed-tensors").path
    request = ChatRequest(
        str(folder), "exact", 1, chat_template="system-in-user", context=256, device="cpu"
    )
    loaded, _ = load_chat_model(request, HELLO)
    assert isinstance(loaded, TransformersChat)
    return loaded


def test_an_answer_comes_in_pieces(model: TransformersChat):
    sampling = Sampling(seed=1, max_tokens=6)
    pieces = list(model.answer(HELLO, sampling, threading.Event()))
    assert pieces
    assert list(model.answer(HELLO, sampling, threading.Event())) == pieces


def test_the_likeliest_answer_is_that_of_the_model_alone(model: TransformersChat):
    text = render(ChatTemplate(VARIANTS["system-in-user"]), HELLO, add_generation_prompt=True)
    ids = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    assert ids.count(2) == 1
    alone = model.runtime.generate(ids, max_new_tokens=6)
    greedy = Sampling(temperature=0, max_tokens=6)
    said = "".join(model.answer(HELLO, greedy, threading.Event()))
    assert said == tiny_tokenizer().decode(alone, skip_special_tokens=True)


def test_thoughts_are_not_shown_as_the_answer(tmp_path: Path):
    folder = write_convertible_gemma(tmp_path, "gemma4_text")
    text = TextInterface.of_artifact(folder, "safetensors")
    written = text.encode("<|channel>thought\nhello<channel|>the quick<turn|>")

    def sample(*_: object, put: Callable[[int], None], **__: object) -> None:
        for token in written:
            put(token)

    runtime = SimpleNamespace(software="none", sample=sample)
    model = TransformersChat(cast("Transformers", runtime), text, context=256, compiled=False)
    assert "".join(model.answer(HELLO, Sampling(), threading.Event())) == "the quick"


def test_an_answer_ends_and_is_chosen_as_the_models_generation_config_says(tmp_path: Path):
    folder = write_convertible_gemma(tmp_path, "gemma4_unified")

    def answered(**generation: object) -> list[int]:
        (folder / "generation_config.json").write_text(json.dumps(generation))
        text = TextInterface.of_artifact(folder, "safetensors")
        ids = text.encode(text.render(HELLO, add_generation_prompt=True))
        tokens: list[int] = []
        Transformers.load(folder, "safetensors").sample(
            ids,
            Sampling(temperature=0),
            end_tokens=sorted(text.end_tokens),
            limit=6,
            compiled=False,
            put=tokens.append,
            stop=threading.Event(),
        )
        return tokens

    usual = answered()
    assert len(usual) == 6
    other = answered(suppress_tokens=usual)
    assert len(other) == 6
    assert not set(other) & set(usual)
    third = next(token for token in other[2:] if token not in other[:2])
    ended = answered(suppress_tokens=usual, eos_token_id=[1, third])
    assert ended == other[: other.index(third) + 1]


def test_a_stop_ends_the_answer_soon(model: TransformersChat):
    stop = threading.Event()
    pieces = model.answer(HELLO, Sampling(seed=1, max_tokens=200), stop)
    next(pieces)
    stop.set()
    assert len(list(pieces)) < 150


def test_a_conversation_that_does_not_fit_is_said_not_to(model: TransformersChat):
    long: list[Message] = [{"role": "user", "content": "Hello " * 300}]
    with pytest.raises(ContextFullError, match="leave no room for an answer in a context of 256"):
        model.answer(long, Sampling(), threading.Event())


def test_the_description_names_the_runtime_and_its_type(model: TransformersChat):
    assert model.software.startswith("transformers ")
    assert "float32 on cpu" in model.software
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_here_is_named(model: TransformersChat, device: str):
    folder = str(model.runtime.model.name_or_path)
    with pytest.raises(UsageError, match=f"--device {device}: not on this machine"):
        load_chat_model(ChatRequest(folder, "auto", 1, device=device), HELLO)


@pytest.mark.parametrize("preset", ["speed", "memory"])
def test_a_16_bit_preset_answers(model: TransformersChat, preset: str):
    folder = str(model.runtime.model.name_or_path)
    other, _ = load_chat_model(ChatRequest(folder, preset, 1, device="cpu"), HELLO)
    assert "bfloat16 on cpu" in other.software
    assert list(other.answer(HELLO, Sampling(seed=1, max_tokens=4), threading.Event()))


def test_an_mlx_artifact_names_the_program_that_runs_it(tmp_path: Path):
    folder = write_tiny_artifact(tmp_path / "a", MLX()).path
    with pytest.raises(UnsupportedError) as refusal:
        load_chat_model(ChatRequest(str(folder), "auto", 1), HELLO)
    assert refusal.value.hint == f"On a Mac: mlx_lm.chat --model {folder}"


def test_a_folder_that_is_no_artifact_names_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"holds no GGUF, and is no artifact"):
        load_chat_model(ChatRequest(str(tmp_path), "auto", 1), HELLO)
