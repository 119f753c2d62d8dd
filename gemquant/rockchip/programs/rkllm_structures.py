"""The structures of the runtime ``librkllmrt``, release by release, on 64-bit systems.

Read from ``rkllm.h`` of every release in https://github.com/airockchip/rknn-llm (the history of
rkllm-runtime/Linux/librkllm_api/include). They change without a sign: each is written down here
with its size and the offsets of what is used, and compared before a library is called. Also runs on
boards: standard library only, Python 3.8.
"""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
    sizeof,
)
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    Fields = list[tuple[str, Any]]

INPUT_TOKEN = 1
INFER_GENERATE, INFER_GET_LOGITS = 0, 2
RUN_NORMAL, RUN_WAITING, RUN_FINISH, RUN_ERROR = 0, 1, 2, 3


class Layout(NamedTuple):
    """What a release of the runtime takes and gives.

    name: the first release that has it. sizes: of parameters, input, inference parameters and
    result. offsets: of the fields that are used. int_callback: callbacks return a status.
    callback: the structure that rkllm_init takes; None where it takes the function itself.
    clear_arguments: how many arguments rkllm_clear_kv_cache has after the handle; None without it.
    logits, statistics: whether a result has them. needs, lacks: names that the library exports.
    """

    name: str
    param: type[Structure]
    input: type[Structure]
    infer: type[Structure]
    result: type[Structure]
    callback_type: Any
    callback: Any
    sizes: tuple[int, int, int, int]
    offsets: dict[str, int]
    clear_arguments: Any
    logits: bool
    statistics: bool
    needs: tuple[str, ...]
    lacks: tuple[str, ...]


def _structure(name: str, fields: Fields) -> Any:
    return type(name, (Structure,), {"_fields_": fields})


# ---------------------------------------------------------------- parameters

_SAMPLING: Fields = [
    ("top_p", c_float),
    ("temperature", c_float),
    ("repeat_penalty", c_float),
    ("frequency_penalty", c_float),
    ("presence_penalty", c_float),
    ("mirostat", c_int32),
    ("mirostat_tau", c_float),
    ("mirostat_eta", c_float),
]
_LENGTHS: Fields = [
    ("model_path", c_char_p),
    ("max_context_len", c_int32),
    ("max_new_tokens", c_int32),
    ("top_k", c_int32),
]
_KEEP: Fields = [("n_keep", c_int32)]
_IMAGE: Fields = [("img_start", c_char_p), ("img_end", c_char_p), ("img_content", c_char_p)]
_FLAGS: Fields = [("skip_special_token", c_bool), ("is_async", c_bool)]
_FLAGS_WITH_EOS: Fields = [
    ("skip_special_token", c_bool),
    ("ignore_eos_token", c_bool),
    ("is_async", c_bool),
]
_CPUS: Fields = [
    ("base_domain_id", c_int32),
    ("embed_flash", c_int8),
    ("enabled_cpus_num", c_int8),
    ("enabled_cpus_mask", c_uint32),
]
_EXTEND_1_1: Fields = [("base_domain_id", c_int32), ("reserved", c_uint8 * 112)]
_EXTEND_1_2_0: Fields = [*_CPUS, ("reserved", c_uint8 * 106)]
_EXTEND_1_2_1: Fields = [
    *_CPUS,
    ("n_batch", c_uint8),
    ("use_cross_attn", c_int8),
    ("reserved", c_uint8 * 104),
]


def _param(*parts: Fields, extend: Fields) -> Any:
    fields = [field for part in parts for field in part]
    return _structure("Param", [*fields, ("extend_param", _structure("Extend", extend))])


# ---------------------------------------------------------------- input

TokenInput = _structure("TokenInput", [("input_ids", POINTER(c_int32)), ("n_tokens", c_size_t)])
_IMAGES: Fields = [("prompt", c_char_p), ("image_embed", c_void_p), ("n_image_tokens", c_size_t)]
_IMAGES_SIZED: Fields = [
    *_IMAGES,
    ("n_image", c_size_t),
    ("image_width", c_size_t),
    ("image_height", c_size_t),
]
# 1.3.0: a prompt, eight fields of images and nine of videos, each as large as a pointer.
_IMAGES_AND_VIDEOS: Fields = [
    ("prompt", c_char_p),
    ("image", c_void_p * 8),
    ("video", c_void_p * 9),
]
_ROLE: Fields = [("role", c_char_p), ("enable_thinking", c_bool)]


