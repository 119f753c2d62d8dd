"""JSON files that come with a model, read without trusting them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemquant.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000


def duplicate_keys_refused(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, as ``object_pairs_hook``; a key given twice is an error that names it."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CheckpointError(f"{key!r} is given twice.")
        result[key] = value
    return result


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most 100 MB; raise CheckpointError for any other."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: {size} bytes; at most {MAX_JSON_BYTES} are read.")
    try:
        content = json.loads(path.read_bytes().decode(), object_pairs_hook=duplicate_keys_refused)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {str(error)[:200]}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object.")
    return content
