"""Folders from the Hugging Face Hub, or from its cache without a network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download

from gemquant.errors import CheckpointError, GemquantError, UsageError
from gemquant.formats.checkpoint.files import PROCESSOR_FILES
from gemquant.formats.checkpoint.sentence import SENTENCE_FILES

MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    *PROCESSOR_FILES,
    *SENTENCE_FILES,
    "additional_chat_templates/*.jinja",
    "README.md",
)
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)
NESTED = (
    *("?/*", "??/*", "[!a0-9]*/*", "[0-9][!_]*/*"),
    *("a[!d]*/*", "ad[!d]*/*", "add[!i]*/*", "*/*/*"),
)
"""Files in folders below the top: exports for other runtimes; not additional_chat_templates, nor
the modules of sentence-transformers, 1_Pooling and so on."""


def download(
    repository: str, revision: str | None, *, files: tuple[str, ...], nested: bool = False
) -> Path:
    """Return the folder of a snapshot, named by its commit; download what the cache lacks.

    Only the listed files are fetched. nested: also those below the top of the repository. Raises
    CheckpointError with the next step: accept the terms, log in, correct the name, go online.
    """
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=None if nested else list(NESTED),
        )
    except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError, OSError, ValueError) as error:
        raise hub_problem(error, repository, revision) from error
    return Path(folder)


def hub_problem(error: Exception, repository: str, revision: str | None) -> GemquantError:
    """Translate an error of huggingface_hub into one with a next step."""
    page = f"https://huggingface.co/{repository}"
    if isinstance(error, hub_errors.GatedRepoError):
        return CheckpointError(
            f"{repository} is gated, and this account may not read it yet.",
            hint=f"Accept the terms on {page} , then log in: hf auth login",
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return CheckpointError(
            f"{repository} has no revision {revision!r}.", hint=f"See {page}/tree/main"
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{repository} is neither a local folder nor a visible model on the Hub.",
            hint="Check the spelling; if it is private, log in: hf auth login",
        )
    if isinstance(error, hub_errors.HFValidationError):
        return UsageError(f"{repository}: {error}")
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        return CheckpointError(
            f"{repository} is neither a local folder nor in the Hub cache, and the Hub cannot be "
            "reached.",
            hint=f"Go online once: hf download {repository}"
            + (f" --revision {revision}" if revision else ""),
        )
    return CheckpointError(
        f"{repository}: the download failed: {str(error)[:300]}",
        hint="Run the command again; it continues where it stopped.",
    )
