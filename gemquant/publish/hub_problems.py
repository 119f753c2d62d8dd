"""What the Hub refused, as an error with a next step. No token and no signed address is shown."""

from __future__ import annotations

import re

from huggingface_hub import errors as hub_errors
from huggingface_hub import get_token

from gemquant.errors import ArtifactError, GemquantError, OutputError

FAILURES = (hub_errors.HTTPError, OSError, ValueError, RuntimeError)
"""What huggingface_hub raises: its own errors are of these kinds, those of its client too."""

TOKENS = "https://huggingface.co/settings/tokens"
_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_SHOWN = 300


def hub_problem(error: Exception, repository: str, *, endpoint: str) -> GemquantError:
    """Translate an error of an upload."""
    cause = _cause(error)
    if isinstance(cause, hub_errors.LocalTokenNotFoundError):
        return OutputError(
            "Nobody is logged in to the Hub here.",
            hint=f"hf auth login, or HF_TOKEN in the environment; a token that may write: {TOKENS}",
        )
    if isinstance(cause, hub_errors.OfflineModeIsEnabled):
        return OutputError(
            "HF_HUB_OFFLINE forbids any connection to the Hub.",
            hint="Unset it, or look at what would be sent with --dry-run.",
        )
    if isinstance(cause, hub_errors.HfHubHTTPError):
        return _refused(cause, repository)
    if isinstance(cause, hub_errors.HTTPError | ConnectionError | TimeoutError):
        return OutputError(
            f"{endpoint} cannot be reached, or broke off: {_shown(cause)}",
            hint="Run the command again when the network is there; it sends only what is missing.",
        )
    if isinstance(cause, ValueError) and "README.md" in str(cause):
        return ArtifactError(f"The Hub does not accept the card: {_shown(cause)}")
    return OutputError(
        f"{repository}: the upload failed: {_shown(cause)}",
        hint="Run the command again; it sends only what is missing.",
    )


def _refused(error: hub_errors.HfHubHTTPError, repository: str) -> GemquantError:
    status = error.response.status_code
    known = {
        401: (
            "The Hub does not accept the token.",
            f"hf auth login --force, with a token that may write: {TOKENS} . HF_TOKEN goes first.",
        ),
        403: (
            f"The token may not write to {repository}.",
            f"Use one with write access to {repository.partition('/')[0]}: {TOKENS}",
        ),
        404: (f"{repository} is not there, or not for this token.", "Check OWNER/NAME."),
        409: (f"{repository} is being changed by somebody else.", "Run the command again."),
        412: (f"{repository} was changed during the push.", "Run the command again."),
        413: (f"{repository}: the Hub finds it too large: {_shown(error)}", None),
        429: ("The Hub asks to slow down.", "Run the command again in some minutes."),
    }
    if status in known:
        message, hint = known[status]
        return OutputError(f"{message} (HTTP {status})", hint=hint)
    return OutputError(
        f"{repository}: the Hub answered HTTP {status}: {_shown(error)}",
        hint="Run the command again; it sends only what is missing.",
    )


def _cause(error: Exception) -> Exception:
    """What lies beneath: the library wraps failed uploads."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _shown(error: Exception) -> str:
    """The message without tokens, and without the queries that sign an address."""
    text = _QUERY.sub(r"\1", " ".join(str(error).split())) or type(error).__name__
    token = get_token()
    if token:
        text = text.replace(token, "…")
    return _TOKEN.sub("hf_…", text)[:_SHOWN]
