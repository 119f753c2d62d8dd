"""The tokenizer that comes with a model, as files to pass on and as an object to use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CheckpointError
from gemquant.formats.checkpoint.files import contained
from gemquant.models.chat import SpecialTokens, special_tokens

MAX_TOKENIZER_BYTES = 500_000_000

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

    def special_tokens(self, config: Mapping[str, Any]) -> SpecialTokens:
        """Special tokens as variables of a chat template; config: the model's, for their ids."""


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer by name, as bytes; ``where`` names their origin in errors."""

    where: str
    files: Mapping[str, bytes]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation or padding. Raises CheckpointError if damaged."""
        try:
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
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None

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
    return TokenizerFiles(str(folder), files)


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
