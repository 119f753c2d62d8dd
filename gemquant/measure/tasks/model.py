"""A runtime as a language model of lm-eval, which asks in text and reads log-likelihoods.

Gemma needs exactly one BOS. lm-eval 0.4.13's adapter for transformers puts two before rolling text
if the tokenizer adds one, and drops it when a prompt is cut. Here every window begins with one BOS.
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

from gemquant.core.protocols import Progress
from gemquant.errors import UnsupportedError
from gemquant.measure.tasks.scoring import Score, Target
from gemquant.runtimes.runtime import Chunk, LogitsRuntime, Window
from gemquant.runtimes.text import TextInterface

DEFAULT_NEW_TOKENS = 256
"""As in lm-eval's adapters, for tasks that do not set it."""

_GREEDY = {"do_sample": (False,), "temperature": (0, 0.0)}
_HARMLESS = {"top_p", "top_k"}
"""Sampling options that mean nothing where decoding is greedy."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval is not installed everywhere
    """A loaded runtime with its text interface, called by lm-eval."""

    def __init__(
        self, runtime: LogitsRuntime, text: TextInterface, max_length: int, progress: Progress
    ) -> None:
        """Run in windows of at most ``max_length`` tokens, BOS included."""
        super().__init__()
        self._runtime, self._text, self._progress = runtime, text, progress
        self._longest = max_length
        self._cut = 0

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return log-likelihoods of continuations in text, with our own progress."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    # ------------------------------------------------------------ text

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text."""
        return min(self._text.end_tokens)

    @property
    def prefix_token_id(self) -> int:
        """The BOS."""
        return self._text.bos

    @property
    def tokenizer_name(self) -> str:
        """Empty: requests are not cached."""
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
        """Return token ids after exactly one BOS; without it if ``add_special_tokens`` is False."""
        ids = self._text.encode(string)
        if add_special_tokens is False or ids[:1] == [self._text.bos]:
            return ids
        return [self._text.bos, *ids]

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation; without the generation prompt, leave its last turn open."""
        text = self._text.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        content = chat_history[-1]["content"].strip()
        return text[: text.rindex(content) + len(content)]

    def chat_template(self, _name: bool | str = False) -> str:
        """Jinja source of the template."""
        return self._text.template or ""

    # ------------------------------------------------------------ likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihoods of continuations, and whether greedy decoding gives them.

        Requests that differ only in their last token, as most choices between letters do, share a
        window.
        """
        targets: dict[tuple[int, ...], list[tuple[int, Target]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            # The last token is not read, so one more fits.
            ids = self._ending([*context, *continuation], self._longest + 1)
            first = len(ids) - 1 - len(continuation)
            if first < 0:
                raise UnsupportedError(
                    f"a continuation of {len(continuation)} tokens does not fit a window of "
                    f"{self._longest}.",
                    hint="Raise --max-length.",
                )
            target = Target(first, tuple(continuation))
            targets.setdefault(tuple(ids[:-1]), []).append((number, target))
        scores = [Score() for _ in requests]
        by_window = list(targets.values())
        windows = [
            Window(ids, min(target.first for _, target in each)) for ids, each in targets.items()
        ]
        for chunk in self._chunks(windows):
            for number, target in by_window[chunk.window]:
                scores[number].add(chunk, target)
        return [(score.log_likelihood, score.greedy) for score in scores]

    def _chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        step = "scoring windows"
        self._progress.start(step, len(windows))
        finished: set[int] = set()
        for chunk in self._runtime.logits(windows):
            yield chunk
            if chunk.start + len(chunk.logits) == len(windows[chunk.window].ids):
                finished.add(chunk.window)
                self._progress.advance(step)
        if len(finished) != len(windows):
            raise ValueError(f"{len(windows) - len(finished)} windows were not answered")

    def _ending(self, ids: list[int], room: int) -> list[int]:
        """Cut what is too long, after the BOS."""
        if len(ids) <= room:
            return ids
        self._cut += 1
        return [self._text.bos, *ids[len(ids) - room + 1 :]]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return log-likelihoods of whole texts; each window of a long one begins with BOS."""
        pieces: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = self._text.encode(text)
            if ids[:1] == [self._text.bos]:
                ids = ids[1:]
            for read, predicted in get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._text.bos,
                max_seq_len=self._longest,
                context_len=2,
            ):
                # The first of the context's two or more tokens makes room for the BOS.
                context = len(read) - (len(predicted) - 1)
                pieces.append((None, [self._text.bos, *read[1:context]], list(predicted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (likelihood, _) in zip(owners, self._loglikelihood_tokens(pieces), strict=True):
            totals[owner] += likelihood
        return totals

    # ------------------------------------------------------------ generation

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return greedy answers, up to the first of the strings that end them."""
        step = "generating answers"
        self._progress.start(step, len(requests))
        answers = []
        for request in requests:
            answers.append(self._generated(*request.args))
            self._progress.advance(step)
        return answers

    def _generated(self, prompt: str, gen_kwargs: Mapping[str, Any]) -> str:
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(gen_kwargs), DEFAULT_NEW_TOKENS))
        until = handle_stop_sequences(options.pop("until", None), eos=None)
        count = int(options.pop("max_gen_toks"))
        sampled = [
            f"{name} {value}"
            for name, value in options.items()
            if name not in _HARMLESS and value not in _GREEDY.get(name, ())
        ]
        if sampled:
            raise UnsupportedError(
                f"a task asks for {', '.join(sampled)}; gemquant generates answers greedily."
            )
        room = self._longest - count
        if room < 1:
            raise UnsupportedError(
                f"a task asks for {count} new tokens; windows have {self._longest}.",
                hint="Raise --max-length.",
            )
        ids = self._ending(self.tok_encode(prompt), room)
        generated: list[int] = []
        text = ""
        suppressed = self._text.suppressed
        for token in self._runtime.tokens(ids, limit=count, suppressed=suppressed):
            if token in self._text.end_tokens:
                break
            generated.append(token)
            text = self._text.tokenizer.decode(generated)
            if any(stop and stop in text for stop in until):
                break
        answer: str = postprocess_generated_text(text, until, None)
        return answer
