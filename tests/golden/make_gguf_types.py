"""Makes ``gguf_types.json``: the type that llama.cpp gives to every tensor of a Gemma.

``llama_model_quantize`` runs for real, on files with the layers, columns, heads and metadata of the
published Gemmas. Types depend on nothing else, so that two rows of zeros per tensor will do.
Nothing of gemquant runs here. Made with llama.cpp v0.5.0 out of npm's
@node-llama-cpp/linux-x64 3.22.1, and gguf 0.19.0, in a minute:

    npm install --prefix build/llama.cpp --ignore-scripts @node-llama-cpp/linux-x64@3.22.1
    python tests/golden/make_gguf_types.py

A run's tensors are written as layouts, ``{"26 Q4_K": "attn_q attn_k"}``: of these kinds, in
order of layers, the first 26 are Q4_K. Norms are left out: every one was F32 in every run.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from ci.bench.llama_quantize import LLAMA_CPP, PACKAGE, Llama, QuantizeOptions  # noqa: E402

OUTPUT = Path(__file__).with_name("gguf_types.json")

# Model type, layers, hidden, intermediate, heads, key-value heads, head_dim, tied.
_KEYS = (
    "model_type num_hidden_layers hidden_size intermediate_size num_attention_heads "
    "num_key_value_heads head_dim tie_word_embeddings"
).split()
MODELS: dict[str, tuple[Any, ...]] = {
    "gemma-2b": ("gemma", 18, 2048, 16384, 8, 1, 256, True),
    "gemma-7b": ("gemma", 28, 3072, 24576, 16, 16, 256, True),
    "gemma-2-2b": ("gemma2", 26, 2304, 9216, 8, 4, 256, True),
    "gemma-2-9b": ("gemma2", 42, 3584, 14336, 16, 8, 256, True),
    "gemma-2-27b": ("gemma2", 46, 4608, 36864, 32, 16, 128, True),
    "gemma-3-270m": ("gemma3_text", 18, 640, 2048, 4, 1, 256, True),
    "gemma-3-1b": ("gemma3_text", 26, 1152, 6912, 4, 1, 256, True),
    "gemma-3-4b": ("gemma3_text", 34, 2560, 10240, 8, 4, 256, True),
    "gemma-3-12b": ("gemma3_text", 48, 3840, 15360, 16, 8, 256, True),
    "gemma-3-27b": ("gemma3_text", 62, 5376, 21504, 32, 16, 128, True),
    # None of these was published: rows that no block fits, few layers, a head of its own.
    "odd": ("gemma2", 9, 72, 96, 4, 1, 16, True),
    "short": ("gemma", 3, 256, 512, 8, 2, 32, True),
    "untied": ("gemma3_text", 17, 512, 768, 8, 1, 64, False),
    "untied-odd": ("gemma3_text", 8, 160, 512, 4, 2, 32, False),
}
FILE_TYPES = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S "
    "Q5_K_M Q6_K IQ4_NL IQ4_XS"
).split()
ASKED: dict[str, dict[str, Any]] = {
    "every attn_v": {"overrides": [["blk.*.attn_v", "Q6_K"]]},
    "first attn_v": {"overrides": [[r"blk\.[0-3]\.attn_v", "Q8_0"]]},
    "some ffn_down": {"overrides": [[r"blk\.(1|2|7)\.ffn_down", "Q5_0"]]},
    "two that overlap": {"overrides": [["attn", "Q5_K"], ["attn_q", "Q8_0"], ["ffn_up", "F16"]]},
    "to floats": {"overrides": [["ffn_gate", "BF16"], ["attn_k", "F32"]]},
    "non-linear": {"overrides": [["ffn_(up|gate)", "IQ4_XS"], ["attn_[qk]", "IQ4_NL"]]},
    "token_embd": {"overrides": [["token_embd", "Q4_1"]]},
    "token_embd in 256s": {"overrides": [["token_embd", "Q3_K"]]},
    "token_embd, output type": {"overrides": [["token_embd", "Q4_1"]], "output_type": "Q5_1"},
    "embedding": {"embedding_type": "Q4_0"},
    "embedding, token_embd": {"embedding_type": "Q5_0", "overrides": [["token_embd", "Q4_1"]]},
    "output": {"output_type": "Q8_0"},
    "output in 32s": {"output_type": "Q4_1"},
    "embedding, output": {"embedding_type": "F16", "output_type": "Q8_0"},
    "pure, output": {"pure": True, "output_type": "Q8_0"},
    "pure, embedding": {"pure": True, "embedding_type": "Q8_0"},
    "pure, attn_v": {"pure": True, "overrides": [["attn_v", "Q8_0"]]},
    "pure": {"pure": True},
}
ASKED_OF = ("gemma-2-2b", "gemma-3-270m", "gemma-3-1b", "short", "untied", "untied-odd")
ASKED_AS = ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "Q4_0", "Q8_0", "F16")
# What std::regex makes of them, on the model "gemma-2-2b".
PATTERNS = (
    "attn_v", "blk.*.attn_v", r"blk\.1\.", r"blk\.1.", r"blk\.\d\.", r"blk\.\d\d\.", r"\d{2}",
    r"blk\.1[0-5]\.", r"blk\.(3|5|17)\.ffn", r"blk\.(?:3|5|17)\.ffn", r"^blk", r"weight$",
    r"^attn", r"attn_[qk]\.", r"attn_[^qk]\.", r"attn_[q-v]\.", "ffn_(up|down)", "ffn_down|attn_q",
    r"attn_q?\.", r"5+", r"blk\.2{1,2}\.", r"blk\.2{2,}\.", r"blk\.2{2}\.", r"\w+\.25\.", r"\bq",
    r"\.(?!attn)[a-z_]+\.weight", r"[.]0[.]", r"[\d]\.ffn_gate", r"[a-]ttn_k", r"(blk).+?(gate)",
    r"token|output", r"\-", r"\s", r"[\w.]*up", r"blk\.[13579]\.", r"blk\.(1?[02468])\.attn_output",
    r".", r"()", r"blk\.\d+\.attn_(k|v)\.weight$", r"(?:)x", r"n|", r"gate.{7}$", r"gate.{8}$",
)  # fmt: skip
REFUSED_PATTERNS = (
    "attn_(v", "attn_v)", "*attn", "attn[", "[z-a]", "a{2,1}", "(?<=_)v", "(?p<n>a)", "(?i)a",
    "a{", "+", "(?", r"attn\\"[:-1],
)  # fmt: skip


def write_gguf(path: Path, model: Sequence[Any]) -> list[str]:
    """Write a file with two rows of zeros per tensor, and return the names of its tensors."""
    config = dict(zip(_KEYS, model, strict=True))
    generation = config["model_type"].removesuffix("_text")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    writer = gguf.GGUFWriter(path, generation)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(2)
    if generation != "gemma":
        writer.add_sliding_window(4096)
    heads = config["num_attention_heads"] * config["head_dim"]
    columns = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), hidden)
    columns |= {"attn_output": heads, "ffn_down": inner}
    norms = {"attn_norm": hidden, "ffn_norm": hidden}
    if generation != "gemma":
        norms |= {"post_attention_norm": hidden, "post_ffw_norm": hidden}
    if generation == "gemma3":
        norms |= {"attn_q_norm": config["head_dim"], "attn_k_norm": config["head_dim"]}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (2, hidden), "output_norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["output"] = (2, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{layer}.{name}": (width,) for name, width in norms.items()}
        shapes |= {f"blk.{layer}.{name}": (2, width) for name, width in columns.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [f"{name}.weight" for name in shapes]


def importance_of(path: Path) -> dict[str, np.ndarray]:
    """An entry for every linear, as llama-imatrix makes them."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: np.ones(t.shape[0], np.float32) for t in tensors if t.name[:4] == "blk."}


