"""llama.cpp's logits against transformers on the same decoded weights."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.errors import ArtifactError, RuntimeMissingError, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.measure import compare
from gemquant.measure.quality.native import NativeRuntime
from gemquant.runtimes import llamacpp, llamacpp_library
from gemquant.runtimes.llamacpp import LlamaCpp, gguf_file
from gemquant.runtimes.runtime import LoadOptions
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.helpers.tiny_windows import tiny_windows

needs_llamacpp = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
IDS = tiny_windows(3, 40).ids
ONE_THREAD = LoadOptions(threads=1)
NEAR = {"gemma": 1e-4, "gemma2": 3e-4, "gemma3_text": 5e-3}
"""Nats per token: keys, values and the head's inputs are float16 in llama.cpp."""


def tiny(folder: Path, kind: Kind) -> Path:
    """A tiny Gemma in float32, as llama.cpp computes it."""
    packed = gguf.GGMLQuantizationType.F32
    return write_tiny_gguf(folder / "model.gguf", kind, packed=packed, overrides=LLAMACPP[kind])


def expected_logits(checkpoint: Checkpoint) -> Tensor:
    """Plain transformers: logits of all positions but each window's last."""
    config = AutoConfig.for_model(**checkpoint.config)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits: Tensor = model.eval()(IDS).logits
    return logits[:, :-1].reshape(-1, logits.shape[-1])


def divergence(first: Tensor, second: Tensor) -> float:
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (first, second))
    return float((p.exp() * (p - q)).sum(-1).mean())


@needs_llamacpp
class TestLogits:
    def test_they_are_those_of_transformers_past_the_sliding_window(
        self, tmp_path: Path, generation: Kind
    ) -> None:
        path = tiny(tmp_path, generation)
        wanted = expected_logits(open_checkpoint(str(path)))
        runner = LlamaCpp.load(path, "gguf", ONE_THREAD)
        found = torch.cat([chunk.clone() for chunk in runner.logit_chunks(IDS)])
        assert found.shape == wanted.shape == (3 * 39, 465)
        assert divergence(wanted, found) < NEAR[generation]

    def test_they_do_not_depend_on_how_many_come_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runner = LlamaCpp.load(tiny(tmp_path, "gemma2"), "gguf", ONE_THREAD)
        whole = torch.cat([chunk.clone() for chunk in runner.logit_chunks(IDS)])
        monkeypatch.setattr(llamacpp, "POSITIONS_AT_ONCE", 16)
        chunks = [chunk.clone() for chunk in runner.logit_chunks(IDS)]
        assert [len(chunk) for chunk in chunks] == [16, 16, 7] * 3
        torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-4, atol=1e-3)

    def test_generation_is_greedy(self, tmp_path: Path) -> None:
        path = tiny(tmp_path, "gemma")
        runner = LlamaCpp.load(path, "gguf", ONE_THREAD)
        checkpoint = open_checkpoint(str(path))
        prompt = IDS[0].tolist()
        (first, *_) = runner.generate(prompt, max_new_tokens=4)
        assert len(runner.generate(prompt, max_new_tokens=4)) == 4
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**checkpoint.config), dtype=torch.float32
        )
        state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        with torch.no_grad():
            logits = model.eval()(IDS[:1]).logits[0, -1]
        assert first == int(logits.argmax())
        (second,) = runner.tokens(prompt, limit=1, suppressed={first, 10**6})
        assert second == int(logits.topk(2).indices[1])