def _input(multimodal: Fields, *, before: Fields) -> Any:
    union = type(
        "InputUnion",
        (Union,),
        {
            "_fields_": [
                ("prompt_input", c_char_p),
                ("embed_input", TokenInput),
                ("token_input", TokenInput),
                ("multimodal_input", _structure("Multimodal", multimodal)),
            ]
        },
    )
    return type(
        "Input",
        (Structure,),
        {"_anonymous_": ("of",), "_fields_": [*before, ("input_type", c_int), ("of", union)]},
    )


# ---------------------------------------------------------------- inference

_INFER: Fields = [("mode", c_int), ("lora_params", c_void_p), ("prompt_cache_params", c_void_p)]
_HISTORY: Fields = [("keep_history", c_int)]

# ---------------------------------------------------------------- result

_HIDDEN = _structure(
    "LastHiddenLayer",
    [("hidden_states", c_void_p), ("embd_size", c_int), ("num_tokens", c_int)],
)
_LOGITS = _structure("Logits", [("logits", c_void_p), ("vocab_size", c_int), ("num_tokens", c_int)])
_PERF = _structure(
    "PerfStat",
    [
        ("prefill_time_ms", c_float),
        ("prefill_tokens", c_int),
        ("generate_time_ms", c_float),
        ("generate_tokens", c_int),
        ("memory_usage_mb", c_float),
    ],
)
_TEXT: Fields = [("text", c_char_p), ("token_id", c_int32), ("last_hidden_layer", _HIDDEN)]

_RESULT_1_1 = _structure("Result", _TEXT)
_RESULT_1_2_0 = _structure("Result", [*_TEXT, ("logits", _LOGITS)])
_RESULT_1_2_1 = _structure("Result", [*_TEXT, ("logits", _LOGITS), ("perf", _PERF)])


def _callback(result: Any, returns: Any) -> Any:
    return CFUNCTYPE(returns, POINTER(result), c_void_p, c_int)


_CALLBACK_1_2_1 = _callback(_RESULT_1_2_1, c_int)

# ---------------------------------------------------------------- releases

_ALWAYS = (
    "rkllm_createDefaultParam",
    "rkllm_init",
    "rkllm_run",
    "rkllm_destroy",
    "rkllm_load_lora",
)
_CLEAR, _TOOLS = "rkllm_clear_kv_cache", "rkllm_set_function_tools"
_INPUT_OFFSETS = {"input.input_type": 0, "input.token_input": 8}
_INPUT_OFFSETS_1_2_1 = {"input.role": 0, "input.input_type": 12, "input.token_input": 16}