def layout_of(path: Path) -> tuple[int, dict[str, str]]:
    """The file type that a file claims, and its tensors' types, grouped by kind."""
    reader = gguf.GGUFReader(path)
    field = reader.get_field("general.file_type")
    assert field is not None
    kinds: dict[str, dict[int, str]] = {}
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            assert tensor.tensor_type.name == "F32", tensor.name
            continue
        parts = tensor.name.split(".")
        layer = int(parts[1]) if parts[0] == "blk" else 0
        kinds.setdefault(parts[-2], {})[layer] = tensor.tensor_type.name
    layout: dict[str, str] = {}
    for kind in sorted(kinds):
        types = [kinds[kind][layer] for layer in sorted(kinds[kind])]
        runs = " ".join(f"{len(list(same))} {name}" for name, same in itertools.groupby(types))
        layout[runs] = f"{layout[runs]} {kind}" if runs in layout else kind
    return int(field.contents()), layout


def wanted_runs() -> Iterator[tuple[str, str, bool, str]]:
    """Model, file type, with importance, and what else is asked for (a key of ASKED)."""
    for model, file_type, importance in itertools.product(MODELS, FILE_TYPES, (False, True)):
        yield model, file_type, importance, ""
    for model, file_type in itertools.product(MODELS, FILE_TYPES):
        yield model, file_type, True, "pure"
    for model, file_type, asked in itertools.product(ASKED_OF, ASKED_AS, ASKED):
        yield model, file_type, False, asked


