"""The tokenizer that comes with a model, as files to pass on and as an object to use."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CheckpointError
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.models.chat import LONGEST_TEMPLATE, SpecialTokens, special_tokens

# Where processors of multimodal models save the template, the first that has one.
TEMPLATE_FILES = ("chat_template.json", "processor_config.json", "preprocessor_config.json")
NAMED_TEMPLATES = "additional_chat_templates"
MAX_NAMED_TEMPLATES = 32
MAX_TOKENIZER_BYTES = 500_000_000

_log = logging.getLogger(__name__)

_DEFAULT = "default"
_REQUIRED = "tokenizer.json"
_OPTIONAL = (
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


class TokenizerSource(Protocol):
    """A tokenizer as files to write into an artifact, and as an object to use."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """File name → content; tokenizer.json is always there."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation or padding."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the (default) chat template, if there is one."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids of tokens that end a text, by the tokenizer's own files."""

    @property
    def suppressed_tokens(self) -> frozenset[int]:
        """Ids of tokens that an answer never holds."""

    def special_tokens(self, config: Mapping[str, Any]) -> SpecialTokens:
        """Special tokens as variables of a chat template; config: the model's, for their ids."""


def token_ids(value: object) -> frozenset[int]:
    """Ids of an ``eos_token_id`` or the like, which is one, several or none."""
    listed = value if isinstance(value, list) else [value]
    return frozenset(index for index in listed if type(index) is int and index >= 0)


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer by name, as bytes; ``where`` names their origin in errors."""

    where: str
    files: Mapping[str, bytes]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation or padding. Raises CheckpointError if damaged."""
        try:
            with _silent_panics():
                tokenizer = Tokenizer.from_str(self.files[_REQUIRED].decode())
        except BaseException as error:  # the library raises a bare Exception, or a Rust panic
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(
                f"{self.where}: {_REQUIRED} cannot be read: {str(error)[:200]}."
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source of the (default) chat template, if there is one."""
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode(errors="replace")
        return _named(self._config.get("chat_template")).get(_DEFAULT)

    @property
    def added_tokens(self) -> Mapping[str, Any]:
        """Added tokens of tokenizer.json: content by id."""
        listed = self._json(_REQUIRED).get("added_tokens")
        tokens = listed if isinstance(listed, list) else []
        return {str(t.get("id")): t.get("content") for t in tokens if isinstance(t, dict)}

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a text by generation_config.json and by the tokenizer's eos_token."""
        ends = token_ids(self._json("generation_config.json").get("eos_token_id"))
        eos = self._config.get("eos_token") or self._json("special_tokens_map.json").get(
            "eos_token"
        )
        text = eos.get("content") if isinstance(eos, dict) else eos
        text = text.encode(errors="replace").decode() if isinstance(text, str) else ""
        index = self.tokenizer.token_to_id(text)
        return ends if index is None else ends | {index}

    @property
    def suppressed_tokens(self) -> frozenset[int]:
        """``suppress_tokens`` of generation_config.json."""
        return token_ids(self._json("generation_config.json").get("suppress_tokens"))

    def special_tokens(self, config: Mapping[str, Any]) -> SpecialTokens:
        """Special tokens as variables of a chat template; config: the model's, for their ids."""
        return special_tokens(
            self._config,
            self._json("special_tokens_map.json"),
            {**self._json("generation_config.json"), **config},
            self.tokenizer.id_to_token,
        )

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self._json("tokenizer_config.json")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.files.get(name, b"{}").decode())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.where}: {name}: not JSON: {str(error)[:200]}.") from None
        return content if isinstance(content, dict) else {}


@contextmanager
def _silent_panics() -> Iterator[None]:
    """Keep Rust from printing a stack before its panic becomes an exception."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer files. Raises CheckpointError where tokenizer.json is missing."""
    if not (folder / _REQUIRED).exists():
        raise CheckpointError(
            f"{folder}: {_REQUIRED} is missing.",
            hint="Copy it from the model's page, or write it with transformers' "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    files = {}
    for name in (_REQUIRED, *_OPTIONAL):
        if (folder / name).exists():
            file = UntrustedFile(contained(folder, name), MAX_TOKENIZER_BYTES, CheckpointError)
            files[name] = file.bytes()
    return TokenizerFiles(str(folder), _with_other_templates(folder, files))


def adapted_tokenizer(folder: Path, base: TokenizerSource) -> TokenizerSource:
    """Return an adapter's own tokenizer where it has one with other added tokens than the base's.

    Where generation ends is the base's still: adapters have no generation_config.json.
    """
    if not (folder / _REQUIRED).exists():
        return base
    own = read_tokenizer_files(folder)
    if own.added_tokens == TokenizerFiles(str(folder), base.files).added_tokens:
        return base
    _log.warning("%s: the adapter's own tokenizer is used: its added tokens differ.", folder)
    kept = {n: content for n, content in base.files.items() if n == "generation_config.json"}
    return TokenizerFiles(own.where, {**kept, **own.files})


def _with_other_templates(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Add the templates that are stored elsewhere, as tokenizer_config.json may hold them."""
    named: dict[str, str] = {}
    config = TokenizerFiles(str(folder), files)._json("tokenizer_config.json")  # noqa: SLF001
    if "chat_template.jinja" not in files and not config.get("chat_template"):
        for name in TEMPLATE_FILES:
            if (folder / name).exists():
                named = _named(read_json_object(contained(folder, name)).get("chat_template"))
            if named:
                break
        if set(named) == {_DEFAULT}:
            return with_chat_template(files, named[_DEFAULT])
    extra = sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))[:MAX_NAMED_TEMPLATES]
    for path in extra:
        inside = contained(folder, f"{NAMED_TEMPLATES}/{path.name}")
        file = UntrustedFile(inside, LONGEST_TEMPLATE, CheckpointError)
        named[path.stem] = file.bytes().decode(errors="replace")
    if not named:
        return files
    own = files.pop("chat_template.jinja", None)
    default = {} if own is None else {_DEFAULT: own.decode(errors="replace")}
    named = {**_named(config.get("chat_template")), **named, **default}
    config["chat_template"] = [{"name": n, "template": text} for n, text in named.items()]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {**files, "tokenizer_config.json": text.encode()}


def _named(templates: object) -> dict[str, str]:
    """Templates by name: of one text, an object, or a list of objects."""
    if isinstance(templates, str):
        return {_DEFAULT: templates}
    if isinstance(templates, list):
        pairs = [(t.get("name"), t.get("template")) for t in templates if isinstance(t, dict)]
    else:
        pairs = list(templates.items()) if isinstance(templates, dict) else []
    return {n: text for n, text in pairs if isinstance(n, str) and isinstance(text, str)}


def with_chat_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Replace the chat template in both places that consumers read.

    transformers 5 reads chat_template.jinja, older readers tokenizer_config.json.
    """
    config = json.loads(files.get("tokenizer_config.json", b"{}").decode())
    config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {
        **files,
        "tokenizer_config.json": text.encode(),
        "chat_template.jinja": template.encode(),
    }