_1_1 = Layout(
    name="1.1.0",
    param=_param(_LENGTHS, _SAMPLING, _FLAGS, _IMAGE, extend=_EXTEND_1_1),
    input=_input(_IMAGES, before=[]),
    infer=_structure("InferParam", _INFER),
    result=_RESULT_1_1,
    callback_type=_callback(_RESULT_1_1, None),
    callback=None,
    sizes=(200, 32, 24, 32),
    offsets={
        "param.max_new_tokens": 12,
        "param.top_k": 16,
        "param.top_p": 20,
        "param.skip_special_token": 52,
        "param.is_async": 53,
        "param.extend_param": 80,
        **_INPUT_OFFSETS,
        "infer.mode": 0,
        "result.token_id": 8,
    },
    clear_arguments=None,
    logits=False,
    statistics=False,
    needs=_ALWAYS,
    lacks=(_CLEAR, _TOOLS),
)
_1_2_0 = Layout(
    name="1.2.0",
    param=_param(_LENGTHS, _KEEP, _SAMPLING, _FLAGS, _IMAGE, extend=_EXTEND_1_2_0),
    input=_input(_IMAGES, before=[]),
    infer=_structure("InferParam", [*_INFER, *_HISTORY]),
    result=_RESULT_1_2_0,
    callback_type=_callback(_RESULT_1_2_0, None),
    callback=None,
    sizes=(208, 32, 32, 48),
    offsets={
        "param.max_new_tokens": 12,
        "param.top_k": 16,
        "param.n_keep": 20,
        "param.top_p": 24,
        "param.skip_special_token": 56,
        "param.is_async": 57,
        "param.extend_param": 88,
        **_INPUT_OFFSETS,
        "infer.mode": 0,
        "infer.keep_history": 24,
        "result.token_id": 8,
        "result.logits": 32,
    },
    clear_arguments=1,
    logits=True,
    statistics=False,
    needs=(*_ALWAYS, _CLEAR),
    lacks=(_TOOLS,),
)
_1_2_1 = _1_2_0._replace(
    name="1.2.1",
    param=_param(_LENGTHS, _KEEP, _SAMPLING, _FLAGS, _IMAGE, extend=_EXTEND_1_2_1),
    input=_input(_IMAGES_SIZED, before=_ROLE),
    result=_RESULT_1_2_1,
    callback_type=_CALLBACK_1_2_1,
    sizes=(208, 64, 32, 72),
    offsets={
        **{name: at for name, at in _1_2_0.offsets.items() if not name.startswith("input.")},
        **_INPUT_OFFSETS_1_2_1,
        "result.perf": 48,
    },
    clear_arguments=3,
    statistics=True,
    needs=(*_ALWAYS, _CLEAR, _TOOLS),
    lacks=(),
)
_1_3_0 = _1_2_1._replace(
    name="1.3.0",
    param=_param(_LENGTHS, _KEEP, _SAMPLING, _FLAGS_WITH_EOS, extend=_EXTEND_1_2_1),
    input=_input(_IMAGES_AND_VIDEOS, before=_ROLE),
    infer=_structure(
        "InferParam",
        [*_INFER, ("sampling_params", c_void_p), *_HISTORY, ("max_new_tokens", c_int32)],
    ),
    callback=_structure(
        "Callback",
        [
            ("result_callback", _CALLBACK_1_2_1),
            ("result_userdata", c_void_p),
            ("tokenizer_callback", c_void_p),
            ("tokenizer_userdata", c_void_p),
            ("embed_callback", c_void_p),
            ("embed_userdata", c_void_p),
        ],
    ),
    sizes=(184, 160, 40, 72),
    offsets={
        **_1_2_1.offsets,
        "param.ignore_eos_token": 57,
        "param.is_async": 58,
        "param.extend_param": 60,
        "infer.keep_history": 32,
        "infer.max_new_tokens": 36,
    },
)

LAYOUTS = {
    "1.1.0": _1_1,
    "1.1.1": _1_1,
    "1.1.2": _1_1,
    "1.1.3": _1_1,
    "1.1.4": _1_1,
    "1.2.0": _1_2_0,
    "1.2.1": _1_2_1,
    "1.2.2": _1_2_1,
    "1.2.3": _1_2_1,
    "1.3.0": _1_3_0,
}
"""Every release that is known, and what it takes. 1.0 takes text alone: nothing to measure with."""


def layout_of(version: str) -> Layout:
    """The structures of a release, compared with what is written down of them.

    ValueError for a release that is not known; RuntimeError where this system lays them out
    differently, as a 32-bit one does.
    """
    if version.startswith("1.0."):
        raise ValueError(
            f"librkllmrt {version} takes text alone, neither tokens nor logits; use 1.1.0 or "
            "newer, and convert with that toolkit"
        )
    if version not in LAYOUTS:
        raise ValueError(f"librkllmrt {version} is not known; known are {', '.join(LAYOUTS)}")
    layout = LAYOUTS[version]
    kinds = {
        "param": layout.param,
        "input": layout.input,
        "infer": layout.infer,
        "result": layout.result,
    }
    sizes = tuple(sizeof(kind) for kind in kinds.values())
    if sizes != layout.sizes:
        raise RuntimeError(
            f"structures of librkllmrt {version} take {sizes} bytes here, not {layout.sizes}"
        )
    for name, expected in layout.offsets.items():
        kind, _, field = name.partition(".")
        found = getattr(kinds[kind], field).offset
        if found != expected:
            raise RuntimeError(f"librkllmrt {version}: {name} lies at {found}, not at {expected}")
    if layout.callback is not None and sizeof(layout.callback) != 48:
        raise RuntimeError(f"librkllmrt {version}: its callbacks do not take 48 bytes here")
    return layout
