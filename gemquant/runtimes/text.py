"""How a model reads and writes text: tokenizer, BOS, end tokens and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokenizers import Tokenizer

from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.tokenizer_files import (
    TokenizerSource,
    read_tokenizer_files,
    token_ids,
)
from gemquant.formats.gguf.config import gguf_config
from gemquant.formats.gguf.find import open_gguf
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.models.architecture import gguf_architectures, library_classes, model_types
from gemquant.models.chat import GEMMA_TOKENS, ChatTemplate, Message, SpecialTokens, render
from gemquant.models.chat_templates import ChatFormat
from gemquant.models.structure import Architecture
from gemquant.runtimes.llamacpp import gguf_file

if TYPE_CHECKING:
    from gemquant.formats.checkpoint import Checkpoint

GGUF_TEMPLATE = "tokenizer.chat_template"
GENAI_CONFIG = "genai_config.json"


@dataclass(frozen=True)
class TextInterface:
    """A model's text side.

    bos: id. end_tokens: ids that end an answer. template: Jinja source of the chat template.
    max_tokens: longest window that the model was trained for. special_tokens: the template's
    variables. suppressed: ids that no answer holds. thought: ids that begin and end thoughts.
    """

    tokenizer: Tokenizer
    bos: int
    end_tokens: frozenset[int]
    template: str | None
    max_tokens: int
    special_tokens: SpecialTokens = field(default_factory=lambda: GEMMA_TOKENS)
    suppressed: frozenset[int] = frozenset()
    thought: tuple[int | None, ...] = ()

    @classmethod
    def of_artifact(cls, path: Path, container: str) -> Self:
        """Read an artifact's own files."""
        if container == "gguf":
            file = gguf_file(path)
            metadata = open_gguf(file).metadata
            eos = {"eos_token_id": metadata.get("tokenizer.ggml.eos_token_id")}
            config = {**config_of_gguf(metadata), **eos}
            return cls._of(GgufTokenizer(metadata, str(file)), config)
        raw = read_json_object(path / "config.json")
        return cls._of(read_tokenizer_files(path), raw.get("text_config", raw))

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read an original's."""
        return cls._of(checkpoint.tokenizer_source, checkpoint.config)

    @classmethod
    def _of(cls, source: TokenizerSource, config: Mapping[str, Any]) -> Self:
        for name in ("max_position_embeddings", "bos_token_id"):
            if not isinstance(config.get(name), int):
                raise ArtifactError(f"the model's configuration has no {name}.")
        ends = {*token_ids(config.get("eos_token_id")), *source.end_tokens}
        architecture = model_types().get(config.get("model_type", ""))
        chat = ChatFormat() if architecture is None else architecture.chat
        if architecture is not None:
            turn = source.tokenizer.token_to_id(chat.end)
            ends |= set() if turn is None else {turn}
        ends |= _end_of_turn(source, config)
        return cls(
            source.tokenizer,
            config["bos_token_id"],
            frozenset(ends),
            source.chat_template,
            config["max_position_embeddings"],
            source.special_tokens(config),
            source.suppressed_tokens,
            tuple(map(source.tokenizer.token_to_id, chat.thought)),
        )

    def encode(self, text: str) -> list[int]:
        """Return token ids, without a BOS unless the text contains it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def without_thoughts(self, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[int]:
        """Yield the tokens that follow a prompt, but what the model thinks before it answers."""
        begin = self.thought[:1]
        marks = (token for token in reversed(prompt) if token in self.thought)
        thinking = next(marks, None) in begin
        for token in tokens:
            if token in self.thought:
                thinking = token in begin
            elif not thinking:
                yield token

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Return a conversation as text in the chat template, which writes the BOS."""
        if self.template is None:
            raise ValueError("a model without a chat template")
        template = ChatTemplate(self.template, self.special_tokens)
        return render(template, messages, add_generation_prompt=add_generation_prompt)


_ANSWER = "gemquant answers"


def _end_of_turn(source: TokenizerSource, config: Mapping[str, Any]) -> set[int]:
    """Id of the special token that the chat template writes after an answer, if it does."""
    if source.chat_template is None:
        return set()
    template = ChatTemplate(source.chat_template, source.special_tokens(config))
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, found, rest = render(template, messages).rpartition(_ANSWER)
    except GemquantError:
        return set()  # a broken template is reported where it is used
    added = source.tokenizer.get_added_tokens_decoder() if found else {}
    return {
        index
        for index, token in added.items()
        if token.special and rest.lstrip().startswith(token.content)
    }


def read_tokenizer(path: Path, container: str) -> tuple[Tokenizer, int]:
    """Return the tokenizer of a folder or GGUF, and the id of BOS; ArtifactError without them."""
    if container == "gguf":
        file = gguf_file(path)
        metadata = open_gguf(file).metadata
        tokenizer = GgufTokenizer(metadata, str(file)).tokenizer
        return tokenizer, int(metadata["tokenizer.ggml.bos_token_id"])
    file = path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise ArtifactError(f"{file} cannot be read: {error}") from error
    if (path / GENAI_CONFIG).is_file():
        config = read_json_object(path / GENAI_CONFIG).get("model")
    else:
        config = read_json_object(path / "config.json")
        config = config.get("text_config", config)
    bos = config.get("bos_token_id") if isinstance(config, dict) else None
    if type(bos) is not int:
        raise ArtifactError(f"{path}: its configuration has no bos_token_id.")
    return tokenizer, bos


def require_text(name: str, path: Path, container: str) -> None:
    """UnsupportedError for an embedding model, which continues no text. path: folder or GGUF."""
    if container == "gguf":
        require_text_gguf(name, open_gguf(gguf_file(path)).metadata)
    elif (path / "config.json").is_file():
        classes = read_json_object(path / "config.json").get("architectures")
        known = library_classes()
        for each in classes if isinstance(classes, list) else ():
            _require_head(name, known.get(each) if isinstance(each, str) else None)


def require_text_gguf(name: str, metadata: Mapping[str, Any]) -> None:
    """The same for a GGUF's metadata."""
    _require_head(name, gguf_architectures().get(metadata.get("general.architecture", "")))


def _require_head(name: str, architecture: Architecture | None) -> None:
    if architecture is not None and architecture.embeds:
        raise UnsupportedError(
            f"{name} is an {architecture.name}, an embedding model: it continues no text.",
            hint="gemquant eval measures its artifacts; their README.md says how to use them.",
        )


def config_of_gguf(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text model's configuration, from a GGUF's metadata."""
    vocabulary = len(metadata.get("tokenizer.ggml.tokens", ()))
    return gguf_config(metadata, vocab_size=vocabulary, tied=True)
