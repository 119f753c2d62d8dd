"""onnxruntime-genai's model builder on a plain Gemma folder, with what it gets wrong put right.

Written against onnxruntime-genai 0.18 with transformers 5. What differs from calling it by hand:

- the embedding's scale is √hidden, where the builder rounds it to two decimals;
- (1 + w) of the norms is formed in float32, whatever type the folder stores;
- Gemma 3's two rotary tables come from ``rope_parameters``, which the builder does not know, and
  linear scaling changes the global one alone;
- onnxruntime's own name for RMS normalization becomes the standard's, so that onnx.checker passes;
- every layer keeps all its keys and values, so that plain onnxruntime runs the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "building ONNX"
OPSET_WITH_RMS_NORMALIZATION = 23
IR_VERSION = 11


def run(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Build, rename, check. Returns the names of the files in ``job["out"]``."""
    report({"event": "start", "task": TASK, "total": 3})
    out = Path(job["out"])
    cache = str(out.parent / "cache")
    from onnxruntime_genai.models import builder

    arguments = ("", job["model"], str(out), job["precision"], job["provider"], cache)
    options = builder.parse_extra_options(*arguments, job["options"])
    if job["rope"] is not None:
        _flatten_rope(options["hf_details"]["hf_config"], job["rope"])
    _correct(builder, job["rope"])
    report({"event": "advance", "task": TASK})
    builder.create_model(*arguments, **options)
    report({"event": "advance", "task": TASK})
    _standardize(out / "model.onnx")
    report({"event": "advance", "task": TASK})
    return {"files": sorted(path.name for path in out.iterdir()), "versions": _versions()}


def _flatten_rope(config: Any, rope: dict[str, Any]) -> None:
    """Spell Gemma 3's rotary parameters as the builder reads them."""
    flat = {"rope_type": rope["type"], "rope_theta": rope["global_theta"]}
    config.rope_parameters = {**flat, "factor": rope["factor"]}
    config.rope_theta = rope["global_theta"]
    config.rope_local_base_freq = rope["local_theta"]


def _correct(builder: Any, rope: dict[str, Any] | None) -> None:
    """Override what the builder gets wrong, in its own classes."""
    gemma, gemma3 = builder.GemmaModel, builder.Gemma3Model
    initialize, load = gemma.__init__, gemma.load_weights

    def initialize_with_exact_scale(self: Any, config: Any, *rest: Any) -> None:
        initialize(self, config, *rest)
        self.embed_attrs["scale"] = math.sqrt(self.hidden_size)

    def load_with_wide_norms(self: Any, folder: str) -> Any:
        model = load(self, folder)
        for name, parameter in model.named_parameters():
            if "norm" in name.split(".")[-2]:
                parameter.data = parameter.data.float()
        return model

    def make_both_rotary_tables(self: Any) -> None:
        if rope is None:
            raise ValueError("a Gemma 3 without its rotary parameters")
        local = {**self.rope_attrs, "theta": rope["local_theta"], "rescale_factors": 1}
        for kind in ("global", "local"):
            cos, sin = "cos_cache_" + kind, "sin_cache_" + kind
            setattr(self, f"cos_cache_{kind}_name", cos)
            setattr(self, f"sin_cache_{kind}_name", sin)
            if kind == "local":
                self.rope_attrs.update(local, create_caches=True)
            # The class's own method chooses a name by layer; here both are made by name.
            super(gemma3, self).make_rotary_embedding_caches(cos_cache_name=cos, sin_cache_name=sin)

    gemma.__init__ = initialize_with_exact_scale
    gemma.load_weights = load_with_wide_norms
    gemma3.make_rotary_embedding_multi_cache = make_both_rotary_tables


def _standardize(path: Path) -> None:
    """Rename the operator that only onnxruntime knows under the standard's domain, and check.

    RMSNormalization of opset 23 has the same inputs, attributes and meaning; onnxruntime computes
    the same bits with it.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization" and node.domain == "":
            node.op_type = "RMSNormalization"
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = max(imported.version, OPSET_WITH_RMS_NORMALIZATION)
    model.ir_version = max(model.ir_version, IR_VERSION)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {
        name: metadata.version(name)
        for name in ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers")
    }
