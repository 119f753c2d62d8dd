"""Our model for lm-eval against lm-eval's own adapter for transformers, on tiny Gemmas."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.core.protocols import Silence
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.measure.quality.measure import compare
from gemquant.models.chat import ChatTemplate, render
from gemquant.runtimes.runtime import Chunk, Window
from gemquant.runtimes.text import TextInterface
from tests.helpers.tiny_gemma import CHAT_TEMPLATE, write_tiny_gemma
from tests.helpers.tiny_tasks import task_settings, write_tiny_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    ("the quick brown", " fox jumps"),
    ("the quick brown", " dog"),
    ("the quick brown", " hello world user"),
    ("", "def return import"),
    ("hello world ", "from this model"),
    ("user that is for with as on it was by this are from not have be at which def", " lazy"),
    ("Answer:", " A"),
    ("Answer:", " B"),
]
TEXTS = ["the quick brown fox jumps over the lazy dog", "import self\nreturn model", "hello"]


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]


def ours(folder: Path, **changes: Any) -> Any:
    from gemquant.measure.tasks.measure import load_original
    from gemquant.measure.tasks.model import HarnessModel

    checkpoint, settings = open_checkpoint(str(folder)), task_settings(**changes)
    runtime, text = load_original(checkpoint, settings), TextInterface.of_checkpoint(checkpoint)
    return HarnessModel(runtime, text, settings.max_length, Silence())


def peer(folder: Path, *, add_bos_token: bool) -> Any:
    """lm-eval's adapter. It adds a BOS of its own before rolling text, elsewhere only if asked."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        add_bos_token=add_bos_token,
        prefix_token_id=2,
        batch_size=2,
        device="cpu",
    )


