"""Multimodal MLX artifacts in mlx-vlm see and hear as their decoded weights do.

mlx-vlm loads the folder and its processors; its logits are compared with its own on the decoded
weights, and with those of transformers. It runs in a process of its own, for it changes what
transformers loads. ci/peers installs it; GEMQUANT_MLX_VLM_PYTHON names another interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.mlx import MLX
from gemquant.models.architecture import architecture_of
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import NESTED, Kind, stacked
from tests.helpers.tiny_multimodal import inputs_of
from tests.integration.test_towers_in_transformers import converted, expected

PYTHON = os.environ.get("GEMQUANT_MLX_VLM_PYTHON")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not PYTHON and find_spec("mlx_vlm") is None,
        reason="mlx-vlm is not installed, and GEMQUANT_MLX_VLM_PYTHON names no Python that has it",
    ),
]

PROMPTS: dict[Kind, str] = {
    "gemma3": "the <start_of_image> quick brown fox",
    "gemma4_e": "the <|image|> quick <|audio|> brown fox",
    "gemma4_moe": "the <|image|> quick brown fox",
    "gemma4_unified": "the <|image|> quick brown fox",
}
PROGRAM = """
import sys
import mlx.core as mx, numpy as np
from PIL import Image
mx.set_default_device(mx.cpu)
from mlx_vlm import load

def logits(model, inputs):
    inputs = {key: mx.array(np.array(value)) for key, value in inputs.items()}
    ids, pixels = inputs.pop("input_ids"), inputs.pop("pixel_values")
    mask = inputs.pop("attention_mask", mx.ones_like(ids))
    seen = model.get_input_embeddings(ids, pixels, mask=mask, **inputs)  # as its generate does
    parts = {"inputs_embeds": seen.inputs_embeds, "per_layer_inputs": seen.per_layer_inputs}
    kinds = {key: value for key, value in inputs.items() if key.endswith("token_type_ids")}
    out = model.language_model(ids, **{k: v for k, v in parts.items() if v is not None}, **kinds)
    return np.array(out.logits.astype(mx.float32))

prompt, given, out, *folders = sys.argv[1:]
results = {}
for name in folders:
    model, processor = load(name)
    processor = type(processor).from_pretrained(name)  # load gives unified ones patches of 48
    model.set_dtype(mx.float32)
    for shade in (120, 7):
        pixels = np.arange(40 * 48 * 3).reshape(40, 48, 3) * shade % 251
        parts = {"images": [Image.fromarray(pixels.astype(np.uint8))]}
        if "audio" in prompt:
            parts["audio"] = [np.sin(np.arange(8000) / 7).astype(np.float32)]
        inputs = processor(text=prompt, return_mm_token_type_ids=True, **parts)
        results[f"{name} {shade}"] = logits(model, inputs)
    results[f"{name} given"] = logits(model, dict(np.load(given)))
np.savez(out, **results)
"""


def decoded(kind: Kind, folder: Path) -> Path:
    """A folder for mlx-vlm with an artifact's decoded weights and the original's towers."""
    source = open_checkpoint(str(folder / "model"))
    weights, towers = MLX().open(folder / "out"), source.towers
    assert towers is not None
    tensors = {name: weights.tensor(name, torch.float32) for name in weights.names()}
    published = architecture_of(source.config).published_name
    text = {published(n): t.contiguous() for n, t in stacked(weights.config, tensors).items()}
    plain = shutil.copytree(folder / "out", folder / "plain")
    save_file({**text, **{n: towers.tensor(n).float() for n in towers.names()}},
              plain / "model.safetensors")  # fmt: skip
    config = json.loads((plain / "config.json").read_text())
    unquantized = {key: value for key, value in config.items() if "quantization" not in key}
    (plain / "config.json").write_text(json.dumps(unquantized))
    return plain


CASES: list[tuple[Kind, bool]] = [
    *((kind, False) for kind in NESTED),
    *((kind, True) for kind in NESTED if kind != "gemma3"),
]


@pytest.mark.parametrize(("kind", "embedding"), CASES)
def test_mlx_vlm_sees_as_the_decoded_original(kind: Kind, embedding: bool, tmp_path: Path) -> None:
    quantizer = RoundToNearest(group_size=32, quantize_embedding=embedding)
    out = converted(kind, tmp_path, quantizer, MLX())
    plain = decoded(kind, tmp_path)
    inputs = inputs_of(out, kind, sound=kind == "gemma4_e")
    if kind == "gemma3":
        inputs.pop("token_type_ids")  # mlx-vlm lets an image's tokens see only those before
    np.savez(tmp_path / "given.npz", **{key: value.numpy() for key, value in inputs.items()})
    program = [PYTHON or sys.executable, "-W", "ignore", "-c", PROGRAM, PROMPTS[kind]]
    subprocess.run([*program, "given.npz", "seen.npz", out, plain], check=True, cwd=tmp_path)
    seen = np.load(tmp_path / "seen.npz")
    for each in ("120", "7", "given"):
        assert np.array_equal(seen[f"{out} {each}"], seen[f"{plain} {each}"])
    assert np.abs(seen[f"{out} 120"] - seen[f"{out} 7"]).max() > 1
    wanted = expected(tmp_path / "model", out, MLX(), inputs)
    # Of Gemma 3 mlx-vlm rounds the embedding's scale to bfloat16; its logits reach 28, others' 3.
    tolerance = 0.15 if kind == "gemma3" else 5e-3
    found = torch.from_numpy(seen[f"{out} given"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