@needs_llamacpp
def test_the_native_level_is_measured_on_the_windows_of_the_reference(tmp_path: Path) -> None:
    path = tiny(tmp_path, "gemma2")
    checkpoint = open_checkpoint(str(path))
    windows = [tiny_windows(2, 40, name="a"), tiny_windows(1, 40, name="b", seed=1)]
    reference, native = compare(
        checkpoint, checkpoint, windows, runtime=NativeRuntime.find(path, "gguf")
    )
    assert (reference.level, native.level) == ("reference", "native")
    assert "llama.cpp" in native.runtime
    for ours, theirs in zip(reference.slices, native.slices, strict=True):
        assert (ours.slice, ours.windows.tokens) == (theirs.slice, theirs.windows.tokens)
        assert ours.token_stream == theirs.token_stream
        assert theirs.perplexity_original == ours.perplexity_original
        assert theirs.perplexity_quantized.value == pytest.approx(
            ours.perplexity_original.value, rel=0.01
        )
        assert 0 < theirs.kl_mean.value < 1e-3
    assert native.kl_from_reference is not None
    assert 0 < native.kl_from_reference.value < 1e-3


@needs_llamacpp
class TestRefusals:
    def test_a_file_that_is_no_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(100))
        with pytest.raises(ArtifactError, match=r"llama\.cpp refuses .*invalid magic"):
            LlamaCpp.load(tmp_path, "gguf")

    def test_it_names_the_reason_after_another_log_callback_was_set(self, tmp_path: Path) -> None:
        """xllamacpp's server sets one of its own."""
        lib = llamacpp_library.library()
        other = llamacpp_library._LOG_CALLBACK(lambda _level, _text, _data: None)
        lib.llama_log_set(ctypes.cast(other, ctypes.c_void_p), None)
        (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(100))
        with pytest.raises(ArtifactError, match="invalid magic"):
            LlamaCpp.load(tmp_path, "gguf")

    def test_a_truncated_gguf(self, tmp_path: Path) -> None:
        path = tiny(tmp_path, "gemma")
        path.write_bytes(path.read_bytes()[:-4096])
        with pytest.raises(ArtifactError, match=r"llama\.cpp refuses .*corrupted or incomplete"):
            LlamaCpp.load(tmp_path, "gguf")

    def test_a_gpu_where_the_build_knows_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if llamacpp_library.library().llama_supports_gpu_offload():
            pytest.skip("this build of llama.cpp has a GPU")
        with pytest.raises(UnsupportedError, match="processor only"):
            LlamaCpp.load(tiny(tmp_path, "gemma"), "gguf", LoadOptions("cuda"))

    def test_another_model_under_the_artifact(self, tmp_path: Path) -> None:
        """Too few logits must not be read as if they were all."""
        path = tiny(tmp_path, "gemma")
        runtime = NativeRuntime.find(path, "gguf")

        class OtherStreams:
            ids, vocabulary = IDS, 466

        with pytest.raises(ArtifactError, match="logits over 465 tokens, and the model has 466"):
            next(runtime.predictions(OtherStreams()))  # type: ignore[arg-type]


def test_without_the_package_the_level_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_library, "PACKAGE", "no-such-package")
    found = NativeRuntime.find(tmp_path, "gguf")
    assert found.loaded is None
    assert found.not_run == ("no-such-package not installed; pip install xllamacpp==2026.10.11549")
    with pytest.raises(RuntimeMissingError, match=r"cannot be run in llama\.cpp"):
        LlamaCpp.load(tmp_path, "gguf")


class TestFiles:
    def touch(self, folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).touch()
        return folder

    def test_a_folders_only_gguf(self, tmp_path: Path) -> None:
        folder = self.touch(tmp_path, "a.gguf", "manifest.json")
        assert gguf_file(folder).name == "a.gguf"

    def test_the_first_of_all_parts(self, tmp_path: Path) -> None:
        folder = self.touch(tmp_path, "a-00002-of-00002.gguf", "a-00001-of-00002.gguf")
        assert gguf_file(folder).name == "a-00001-of-00002.gguf"

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        folder = self.touch(tmp_path, "a-00001-of-00003.gguf", "a-00003-of-00003.gguf")
        with pytest.raises(ArtifactError, match=r"parts missing: a-00002-of-00003\.gguf"):
            gguf_file(folder)

    @pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf"), ("a-00002-of-00002.gguf",)])
    def test_none_or_several(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        with pytest.raises(ArtifactError, match=f"found: {', '.join(names) or 'none'}"):
            gguf_file(self.touch(tmp_path, *names))
