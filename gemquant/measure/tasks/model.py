"""Our runtimes as a language model of lm-eval: it asks in text, they answer in logits.

Gemma needs exactly one BOS. lm-eval's own adapter for transformers 0.4.13 puts two before rolling
text where the tokenizer adds one, and drops it when a prompt is cut; here every window begins with
one BOS, whatever the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows

from gemquant.core.progress import Progress
from gemquant.errors import UnsupportedError
from gemquant.measure.tasks.engines.engine import Engine, Score, Target, Window
from gemquant.measure.tasks.voice import Voice
from gemquant.models.chat import render

DEFAULT_NEW_TOKENS = 256
"""As lm-eval's adapters have it, for tasks that do not say."""

_GREEDY = {"do_sample": (False,), "temperature": (0, 0.0)}
_HARMLESS = {"top_p", "top_k"}
"""Sampling options that mean nothing where decoding is greedy."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval is not installed everywhere
    """A loaded engine, asked by lm-eval."""

    def __init__(self, engine: Engine, voice: Voice, max_length: int, progress: Progress) -> None:
        """Answer with an engine, in windows of at most ``max_length`` tokens, BOS included."""
        super().__init__()
        self._engine, self._voice, self._progress = engine, voice, progress
        self._longest = max_length
        self._cut = 0

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations in text; progress is our own."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    # ------------------------------------------------------------ text

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text."""
        return min(self._voice.ends)

    @property
    def prefix_token_id(self) -> int:
        """What a text begins with."""
        return self._voice.bos

    @property
    def tokenizer_name(self) -> str:
        """Names nothing: requests are not cached."""
        return ""

    @property
    def max_length(self) -> int:
        """Most tokens of a window."""
        return self._longest

    @property
    def windows_cut(self) -> int:
        """How many windows were longer, and lost their beginning."""
        return self._cut

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any
    ) -> list[int]:
        """Token ids with exactly one BOS before them; none where that is asked for."""
        ids = self._voice.encode(string)
        if add_special_tokens is False or ids[:1] == [self._voice.bos]:
            return ids
        return [self._voice.bos, *ids]

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model was trained on it; without the prompt, a turn left open."""
        template = self._voice.template
        assert template is not None, "a template was looked for before anything was loaded"
        bos = self._voice.tokenizer.id_to_token(self._voice.bos)
        if add_generation_prompt:
            return render(template, chat_history, bos=bos, add_generation_prompt=True)
        *_, last = chat_history
        text = render(template, chat_history, bos=bos)
        spoken = last["content"].strip()
        return text[: text.rindex(spoken) + len(spoken)]

    def chat_template(self, _name: bool | str = False) -> str:
        """Jinja source of the template."""
        return self._voice.template or ""

    # ------------------------------------------------------------ likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether they are what greedy decoding gives.

        Requests that differ in their last token alone, as most choices between letters do, share
        one window.
        """
        windows: dict[tuple[int, ...], list[tuple[int, Target]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            ids = self._fitting([*context, *continuation])
            first = len(ids) - 1 - len(continuation)
            if first < 0:
                raise UnsupportedError(
                    f"a continuation of {len(continuation)} tokens does not fit a window of "
                    f"{self._longest}.",
                    hint="Raise --max-length.",
                )
            target = Target(first, tuple(continuation))
            windows.setdefault(tuple(ids[:-1]), []).append((number, target))
        scores = [Score() for _ in requests]
        members = list(windows.values())
        asked = [
            Window(ids, min(target.first for _, target in those)) for ids, those in windows.items()
        ]
        for window, chunk in self._chunks(asked):
            for number, target in members[window]:
                scores[number].see(chunk, target)
        return [(score.log_likelihood, score.greedy) for score in scores]

    def _chunks(self, asked: Sequence[Window]) -> Iterator[tuple[int, Any]]:
        step = "scoring windows"
        self._progress.start(step, len(asked))
        finished: set[int] = set()
        for chunk in self._engine.chunks(asked):
            yield chunk.window, chunk
            if chunk.start + len(chunk.logits) == len(asked[chunk.window].ids):
                finished.add(chunk.window)
                self._progress.advance(step)
        if len(finished) != len(asked):
            raise ValueError(f"{len(asked) - len(finished)} windows were not answered")

    def _fitting(self, ids: list[int]) -> list[int]:
        """Cut what is too long, behind the BOS; the last token is not read, so one more fits."""
        over = len(ids) - (self._longest + 1)
        if over <= 0:
            return ids
        self._cut += 1
        return [self._voice.bos, *ids[over + 1 :]]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of whole texts; the windows of a long one each begin with BOS."""
        pieces: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = self._voice.encode(text)
            if ids[:1] == [self._voice.bos]:
                ids = ids[1:]
            for read, predicted in get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._voice.bos,
                max_seq_len=self._longest,
                context_len=2,
            ):
                # Of the two tokens of context at least, the first makes room for the BOS.
                before = len(read) - (len(predicted) - 1)
                pieces.append((None, [self._voice.bos, *read[1:before]], list(predicted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._loglikelihood_tokens(pieces), strict=True):
            totals[owner] += found
        return totals

    # ------------------------------------------------------------ generation

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, up to the first of the strings that end them."""
        step = "generating answers"
        self._progress.start(step, len(requests))
        answers = []
        for request in requests:
            prompt, given = request.args
            answers.append(self._generated(prompt, given))
            self._progress.advance(step)
        return answers

    def _generated(self, prompt: str, given: Mapping[str, Any]) -> str:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), DEFAULT_NEW_TOKENS))
        until = handle_stop_sequences(asked.pop("until", None), eos=None)
        count = int(asked.pop("max_gen_toks"))
        sampled = [
            f"{name} {value}"
            for name, value in asked.items()
            if name not in _HARMLESS and value not in _GREEDY.get(name, ())
        ]
        if sampled:
            raise UnsupportedError(
                f"a task asks for {', '.join(sampled)}; answers are generated greedily here."
            )
        room = self._longest - count
        if room < 1:
            raise UnsupportedError(
                f"a task asks for {count} new tokens; windows have {self._longest}.",
                hint="Raise --max-length.",
            )
        ids = self.tok_encode(prompt)
        if len(ids) > room:
            self._cut += 1
            ids = [self._voice.bos, *ids[len(ids) - room + 1 :]]
        made: list[int] = []
        text = ""
        for token in self._engine.continuation(ids, most=count):
            if token in self._voice.ends:
                break
            made.append(token)
            text = self._voice.tokenizer.decode(made)
            if any(stop and stop in text for stop in until):
                break
        answer: str = postprocess_generated_text(text, until, None)
        return answer
