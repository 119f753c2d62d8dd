"""llama.cpp sees with the towers that go with a GGUF: in ``chat``, in ``serve``, and in numbers."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import struct
import sys
import zlib
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.runtimes import llamacpp_library
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_multimodal import write_convertible_multimodal
from tests.integration.test_serve import start
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
FEW = ("--max-tokens", "12", "--seed", "1", "--threads", "1", "--context", "512")


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """An image, (height, width, 3) uint8."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def noise(side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def artifact(run: Run, tmp_path: Path) -> Path:
    model, out = write_convertible_multimodal(tmp_path, "gemma3"), tmp_path / "out"
    assert run("gguf", str(model), "--type", "F16", "--no-eval", "-o", str(out)).code == 0
    return out


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_chat_answers_about_an_image(
    run: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png(noise(56)))
    pipe(monkeypatch, "the")
    seen = run("chat", str(artifact), "--image", str(image), *FEW)
    assert seen.code == 0, seen.err
    assert len(seen.out) > 1

    pipe(monkeypatch, "the")
    blind = run("chat", str(artifact), "--mmproj", "none", "--image", str(image), *FEW)
    assert (blind.code, blind.out) == (2, "")
    assert f"--image: {artifact} takes no image here." in blind.err

    text = next(path for path in artifact.glob("*.gguf") if "mmproj" not in path.name)
    pipe(monkeypatch, "the")
    wrong = run("chat", str(artifact), "--mmproj", str(text), *FEW)
    assert (wrong.code, wrong.out) == (2, "")
    assert "its general.type is 'model', and must be 'mmproj'" in wrong.err

    image.write_bytes(b"GIF89a")
    pipe(monkeypatch, "the")
    refused = run("chat", str(artifact), "--image", str(image), "--image", str(tmp_path), *FEW)
    assert (refused.code, refused.out) == (2, "")
    assert f"--image {image}: neither PNG, JPEG or WAV." in refused.err
    assert f"--image {tmp_path}: cannot be read: Is a directory." in refused.err


def test_serve_takes_images_as_data_alone(artifact: Path) -> None:
    server = start(artifact, "--parallel", "1", "--context", "512")
    try:
        uri = f"data:image/png;base64,{base64.b64encode(png(noise(56))).decode()}"

        def ask(*urls: str) -> tuple[int, dict[str, Any]]:
            content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": "Hello"})
            messages = [{"role": "user", "content": content}]
            body = {"messages": messages, "max_tokens": 2}
            return server.post("/chat/completions", json.dumps(body).encode())

        status, answer = ask(uri)
        assert status == 200, answer
        tokens = answer["usage"]["prompt_tokens"]
        _, answer = ask(uri, uri)
        assert answer["usage"]["prompt_tokens"] - tokens >= 4
        for url in ("http://127.0.0.1:1/cat.png", "file:///etc/passwd"):
            status, answer = ask(url)
            assert status == 400
            assert "nothing is fetched" in answer["error"]["message"]
        assert ask(uri)[0] == 200
    finally:
        server.process.kill()
        server.process.communicate()


# ---------------------------------------------------------------- the embeddings themselves


class Params(Structure):
    """mtmd_context_params of xllamacpp's build."""

    _fields_: ClassVar[Any] = [
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int),
        ("image_marker", c_char_p),
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int),
        ("warmup", c_bool),
        ("image_min_tokens", c_int),
        ("image_max_tokens", c_int),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
    ]


class Text(Structure):
    """mtmd_input_text."""

    _fields_: ClassVar[Any] = [
        ("text", c_char_p),
        ("add_special", c_bool),
        ("parse_special", c_bool),
    ]


_SIGNATURES: Mapping[str, tuple[list[Any], Any]] = {
    "mtmd_context_params_default": ([], Params),
    "mtmd_init_from_file": ([c_char_p, c_void_p, Params], c_void_p),
    "mtmd_bitmap_init": ([c_int32, c_int32, c_char_p], c_void_p),
    "mtmd_input_chunks_init": ([], c_void_p),
    "mtmd_tokenize": ([c_void_p, c_void_p, POINTER(Text), POINTER(c_void_p), c_size_t], c_int32),
    "mtmd_input_chunks_get": ([c_void_p, c_size_t], c_void_p),
    "mtmd_input_chunk_get_n_tokens": ([c_void_p], c_size_t),
    "mtmd_encode_chunk": ([c_void_p, c_void_p], c_int32),
    "mtmd_get_output_embd": ([c_void_p], POINTER(c_float)),
    "mtmd_default_marker": ([], c_char_p),
}


def seen_by_llamacpp(folder: Path, pixels: np.ndarray[Any, Any], width: int) -> torch.Tensor:
    """Embeddings of an image, (tokens, width)."""
    import xllamacpp

    from gemquant.runtimes.llamacpp import LlamaModel, gguf_file

    (shared,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(shared))
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    model = LlamaModel(gguf_file(folder), gpu=False)
    params = lib.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.warmup = False, 1, False
    (mmproj,) = folder.glob("mmproj-*.gguf")
    context = lib.mtmd_init_from_file(str(mmproj).encode(), model.handle, params)
    assert context
    image = lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.tobytes())
    chunks, text = lib.mtmd_input_chunks_init(), Text(lib.mtmd_default_marker(), True, True)
    bitmaps = (c_void_p * 1)(image)
    assert lib.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    chunk = lib.mtmd_input_chunks_get(chunks, 1)  # between its two marks
    assert lib.mtmd_encode_chunk(context, chunk) == 0
    tokens = lib.mtmd_input_chunk_get_n_tokens(chunk)
    values = np.ctypeslib.as_array(lib.mtmd_get_output_embd(context), (tokens, width)).copy()
    return torch.from_numpy(values)


def seen_by_transformers(
    folder: Path, kind: Kind, pixels: np.ndarray[Any, Any], width: int
) -> torch.Tensor:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    image = torch.from_numpy(pixels).float() / 255
    if kind == "gemma3":
        inputs = {"pixel_values": (image.permute(2, 0, 1)[None] - 0.5) / 0.5}
    else:
        side, count = 12, pixels.shape[0] // 12
        patches = image.view(count, side, count, side, 3).transpose(1, 2)
        rows, columns = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        inputs = {
            "pixel_values": patches.reshape(1, count**2, 3 * side**2),
            "image_position_ids": torch.stack((columns, rows), -1).view(1, -1, 2),
        }
    with torch.no_grad():
        found = model.model.get_image_features(**inputs)
    found = getattr(found, "pooler_output", found)
    return (
        torch.cat(list(found)).view(-1, width)
        if isinstance(found, (list, tuple))
        else (found.reshape(-1, width))
    )


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "side"), [("gemma3", 56), ("gemma4_unified", 108)])
def test_an_image_is_seen_as_transformers_sees_it(
    run: Run, kind: Kind, side: int, tmp_path: Path
) -> None:
    model, out = write_convertible_multimodal(tmp_path, kind), tmp_path / "out"
    assert run("gguf", str(model), "--type", "F16", "--no-eval", "-o", str(out)).code == 0
    width, pixels = open_checkpoint(str(model)).config["hidden_size"], noise(side)
    wanted = seen_by_transformers(model, kind, pixels, width)
    found = seen_by_llamacpp(out, pixels, width)
    assert found.shape == wanted.shape
    # float16 has 11 bits; the largest of some hundred values is a few times the mean error.
    assert (found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt() < 2e-3
