"""Artifacts that were damaged on purpose: verify says so, and exits with 6."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemquant.__main__ import main
from tests.fuzz.parsers import ARTIFACTS, STATE, build_artifact

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = [
    pytest.param(kind, marks=() if kind in {"int8", "gguf"} else pytest.mark.slow)
    for kind in ARTIFACTS
]
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Artifacts of each kind, made once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            build_artifact(kind)(made[kind])
        return made[kind]

    STATE["scratch"] = str(tmp_path_factory.mktemp("model"))
    return of


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, sound: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of an artifact."""
    copy = tmp_path / "a"
    shutil.copytree(sound(request.param), copy)
    return copy


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code, shown = main(["verify", str(folder)]), capsys.readouterr()
    assert (code, shown.out) == (6, f"{folder}: not valid\n")
    return shown.err


def test_it_is_valid_as_it_was_made(folder: Path) -> None:
    assert main(["verify", str(folder)]) == 0


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_found(
    folder: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(folder.iterdir()):
        content = bytearray(path.read_bytes())
        at = {"first": 0, "middle": len(content) // 2, "last": -1}[place]
        if path.name == "manifest.json":  # it describes the others, and nothing describes it
            at = 0
        before, content[at] = bytes(content), content[at] ^ 0x55
        path.write_bytes(content)
        assert path.name in refused(folder, capsys)
        path.write_bytes(before)


@pytest.mark.parametrize("how", ["shorter", "longer", "empty", "missing", "link", "folder"])
def test_a_file_of_another_size_or_kind_is_found(
    folder: Path, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(folder.iterdir()):
        before = path.read_bytes()
        cut = path.name == "manifest.json" and how in {"longer", "link"}
        if cut:  # white space, or the same text elsewhere
            continue
        path.unlink()
        if how == "link":
            (tmp_path / "elsewhere").write_bytes(before)
            path.symlink_to(tmp_path / "elsewhere")
        elif how == "folder":
            path.mkdir()
        elif how != "missing":
            path.write_bytes({"shorter": before[:-2], "longer": before + b"x", "empty": b""}[how])
        assert path.name in refused(folder, capsys)
        path.rmdir() if how == "folder" else path.unlink(missing_ok=True)
        path.write_bytes(before)


def test_a_file_that_the_manifest_does_not_name_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "more.py").write_text("")
    assert "more.py is in" in refused(folder, capsys)


# ---------------------------------------------------------------- with the hashes put right


def hash_again(folder: Path) -> None:
    def described(manifest: dict[str, Any]) -> None:
        for name, record in manifest["files"].items():
            content = (folder / name).read_bytes()
            record |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    in_json("manifest.json", described)(folder)


def in_json(file: str, edit: Callable[[dict[str, Any]], object]) -> Edit:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_bytes())
        edit(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def in_header(edit: Callable[[dict[str, Any], str], object], part: str) -> Edit:
    """Edit model.safetensors' header; the second argument is a tensor with ``part`` in its name."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        edit(header, next(name for name in header if part in name))
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return apply


def in_gguf(old: bytes, new: bytes) -> Edit:
    def apply(folder: Path) -> None:
        content = (folder / "m.gguf").read_bytes()
        assert old in content
        (folder / "m.gguf").write_bytes(content.replace(old, new, 1))

    return apply


def written(file: str, content: str) -> Edit:
    return lambda folder: (folder / file).write_text(content)


OTHER_TYPE = {"I8": "U8", "U8": "I8", "F32": "I32", "I32": "F32", "U32": "I32", "I64": "F64"}
IN_SAFETENSORS: dict[str, Edit] = {
    "a norm has another name": in_header(lambda h, n: h.update({f"x.{n}": h.pop(n)}), "norm"),
    "codes have another name": in_header(lambda h, n: h.update({f"x.{n}": h.pop(n)}), "q_proj"),
    "a norm is wider": in_header(lambda h, n: h[n].update(dtype="F64"), "norm"),
    "a norm is another's bytes": in_header(lambda h, n: h[n].update(data_offsets=[0, 4]), "norm"),
    "codes are of another type": in_header(
        lambda h, n: h[n].update(dtype=OTHER_TYPE[h[n]["dtype"]]), "up_proj"
    ),
    "the embedding is transposed": in_header(
        lambda h, n: h[n].update(shape=h[n]["shape"][::-1]), "embed_tokens.weight"
    ),
    "no quantization in the configuration": in_json(
        "config.json",
        lambda c: [c.pop(key, None) for key in ("quantization_config", "quantization")],
    ),
    "more tokens": in_json("config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 1)),
    "more layers": in_json("config.json", lambda c: c.update(num_hidden_layers=99)),
    "more heads": in_json("config.json", lambda c: c.update(num_attention_heads=64)),
    "wider": in_json("config.json", lambda c: c.update(hidden_size=2 * c["hidden_size"])),
    "a list as the configuration": written("config.json", "[]"),
    "an empty configuration": written("config.json", "{}"),
    "no tokenizer": written("tokenizer.json", "{}"),
    "half a tokenizer configuration": written("tokenizer_config.json", '{"bos_token": '),
}
IN_GGUF: dict[str, Edit] = {
    "another magic": in_gguf(b"GGUF", b"GGUX"),
    "another version": in_gguf(b"GGUF\x03", b"GGUF\x63"),
    "another architecture": in_gguf(b"gemma2", b"gemma9"),
    "a norm has another name": in_gguf(b"blk.0.attn_norm.weight", b"blk.0.attn_nxrm.weight"),
    "codes have another name": in_gguf(b"blk.0.ffn_up.weight", b"blk.0.ffn_ux.weight"),
    "no number of layers": in_gguf(b"gemma2.block_count", b"gemma2.block_counx"),
    "tokens have no list": in_gguf(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"),
}
IN_MANIFEST: dict[str, Edit] = {
    "another container": in_json("manifest.json", lambda m: m.update(container="onnx")),
    "no such container": in_json("manifest.json", lambda m: m.update(container="zip")),
    "another generation": in_json("manifest.json", lambda m: m.update(architecture="gemma")),
    "another family": in_json("manifest.json", lambda m: m.update(architecture="llama")),
    "fewer bits": in_json("manifest.json", lambda m: m["quantization"].update(bits_per_weight=2.0)),
    "a later version": in_json("manifest.json", lambda m: m.update(schema_version=99)),
    "no source": in_json("manifest.json", lambda m: m.pop("source")),
    "a key that no version has": in_json("manifest.json", lambda m: m.update(more=1)),
    "a file outside": in_json(
        "manifest.json", lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})
    ),
    "a file less": in_json("manifest.json", lambda m: m["files"].pop("NOTICE")),
    "a list as the manifest": written("manifest.json", "[]"),
}


EDITS = [
    pytest.param(kind.values[0], name, marks=kind.marks)
    for kind in KINDS
    for name in {**(IN_GGUF if "gguf" in kind.values else IN_SAFETENSORS), **IN_MANIFEST}
]


@pytest.mark.parametrize(("folder", "edit"), EDITS, indirect=["folder"])
def test_what_no_longer_fits_is_found_though_every_hash_is_right(
    folder: Path, edit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if edit in IN_MANIFEST:
        IN_MANIFEST[edit](folder)
    else:
        ((IN_GGUF if (folder / "m.gguf").exists() else IN_SAFETENSORS)[edit])(folder)
        hash_again(folder)
    assert "error: " in refused(folder, capsys)
