"""The sample Gemma 3 270M as the folder of safetensors that it once was."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from gguf import TokenType
from safetensors.torch import save_file

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.checkpoint import Checkpoint
from gemquant.formats.gguf.source import GgufTensors

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def write_sample_folder(folder: Path) -> Path:
    """Write config, weights in bfloat16, tokenizer.json and a tokenizer.model; 540 MB.

    Call it gemma-3-270m, as on the Hub: names are worked out from the folder's.
    """
    checkpoint = open_checkpoint("sample:gemma-3-270m")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(checkpoint.config), encoding="utf-8")
    for name, content in {**checkpoint.tokenizer_files(), **tokenizer_model(checkpoint)}.items():
        (folder / name).write_bytes(content)
    tensors = {name: checkpoint.tensor(name, torch.bfloat16) for name in checkpoint.names()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tokenizer_model(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return a tokenizer.model of the sample's pieces and scores, and its tokenizer_config.json."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    assert isinstance(checkpoint.source, GgufTensors)
    metadata = checkpoint.source.metadata
    model = proto.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    model.trainer_spec.unk_piece = "<unk>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    added = {}
    for index, (token, score, kind) in enumerate(
        zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
    ):
        piece = token.replace(" ", "▁")
        stored = model.SentencePiece.Type.Name(_piece_type(index, kind))
        in_words = kind in (TokenType.NORMAL, TokenType.BYTE)
        model.pieces.add(piece=piece, score=score if in_words else 0.0, type=stored)
        if not in_words:
            added[str(index)] = {"content": piece, "special": piece in _SPECIAL}
    config = json.loads(checkpoint.tokenizer_files()["tokenizer_config.json"])
    config["added_tokens_decoder"] = added
    return {
        "tokenizer.model": model.SerializeToString(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _piece_type(index: int, kind: int) -> int:
    """SentencePiece's type, which has llama.cpp's numbers; only the first four are no words."""
    if index == 3:
        return int(TokenType.UNKNOWN)
    if kind == TokenType.CONTROL and index > 3:
        return int(TokenType.USER_DEFINED)
    return kind