def main() -> None:
    llama = Llama()
    layouts: dict[str, int] = {}
    runs: dict[str, int | None] = {}
    numbers: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.gguf")
        sources, matrices = {}, {}
        for name, model in MODELS.items():
            sources[name] = Path(folder, f"{name}.gguf")
            write_gguf(sources[name], model)
            matrices[name] = importance_of(sources[name])

        def layout(model: str, file_type: str, options: QuantizeOptions, weighted: bool) -> int:
            importance = matrices[model] if weighted else None
            llama.quantize(sources[model], target, file_type, options, importance)
            number, found = layout_of(target)
            numbers[file_type] = number
            return layouts.setdefault(json.dumps(found), len(layouts))

        for model, file_type, weighted, asked in wanted_runs():
            options = QuantizeOptions(**ASKED.get(asked, {}))
            key = f"{model}|{file_type}|{'importance' if weighted else ''}|{asked}"
            try:
                runs[key] = layout(model, file_type, options, weighted)
            except RuntimeError as error:
                if "requires an imatrix" not in str(error):
                    raise
                runs[key] = None
        patterns = {
            pattern: layout(
                "gemma-2-2b",
                "Q4_0",
                QuantizeOptions(pure=True, overrides=[(pattern, "F16")]),
                False,
            )
            for pattern in PATTERNS
        }
        for pattern in REFUSED_PATTERNS:
            options = QuantizeOptions(overrides=[(pattern, "F16")])
            try:
                layout("short", "Q4_0", options, False)
            except RuntimeError:
                continue
            raise SystemExit(f"llama.cpp accepts the pattern {pattern}")
    golden = {
        "made_with": {
            "llama.cpp": LLAMA_CPP,
            "npm": PACKAGE,
            "gguf": importlib.metadata.version("gguf"),
        },
        "file_types": numbers,
        "models": {name: dict(zip(_KEYS, model, strict=True)) for name, model in MODELS.items()},
        "asked": ASKED,
        "layouts": [json.loads(text) for text in layouts],
        "runs": runs,
        "patterns": patterns,
        "refused_patterns": REFUSED_PATTERNS,
    }
    lines = [
        f"{json.dumps(key)}: {_rows(value)}" if key in ("layouts", "runs") else
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in golden.items()
    ]  # fmt: skip
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    sys.stderr.write(f"{len(runs)} runs, {len(layouts)} layouts\n")


def _rows(value: Any) -> str:
    """JSON with one entry a line, so that a change can be read."""
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"


if __name__ == "__main__":
    main()
