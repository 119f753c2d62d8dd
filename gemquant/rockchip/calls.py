"""The calls of rkllm-toolkit: the parameters that a release has, each with its value.

Which release has which parameter is in ``targets/toolkits/rkllm-toolkit.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.rockchip.options import Conversion

MODEL, CALIBRATION = "model", "calibration.json"


def calls(conversion: Conversion, *, dtype: str, file: str) -> list[dict[str, Any]]:
    """Function and arguments of each call, in order; paths are relative to the job.

    dtype: of the model folder. file: name of the file to write.
    """
    release, options = conversion.release, conversion.options
    load = {
        "model": MODEL,
        "model_lora": None,  # merged already
        "device": "cpu",
        "dtype": dtype,
        "custom_config": None,
        "load_weight": True,
    }
    build = {
        "do_quantization": True,
        "optimization_level": options.optimization_level,
        "quantized_dtype": options.quantized_dtype,
        "quantized_algorithm": options.algorithm,
        "num_npu_core": options.npu_cores,
        "extra_qparams": None,
        "dataset": CALIBRATION if takes_prompts(conversion) else None,
        "hybrid_rate": options.hybrid_rate,
        "target_platform": conversion.npu.platform,
        **({"max_context": options.max_context} if options.max_context else {}),
    }
    export = {"export_path": file, "export_tokenizer": True, "export_embedding": True}
    return [
        _call("load_huggingface", load, release.load),
        _call("build", build, release.build),
        _call("export_rkllm", export, release.export),
    ]


def takes_prompts(conversion: Conversion) -> bool:
    """Whether the toolkit needs calibration prompts: not before 1.1.0, nor for GPTQ codes.

    The documentation's example of a GPTQ conversion passes None (SDK 1.2.0, section 3.1.5).
    """
    return conversion.release.calibration == "prompt" and not conversion.options.gptq


def file_name(model: str, conversion: Conversion) -> str:
    """Name a file as the community does, by its options: ``…-hybrid-ratio-0.5.rkllm``."""
    options = conversion.options
    return (
        f"{model}-{conversion.npu.platform}-{options.quantized_dtype}-opt-"
        f"{options.optimization_level}-hybrid-ratio-{float(options.hybrid_rate)}.rkllm"
    )


def _call(function: str, values: Mapping[str, Any], parameters: tuple[str, ...]) -> dict[str, Any]:
    return {
        "function": function,
        "arguments": {name: values[name] for name in parameters if name in values},
    }
