"""Images and sound that go to llama.cpp: what they are, and bounds that its decoders lack.

An image or a sound comes within a request, as base64; nothing is fetched and no file is opened for
a client. PNG, JPEG and WAV are read, of bounded dimensions by their headers.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

Sense = Literal["image", "sound"]

SENSES: Mapping[str, Sense] = {"image_url": "image", "input_audio": "sound"}
"""What the parts of a message that ``image_part`` makes are for."""
MAX_PIXELS = 25_000_000
MAX_MEDIA = 16
"""Of one request."""
_LONGEST_SIDE = 16_384
_RATES = range(8_000, 192_001)
_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN_WAV = {1, 3, 0xFFFE}
"""PCM, floats, and either with more said: nothing that unpacks to more than it is."""
_ENDPOINTS = "PNG, JPEG or WAV"


class LimitError(ValueError):
    """A request is beyond a bound. The message is a clause without a full stop."""


def sense_of(content: bytes) -> Sense:
    """What a file is for; LimitError for what llama.cpp is not given."""
    if content.startswith(_PNG):
        _check_size(*_png_size(content))
        return "image"
    if content.startswith(b"\xff\xd8"):
        _check_size(*_jpeg_size(content))
        return "image"
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        _check_wav(content)
        return "sound"
    raise LimitError(f"neither {_ENDPOINTS}")


def image_part(content: bytes) -> dict[str, Any]:
    """An image, or a sound, as a part of a message; LimitError for anything else."""
    text = base64.b64encode(content).decode()
    if sense_of(content) == "sound":
        return {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
    kind = "png" if content.startswith(_PNG) else "jpeg"
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}


def check_media(tables: Iterator[Mapping[str, Any]], senses: Collection[Sense]) -> None:
    """Check every image and sound of a request's tables; senses: those that the model has."""
    count = 0
    for table in tables:
        for name, value in _media(table):
            count += 1
            if count > MAX_MEDIA:
                raise LimitError(f"more than {MAX_MEDIA} images and sounds")
            if not senses:
                raise LimitError(f"{name}: the model reads text only; serve it with --mmproj FILE")
            try:
                sense = sense_of(_decoded(value))
            except LimitError as error:
                raise LimitError(f"{name}: {error}") from None
            if sense not in senses:
                raise LimitError(f"{name}: the model's mmproj file has no {sense}")


def _media(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What llama.cpp would decode, or fetch, of one table."""
    kind = table.get("type")
    if kind in {"image_url", "input_image"}:
        given = table.get("image_url")
        yield kind, given.get("url") if isinstance(given, dict) else given
    elif kind == "input_audio":
        given = table.get("input_audio")
        audio = given if isinstance(given, dict) else {}
        yield kind, audio.get("data", audio.get("url"))
    elif kind in {"input_video", "video_url"}:
        raise LimitError(f"{kind}: videos are not read")
    elif kind == "image" and isinstance(source := table.get("source"), dict):
        if source.get("type") != "base64":
            raise LimitError("image: nothing is fetched; send it as base64")
        yield kind, source.get("data")
    if "prompt_string" in table and isinstance(media := table.get("multimodal_data"), list):
        for each in media:
            yield "multimodal_data", each


def _decoded(value: Any) -> bytes:
    if not isinstance(value, str):
        raise LimitError("must be a text")
    head, comma, data = value.partition(",")
    if comma and not (head.startswith(("data:image/", "data:audio/")) and head.endswith(";base64")):
        raise LimitError("must be a data: URI of an image or a sound, in base64")
    if not comma and ":" in head:
        raise LimitError("nothing is fetched, and no file is opened; send it as a data: URI")
    try:
        return base64.b64decode(data if comma else head, validate=True)
    except (binascii.Error, ValueError):
        raise LimitError("not base64") from None


def _check_size(width: int, height: int) -> None:
    fits = 0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE
    if not fits or width * height > MAX_PIXELS:
        raise LimitError(f"an image of {width} × {height}; at most {MAX_PIXELS} pixels are read")


def _png_size(content: bytes) -> tuple[int, int]:
    if content[12:16] != b"IHDR" or len(content) < 24:
        raise LimitError("a damaged PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Of the first frame, which must be of a kind that llama.cpp decodes."""
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # fills
            place += 1
            continue
        if marker in {0xC0, 0xC1, 0xC2}:
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            return width, height
        if marker in {0xD8, 0xD9, 0xDA} or (0xC0 < marker < 0xD0 and marker not in {0xC4, 0xCC}):
            break
        place += 2 + int(struct.unpack(">H", content[place + 2 : place + 4])[0])
    raise LimitError("a damaged JPEG, or one of a rare kind")


def _check_wav(content: bytes) -> None:
    place = 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], struct.unpack("<I", content[place + 4 : place + 8])
        if name == b"fmt " and place + 24 <= len(content):
            tag, channels, rate = struct.unpack("<HHI", content[place + 8 : place + 16])
            if tag not in _PLAIN_WAV or channels not in {1, 2} or rate not in _RATES:
                raise LimitError(
                    f"a WAV of format {tag}, {channels} channels, {rate} Hz; read are PCM and "
                    f"floats, 1 or 2 channels, {_RATES[0]} to {_RATES[-1]} Hz"
                )
            return
        place += 8 + size[0] + size[0] % 2
    raise LimitError("a damaged WAV")
