"""Another build of llama.cpp is an error, never a wrong number."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib import metadata

import pytest

from gemquant.errors import RuntimeMissingError, UnsupportedError
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.llamacpp_library import (
    DEFAULTS,
    Batch,
    ContextParams,
    ModelParams,
    library,
    missing,
)

needs_llamacpp = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def unloaded() -> Iterator[None]:
    """Load anew in this test, and again after it."""
    library.cache_clear()
    yield
    library.cache_clear()


def test_structures_are_as_large_as_on_every_64_bit_platform() -> None:
    sizes = [ctypes.sizeof(kind) for kind in (ModelParams, ContextParams, Batch)]
    assert sizes == [80, 168, 56]


def test_another_version_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "2027.1.12000")
    with pytest.raises(RuntimeMissingError) as refused:
        library()
    assert (
        "xllamacpp 2027.1.12000 is installed, but only 2026.10.11549 is supported"
        in refused.value.message
    )
    assert refused.value.hint == "pip install xllamacpp==2026.10.11549"


@needs_llamacpp
def test_a_default_that_moved_is_refused(monkeypatch: pytest.MonkeyPatch, unloaded: None) -> None:
    moved = {**DEFAULTS[ContextParams], "n_batch": 512}
    monkeypatch.setattr(llamacpp_library, "DEFAULTS", {**DEFAULTS, ContextParams: moved})
    with pytest.raises(UnsupportedError, match=r"ContextParams\.n_batch is 2048, not 512"):
        library()


@needs_llamacpp
def test_a_structure_that_grew_is_refused(monkeypatch: pytest.MonkeyPatch, unloaded: None) -> None:
    if not llamacpp_library.sizes_can_be_seen():
        pytest.skip("on this processor a structure is returned through a register of its own")
    sizes = {**llamacpp_library.WRITTEN_BYTES, ModelParams: 70}
    monkeypatch.setattr(llamacpp_library, "WRITTEN_BYTES", sizes)
    with pytest.raises(
        UnsupportedError, match="llama_model_default_params writes 78 bytes, not 70"
    ):
        library()


@needs_llamacpp
def test_a_batch_of_another_layout_is_refused(
    monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    class Swapped(ctypes.Structure):
        _fields_ = [Batch._fields_[0], *reversed(Batch._fields_[1:])]

    signatures = dict(llamacpp_library._SIGNATURES)
    signatures["llama_batch_get_one"] = (Swapped, signatures["llama_batch_get_one"][1])
    monkeypatch.setattr(llamacpp_library, "_SIGNATURES", signatures)
    with pytest.raises(UnsupportedError, match=r"Batch\.token is None"):
        library()
