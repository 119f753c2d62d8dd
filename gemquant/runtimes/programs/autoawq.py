"""AutoAWQ 0.2.9 on a plain Gemma folder: its own search, its own container.

Nothing of its algorithm is changed. Calibration windows come as token ids, so that it sees the
text that we would; under transformers 5 it computes in the folder's own type.

On a processor it would lose the weights: before it tries scales it keeps ``state_dict()`` with
``.cpu()``, which copies on a GPU and does not here, and then multiplies the same memory by one
scale after the other. It gets copies, as on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "quantizing with AutoAWQ"


def run(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Quantize and save. Returns the names of the weight files in ``job["out"]``."""
    report({"event": "start", "task": TASK, "total": 3})
    import torch
    from awq import AutoAWQForCausalLM

    torch.set_num_threads(job["threads"])
    _keep_copies()
    windows = json.loads(Path(job["windows"]).read_text(encoding="utf-8"))
    model = AutoAWQForCausalLM.from_pretrained(
        job["model"], trust_remote_code=False, safetensors=True, device_map="cpu"
    )
    report({"event": "advance", "task": TASK})
    model.quantize(
        tokenizer=None,
        quant_config={
            "w_bit": 4,
            "q_group_size": job["group_size"],
            "zero_point": True,
            "version": "GEMM",
        },
        calib_data=windows,
        max_calib_samples=len(windows),
        max_calib_seq_len=len(windows[0]),
        apply_clip=job["clip"],
    )
    report({"event": "advance", "task": TASK})
    out = Path(job["out"])
    model.save_quantized(str(out), safetensors=True)
    report({"event": "advance", "task": TASK})
    weights = sorted(p.name for p in out.iterdir() if ".safetensors" in p.name)
    return {"files": weights, "versions": _versions()}


def _keep_copies() -> None:
    """Let the search for scales keep copies of a module's weights, on every device."""
    from awq.quantize.quantizer import AwqQuantizer

    search = AwqQuantizer._compute_best_scale  # noqa: SLF001 (there is no other place)

    def searching(self: Any, x: Any, w_mean: Any, x_mean: Any, module: Any, *rest: Any) -> Any:
        state_dict = module.state_dict
        module.state_dict = lambda: {name: each.clone() for name, each in state_dict().items()}
        try:
            return search(self, x, w_mean, x_mean, module, *rest)
        finally:
            del module.state_dict

    AwqQuantizer._compute_best_scale = searching  # noqa: SLF001


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("autoawq", "torch", "transformers", "triton")}