class TestAgainstLmEvalsOwnAdapter:
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_log_likelihoods_and_greedy_flags_are_equal(
        self, tiny_folder: Path, batch_size: int
    ) -> None:
        asked = requests("loglikelihood", PAIRS)
        found = ours(tiny_folder, batch_size=batch_size).loglikelihood(asked)
        expected = peer(tiny_folder, add_bos_token=True).loglikelihood(asked)
        assert [each for each, _ in found] == pytest.approx([e for e, _ in expected], rel=2e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    def test_a_greedy_continuation_is_flagged_by_both(self, tiny_folder: Path) -> None:
        model = ours(tiny_folder)
        following = model._runtime.tokens(model.tok_encode("the quick"), limit=1)
        (likeliest,) = following
        context = model.tok_encode("the quick")
        asked = [((n, n), context, [token]) for n, token in enumerate([likeliest, likeliest + 1])]
        expected = peer(tiny_folder, add_bos_token=True)._loglikelihood_tokens(asked)
        assert [greedy for _, greedy in expected] == [True, False]
        assert [greedy for _, greedy in model._loglikelihood_tokens(asked)] == [True, False]

    def test_rolling_log_likelihoods_are_equal_with_one_bos(self, tiny_folder: Path) -> None:
        asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
        found = ours(tiny_folder).loglikelihood_rolling(asked)
        expected = peer(tiny_folder, add_bos_token=False).loglikelihood_rolling(asked)
        assert found == pytest.approx(expected, rel=2e-5)

    def test_generated_answers_are_equal(self, tiny_folder: Path) -> None:
        asked = requests(
            "generate_until",
            [(text, {"until": ["\n\n", "e"], "max_gen_toks": 12}) for text in TEXTS],
        )
        found = ours(tiny_folder).generate_until(asked)
        assert found == peer(tiny_folder, add_bos_token=True).generate_until(asked)

    def test_suppressed_tokens_are_passed_over_by_both(self, tmp_path: Path) -> None:
        folder = write_tiny_gemma(tmp_path / "m", "gemma4_unified")
        model = ours(folder)
        (usual,) = model._runtime.tokens(model.tok_encode(TEXTS[0]), limit=1)
        generation = {"eos_token_id": [1, 5], "suppress_tokens": [usual, 10**6]}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        asked = requests("generate_until", [(TEXTS[0], {"until": ["\n\n"], "max_gen_toks": 6})])
        found = ours(folder).generate_until(asked)
        assert found == peer(folder, add_bos_token=True).generate_until(asked)
        assert found != model.generate_until(asked)


class TestBos:
    def test_every_prompt_begins_with_one(self, tiny_folder: Path) -> None:
        model = ours(tiny_folder)
        for text in ("hello world", "<bos>hello world"):
            assert model.tok_encode(text).count(2) == 1
            assert model.tok_encode(text)[0] == 2

    def test_a_conversation_has_the_templates_own_alone(self, tiny_folder: Path) -> None:
        model = ours(tiny_folder)
        turn = [{"role": "user", "content": "hello"}]
        text = model.apply_chat_template(turn)
        assert text == render(ChatTemplate(CHAT_TEMPLATE), turn, add_generation_prompt=True)
        assert model.tok_encode(text).count(2) == 1

    def test_an_answer_begun_is_left_open(self, tiny_folder: Path) -> None:
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer"}]
        text = ours(tiny_folder).apply_chat_template(turns, add_generation_prompt=False)
        assert text.endswith("<start_of_turn>model\nThe answer")

    def test_a_prompt_that_is_cut_keeps_it(self, tiny_folder: Path) -> None:
        long, short = ours(tiny_folder), ours(tiny_folder, max_length=16)
        words = "the quick brown fox jumps over the lazy dog and with this from that model is it"
        kept = short._ending(short.tok_encode(words), short.max_length + 1)
        assert len(kept) == 17
        assert kept == [2, *long.tok_encode(words)[-16:]]
        assert short.windows_cut == 1

    def test_every_window_of_a_long_text_has_it(self, tiny_folder: Path) -> None:
        model = ours(tiny_folder, max_length=16)
        seen: list[Window] = []
        inner = model._runtime

        class Watching:
            def logits(self, windows: Sequence[Window]) -> Any:
                seen.extend(windows)
                return inner.logits(windows)

        model._runtime = Watching()
        words = "the of and to in is that for with as on it was by this are from not have be at"
        text = " ".join(sorted(f"{a} {b}" for a in words.split() for b in "xyz"))
        model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
        assert len(seen) > 3
        assert all(window.ids[0] == 2 and len(window.ids) <= 16 for window in seen)
        predicted = sum(len(window.ids) - window.first for window in seen)
        assert predicted == len(model.tok_encode(text)) - 1


class TestWordPerplexity:
    """lm-eval's figure from our likelihoods is that of our own evaluation on the same tokens."""

    def test_it_equals_our_own_nll_on_the_same_tokens(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        from gemquant.measure.tasks import harness

        folder = write_tiny_tasks(tmp_path / "tasks")
        loaded = harness.load(["tiny_text"], folder, code_allowed=False, progress=Silence())
        model = ours(tiny_folder)
        results = harness.run(model, loaded, task_settings())
        pages = [sample["doc"]["page"] for sample in results["samples"]["tiny_text"]]
        checkpoint = open_checkpoint(str(tiny_folder))
        nll, words = 0.0, 0
        for page in pages:
            ids = torch.tensor([model.tok_encode(page)])
            windows = TokenWindows(ids, "page", stream_digest([ids]))
            (certificate,) = compare(checkpoint, checkpoint, [windows])
            (page_slice,) = certificate.slices
            nll += math.log(page_slice.perplexity_quantized.value) * (ids.shape[1] - 1)
            words += len(page.split())
        found = results["results"]["tiny_text"]["word_perplexity,none"]
        assert math.log(found) == pytest.approx(nll / words, rel=1e-5)


class Broken:
    """A runtime whose logits are not numbers."""

    def logits(self, windows: Sequence[Window]) -> Any:
        for number, window in enumerate(windows):
            nothing = torch.full((len(window.ids) - window.first, 700), torch.nan)
            yield Chunk(number, window.first, nothing)

    def tokens(self, prompt: Sequence[int], *, limit: int, suppressed: object) -> Any:
        return iter([0] * limit)


class TestRefusals:
    def test_logits_that_are_no_numbers_are_an_error(self, tiny_folder: Path) -> None:
        model = ours(tiny_folder)
        model._runtime = Broken()
        with pytest.raises(ArtifactError, match="not finite"):
            model.loglikelihood(requests("loglikelihood", [("the", " a")]))

    def test_sampling_is_refused(self, tiny_folder: Path) -> None:
        asked = requests("generate_until", [("the", {"do_sample": True, "temperature": 0.7})])
        with pytest.raises(UnsupportedError, match=r"do_sample True, temperature 0\.7"):
            ours(tiny_folder).generate_until(asked)

    def test_more_new_tokens_than_a_window_has_are_refused(self, tiny_folder: Path) -> None:
        asked = requests("generate_until", [("the", {"max_gen_toks": 512})])
        with pytest.raises(UnsupportedError, match="512 new tokens; windows have 512"):
            ours(tiny_folder).generate_until(asked)


def test_requests_that_differ_in_their_last_token_share_a_window(tiny_folder: Path) -> None:
    model, counted = ours(tiny_folder), []
    inner = model._runtime

    class Counting:
        def logits(self, windows: Sequence[Window]) -> Any:
            counted.append(len(windows))
            return inner.logits(windows)

    model._runtime = Counting()
    model.loglikelihood(requests("loglikelihood", [("Answer:", f" {c}") for c in "ABCD"]))
    # " A" is two tokens of the tiny tokenizer; the first is common to all four.
    assert counted == [1]


def test_text_is_encoded_without_a_bos(tiny_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    text = TextInterface(tokenizer, 2, frozenset({1}), None, 512)
    assert 2 not in text.encode("the quick brown")
