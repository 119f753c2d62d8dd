"""Loads one folder after the other in vLLM, in one process; started by the harness.

``job``: ``program`` (gemquant's), ``folders``, ``ids`` (windows), ``out``. Written for each folder:
logits of all windows (windows, tokens, vocabulary), vLLM's own log-probabilities of the tokens that
follow (windows, tokens - 1), the greedy continuation; or ``refused``, with vLLM's words.
"""

import gc
import importlib.util
import os
import sys
from pathlib import Path


def run(job, report):
    program = importlib.util.spec_from_file_location("program", job["program"])
    vllm = sys.modules["program"] = importlib.util.module_from_spec(program)
    program.loader.exec_module(vllm)
    vllm.isolate()
    import torch

    report({"event": "start", "task": "vLLM", "total": len(job["folders"])})
    for folder in map(Path, job["folders"]):
        engine, found = None, {}
        try:
            settings = {"dtype": "auto", "max_tokens": 256, "cache_bytes": 100_000_000}
            engine = vllm.Engine({"model": str(folder), **settings})
            found = measured(engine, job)
        except Exception as error:  # noqa: BLE001 - what vLLM says of a folder is a result
            found["refused"] = f"{type(error).__name__}: {error}"
        torch.save(found, str(Path(job["out"]) / f"{folder.name}.pt"))
        report({"event": "advance", "task": "vLLM"})
        close(engine)
        engine = None
        gc.collect()
    return {}


def measured(engine, job):
    import torch
    from vllm import SamplingParams

    logits, likelihoods = [], []
    for ids in job["ids"]:
        engine.read(ids)
        answer = engine.logits(0, len(ids))
        raw = torch.frombuffer(bytearray(Path("logits").read_bytes()), dtype=torch.uint8)
        logits.append(raw.view(getattr(torch, answer["dtype"])).view(answer["shape"]).float())
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (output,) = engine.llm.generate(
            [{"prompt_token_ids": ids}], sampling_params=sampling, use_tqdm=False
        )
        own = [each[token].logprob for each, token in zip(output.prompt_logprobs[1:], ids[1:])]  # noqa: B905
        likelihoods.append(torch.tensor(own))
    return {
        "class": engine.llm.apply_model(lambda model: type(model).__name__)[0],
        "dtype": engine.facts()["dtype"],
        "logits": torch.stack(logits),
        "likelihoods": torch.stack(likelihoods),
        "tokens": engine.time(job["ids"][0], 8)["tokens"],
    }


def close(engine):
    from vllm.distributed import cleanup_dist_env_and_memory

    if engine is not None:
        engine.llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
    os.environ.pop("VLLM_DIST_IDENT", None)
