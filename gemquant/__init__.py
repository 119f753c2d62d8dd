"""gemquant: one Gemma checkpoint in, measured artifacts for every device out.

``import gemquant`` is quick; each name below is imported when it is used. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemquant.convert.api import evaluate, load, plan, quantize, run
    from gemquant.core.artifact import Artifact
    from gemquant.errors import GemquantError
    from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
    from gemquant.publish.api import card, push, verify

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Checkpoint",
    "GemquantError",
    "card",
    "evaluate",
    "load",
    "open_checkpoint",
    "plan",
    "push",
    "quantize",
    "run",
    "verify",
]

_HOMES = {
    "Artifact": "gemquant.core.artifact",
    "Checkpoint": "gemquant.formats.checkpoint",
    "GemquantError": "gemquant.errors",
    "open_checkpoint": "gemquant.formats.checkpoint",
    **dict.fromkeys(("card", "push", "verify"), "gemquant.publish.api"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gemquant' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "gemquant.convert.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
