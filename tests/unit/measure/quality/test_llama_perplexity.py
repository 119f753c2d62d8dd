"""Level ``reference`` against llama.cpp's own llama-perplexity, on the same tokens and weights.

``tests/golden/perplexity.json`` holds what it printed; ``make_perplexity.py`` made it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.core.protocols import Silence
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.divergence import TokenScores
from gemquant.measure.quality.streams import EvaluationStreams, final_norm, head_table
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_perplexity import KINDS, WINDOW, text, write_models

GOLDEN = json.loads((Path(__file__).parents[3] / "golden/perplexity.json").read_text())


def token_scores(original: Checkpoint, other: Checkpoint, windows: TokenWindows) -> TokenScores:
    """Every predicted token's scores, as ``measure`` compares two models."""
    skeleton = Skeleton(original.config)
    streams = EvaluationStreams(skeleton, [windows])
    streams.embed(original, [(other, None)])
    for index, _ in streams.layers(original, Silence()):
        names = layer_parameters(original.config, index)
        weights = layer_weights(other, layer_prefix(index), names, skeleton)
        streams.candidates[0].advance(index, weights)
    models = [(final_norm(m, skeleton), head_table(m, skeleton)) for m in (original, other)]
    before, after = streams.predictors(models)
    ((scores,),) = streams.compare(before, [after], Silence())
    return scores


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenScores, dict[str, Any]]:
    """Our scores of the tokens that llama-perplexity counts, and what it printed.

    It cuts all tokens into windows, lays the BOS over the first of each, and counts their second
    halves.
    """
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    write_models(folder, kind)
    original, noisy = (open_checkpoint(str(folder / f"{n}.gguf")) for n in ("original", "noisy"))
    bos = original.config["bos_token_id"]
    stream = [bos, *original.tokenizer().encode(text(), add_special_tokens=False).ids]
    ids = torch.tensor(stream[: len(stream) // WINDOW * WINDOW]).view(-1, WINDOW)
    ids[:, 0] = bos
    windows = TokenWindows(ids, "words", stream_digest([ids]))
    scores = token_scores(original, noisy, windows)
    counted = (torch.arange(len(ids))[:, None] * (WINDOW - 1)) + torch.arange(
        WINDOW // 2, WINDOW - 1
    )
    columns = (getattr(scores, name) for name in TokenScores.__dataclass_fields__)
    return TokenScores(*(column[counted] for column in columns)), GOLDEN[kind]


def test_perplexity_of_every_window_is_llama_perplexitys(
    both: tuple[TokenScores, dict[str, Any]],
) -> None:
    scores, golden = both
    so_far = scores.nll_original.double().mean(1).cumsum(0) / torch.arange(1, 15)
    logarithms = [math.log(value) for value in golden["perplexity_by_chunk"]]
    # Its head computes in float16, as the embedding is stored.
    assert so_far.tolist() == pytest.approx(logarithms, rel=2e-4)


def test_divergence_is_llama_perplexitys(both: tuple[TokenScores, dict[str, Any]]) -> None:
    scores, golden = both
    divergence = scores.divergence.double()
    nll = math.log(golden["perplexity_noisy"])
    assert float(scores.nll_quantized.double().mean()) == pytest.approx(nll, rel=2e-4)
    # It keeps the original's logits in 16 bits.
    assert float(divergence.mean()) == pytest.approx(golden["kl_mean"], rel=2e-3)
    for level, name in ((0.5, "kl_median"), (0.99, "kl_p99"), (0.999, "kl_p999"), (1.0, "kl_max")):
        found = float(torch.quantile(divergence.flatten(), level))
        assert found == pytest.approx(golden[name], rel=5e-3), name
    if golden is not GOLDEN["gemma2"]:
        # Of Gemma 2's capped logits, the two largest are mostly equal in those 16 bits.
        assert float(scores.agreement.mean()) == pytest.approx(golden["top1"], abs=2e-3)
