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


_TYPES = {
    "float": c_float,
    "int": c_int,
    "int8": c_int8,
    "int32": c_int32,
    "uint8": c_uint8,
    "uint32": c_uint32,
    "size": c_size_t,
    "bool": c_bool,
    "text": c_char_p,
    "pointer": c_void_p,
}


def _fields(declarations: str) -> Fields:
    """Fields as the header declares them: ``float top_p, temperature; int32 mirostat``."""
    fields: Fields = []
    for declaration in declarations.split(";"):
        kind, names = declaration.split(maxsplit=1)
        fields += [(name.strip(), _TYPES[kind]) for name in names.split(",")]
    return fields


def _structure(name: str, fields: Fields) -> Any:
    return type(name, (Structure,), {"_fields_": fields})


# ---------------------------------------------------------------- parameters

_LENGTHS = _fields("text model_path; int32 max_context_len, max_new_tokens, top_k")
_KEEP = _fields("int32 n_keep")
_SAMPLING = _fields(
    "float top_p, temperature, repeat_penalty, frequency_penalty, presence_penalty; "
    "int32 mirostat; float mirostat_tau, mirostat_eta"
)
_FLAGS = _fields("bool skip_special_token, is_async")
_FLAGS_WITH_EOS = _fields("bool skip_special_token, ignore_eos_token, is_async")
_IMAGE = _fields("text img_start, img_end, img_content")
_CPUS = _fields(
    "int32 base_domain_id; int8 embed_flash, enabled_cpus_num; uint32 enabled_cpus_mask"
)
_EXTEND_1_1: Fields = [("base_domain_id", c_int32), ("reserved", c_uint8 * 112)]
_EXTEND_1_2_0: Fields = [*_CPUS, ("reserved", c_uint8 * 106)]
_EXTEND_1_2_1: Fields = [
    *_CPUS,
    *_fields("uint8 n_batch; int8 use_cross_attn"),
    ("reserved", c_uint8 * 104),
]


def _param(*parts: Fields, extend: Fields) -> Any:
    fields = [field for part in parts for field in part]
    return _structure("Param", [*fields, ("extend_param", _structure("Extend", extend))])


# ---------------------------------------------------------------- input

TokenInput = _structure("TokenInput", [("input_ids", POINTER(c_int32)), ("n_tokens", c_size_t)])
_IMAGES = _fields("text prompt; pointer image_embed; size n_image_tokens")
_IMAGES_SIZED = [*_IMAGES, *_fields("size n_image, image_width, image_height")]
# 1.3.0: a prompt, eight fields of images and nine of videos, each as large as a pointer.
_IMAGES_AND_VIDEOS: Fields = [
    ("prompt", c_char_p),
    ("image", c_void_p * 8),
    ("video", c_void_p * 9),
]
_ROLE = _fields("text role; bool enable_thinking")


def _input(multimodal: Fields, *, before: Fields) -> Any:
    choices: Fields = [
        ("prompt_input", c_char_p),
        ("embed_input", TokenInput),
        ("token_input", TokenInput),
        ("multimodal_input", _structure("Multimodal", multimodal)),
    ]
    union = type("InputUnion", (Union,), {"_fields_": choices})
    fields = [*before, ("input_type", c_int), ("of", union)]
    return type("Input", (Structure,), {"_anonymous_": ("of",), "_fields_": fields})


# ---------------------------------------------------------------- inference

_INFER = _fields("int mode; pointer lora_params, prompt_cache_params")
_HISTORY = _fields("int keep_history")

# ---------------------------------------------------------------- result

_HIDDEN = _structure("LastHiddenLayer", _fields("pointer hidden_states; int embd_size, num_tokens"))
_LOGITS = _structure("Logits", _fields("pointer logits; int vocab_size, num_tokens"))
_PERF = _structure(
    "PerfStat",
    _fields(
        "float prefill_time_ms; int prefill_tokens; float generate_time_ms; int generate_tokens; "
        "float memory_usage_mb"
    ),
)
_TEXT: Fields = [*_fields("text text; int32 token_id"), ("last_hidden_layer", _HIDDEN)]

_RESULT_1_1 = _structure("Result", _TEXT)
_RESULT_1_2_0 = _structure("Result", [*_TEXT, ("logits", _LOGITS)])
_RESULT_1_2_1 = _structure("Result", [*_TEXT, ("logits", _LOGITS), ("perf", _PERF)])


def _callback(result: Any, returns: Any) -> Any:
    return CFUNCTYPE(returns, POINTER(result), c_void_p, c_int)


_CALLBACK_1_2_1 = _callback(_RESULT_1_2_1, c_int)

# ---------------------------------------------------------------- releases

_ALWAYS = tuple(
    f"rkllm_{name}" for name in ("createDefaultParam", "init", "run", "destroy", "load_lora")
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
        [*_INFER, *_fields("pointer sampling_params; int keep_history; int32 max_new_tokens")],
    ),
    callback=_structure(
        "Callback",
        [
            ("result_callback", _CALLBACK_1_2_1),
            *_fields("pointer result_userdata, tokenizer_callback, tokenizer_userdata"),
            *_fields("pointer embed_callback, embed_userdata"),
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
    **dict.fromkeys(("1.1.0", "1.1.1", "1.1.2", "1.1.3", "1.1.4"), _1_1),
    "1.2.0": _1_2_0,
    **dict.fromkeys(("1.2.1", "1.2.2", "1.2.3"), _1_2_1),
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
    kinds = {name: getattr(layout, name) for name in ("param", "input", "infer", "result")}
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
