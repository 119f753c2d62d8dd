"""What of images and sounds reaches llama.cpp."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from gemquant.runtimes.chat.media import LimitError, image_part, sense_of
from gemquant.runtimes.chat.request_limits import bounded_body

BOTH = ("image", "sound")


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\2\0\0\0"


def jpeg(width: int, height: int, frame: int = 0xC0) -> bytes:
    start = b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + bytes(14)
    return start + bytes([0xFF, frame]) + struct.pack(">HBHH", 17, 8, height, width) + bytes(10)


def wav(rate: int = 16_000, tag: int = 1, channels: int = 1) -> bytes:
    described = struct.pack("<HHIIHH", tag, channels, rate, 2 * rate, 2, 16)
    chunks = b"JUNK" + struct.pack("<I", 3) + bytes(4)
    chunks += b"fmt " + struct.pack("<I", 16) + described + b"data" + struct.pack("<I", 0)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    ("content", "sense"),
    [
        (png(64, 48), "image"),
        (jpeg(64, 48), "image"),
        (jpeg(5000, 5000, 0xC2), "image"),
        (wav(), "sound"),
        (wav(48_000, 3, 2), "sound"),
    ],
)
def test_png_jpeg_and_wav_are_known_by_their_content(content: bytes, sense: str) -> None:
    assert sense_of(content) == sense


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither PNG, JPEG or WAV"),
        (b"GIF89a", "neither PNG"),
        (b"RIFF\0\0\0\0WEBP", "neither PNG"),
        (b"ID3", "neither PNG"),
        (png(50_000, 2), "an image of 50000 × 2"),
        (png(16_000, 16_000), "at most 25000000 pixels"),
        (png(0, 4), "an image of 0 × 4"),
        (png(64, 48)[:20], "a damaged PNG"),
        (png(64, 48).replace(b"IHDR", b"CgBI"), "a damaged PNG"),
        (jpeg(60_000, 60_000), "an image of 60000 × 60000"),
        (jpeg(64, 48, 0xC3), "a damaged JPEG, or one of a rare kind"),
        (jpeg(64, 48)[:24], "a damaged JPEG"),
        (b"\xff\xd8" + b"\xff" * 1000, "a damaged JPEG"),
        (wav(1), "a WAV of format 1, 1 channels, 1 Hz"),
        (wav(tag=17), "a WAV of format 17"),
        (wav(channels=8), "8 channels"),
        (wav()[:20], "a damaged WAV"),
    ],
)
def test_what_a_decoder_could_choke_on_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(LimitError, match=reason):
        sense_of(content)


def test_a_file_becomes_a_part_of_a_message() -> None:
    assert image_part(jpeg(4, 4)) == {
        "type": "image_url",
        "image_url": {"url": uri(jpeg(4, 4), "image/jpeg")},
    }
    sound = image_part(wav())["input_audio"]
    assert (base64.b64decode(sound["data"]), sound["format"]) == (wav(), "wav")


def refused(part: Any, senses: tuple[Any, ...] = BOTH) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    with pytest.raises(LimitError) as raised:
        bounded_body(body, 512, senses)
    return str(raised.value)


def of_url(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    "part",
    [
        of_url(uri(png(8, 8))),
        {"type": "input_image", "image_url": uri(png(8, 8))},
        {"type": "image", "source": {"type": "base64", "data": uri(png(8, 8)).split(",")[1]}},
        {"type": "input_audio", "input_audio": {"data": uri(wav()).split(",")[1]}},
    ],
)
def test_every_interfaces_images_and_sounds_pass(part: dict[str, Any]) -> None:
    content = {"messages": [{"role": "user", "content": [part]}]}
    assert json.loads(bounded_body(json.dumps(content).encode(), 512, BOTH)) == content


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/cat.png",
        "file:///etc/passwd",
        "HTTP://example.org",
    ],
)
def test_nothing_is_fetched_and_no_file_opened(url: str) -> None:
    said = "nothing is fetched, and no file is opened; send it as a data: URI"
    assert refused(of_url(url)) == f"image_url: {said}"
    assert refused({"type": "input_image", "image_url": url}) == f"input_image: {said}"
    assert refused({"type": "input_audio", "input_audio": {"url": url}}) == f"input_audio: {said}"
    assert refused({"type": "image", "source": {"type": "url", "url": url}}).startswith("image: ")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "must be a text"),
        ("data:image/svg+xml,<svg/>", "must be a data: URI"),
        ("data:text/html;base64,AAAA", "must be a data: URI"),
        ("http://a/,AAAA", "must be a data: URI"),
        ("data:image/png;base64,AA==AA==", "not base64"),
        ("data:image/png;base64,A A A", "not base64"),
        (uri(png(30_000, 30_000)), "at most 25000000 pixels"),
        (uri(b"RIFF"), "neither PNG"),
    ],
)
def test_another_image_is_refused(url: Any, reason: str) -> None:
    assert reason in refused(of_url(url))


def test_videos_are_not_read() -> None:
    assert refused({"type": "input_video", "input_video": {"data": "AAAA"}}).endswith("not read")
    assert refused({"type": "video_url", "video_url": {"url": "AAAA"}}).endswith("not read")


def test_media_of_a_plain_prompt_are_checked() -> None:
    prompt = {"prompt_string": "a", "multimodal_data": ["http://example.org"]}
    with pytest.raises(LimitError, match="multimodal_data: nothing is fetched"):
        bounded_body(json.dumps({"prompt": prompt}).encode(), 512, BOTH)


def test_a_model_without_the_sense_is_named() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": uri(wav()).split(",")[1]}}
    assert refused(sound, ("image",)) == "input_audio: the model's mmproj file has no sound"
    assert refused(of_url(uri(png(8, 8))), ()) == (
        "image_url: the model reads text only; serve it with --mmproj FILE"
    )


def test_a_request_has_sixteen_images_at_most() -> None:
    parts = [of_url(uri(png(8, 8)))] * 17
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    with pytest.raises(LimitError, match="more than 16"):
        bounded_body(body, 512, BOTH)


def test_a_tool_may_have_a_parameter_of_that_name() -> None:
    schema = {"type": "object", "properties": {"image_url": {"type": "string"}}}
    body = json.dumps({"tools": [{"type": "function", "function": {"parameters": schema}}]})
    assert bounded_body(body.encode(), 512)
