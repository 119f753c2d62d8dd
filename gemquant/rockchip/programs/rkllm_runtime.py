"""A loaded ``librkllmrt``: its release, a model in it, runs of tokens.

Runs on boards: standard library only, Python 3.8. As a program, PYTHON rkllm_runtime.py LIBRARY, it
makes a library print its version.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # isolated, Python does not look there

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemquant.rockchip.programs import rkllm_structures as structures
else:
    import rkllm_structures as structures

SECONDS_TO_ASK = 60
LARGEST_PARAM = 1024
_VERSION = re.compile(r"rkllm-runtime version: (\d+\.\d+\.\d+[a-z0-9]*)")
_EXTEND = ("base_domain_id", "embed_flash", "enabled_cpus_num", "enabled_cpus_mask", "n_batch")


class Refused(Exception):  # noqa: N818 - a message for the user
    """What cannot be done, in words for the user."""


# ---------------------------------------------------------------- which release


def reported_version(library: str) -> str | None:
    """The version that a library prints when it loads a missing file, or None.

    In a separate process, as the structures are unknown before the release. The path is the first
    field of the parameters in every release; the other defaults come from the library itself.
    """
    command = [sys.executable, "-I", "-B", str(Path(__file__).resolve()), library]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS_TO_ASK,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    else:
        output = process.stdout
    match = _VERSION.search(output.decode("utf-8", "replace"))
    return match.group(1) if match else None


def ask(library: str) -> None:
    """Make a library print its version: let it load a missing file."""
    loaded = ctypes.CDLL(library)

    class Param(ctypes.Structure):
        _fields_ = [("model_path", c_char_p), ("rest", ctypes.c_uint8 * LARGEST_PARAM)]

    loaded.rkllm_createDefaultParam.restype = Param
    loaded.rkllm_createDefaultParam.argtypes = []
    param = loaded.rkllm_createDefaultParam()
    param.model_path = b"/nonexistent.rkllm"
    handle, nothing = c_void_p(), (ctypes.c_uint8 * 64)()
    loaded.rkllm_init(byref(handle), byref(param), byref(nothing))
    ctypes.CDLL(None).fflush(None)


def version_of(library: str, stated: str | None) -> str:
    """The release of a library; Refused if it reports none, or another than ``stated``."""
    reported = reported_version(library)
    if reported is not None and stated is not None and reported != stated:
        raise Refused(f"{library} is release {reported}, not {stated}")
    version = reported or stated
    if version is None:
        raise Refused(f"{library} does not report its release; state it with --board-release")
    return version


# ---------------------------------------------------------------- the runtime


class Run:
    """Results of one run, as the callback receives them."""

    def __init__(self, rows: Callable[[Any], None] | None) -> None:
        self.rows = rows
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self.statistics: dict[str, float] | None = None
        self.finished = False
        self.failure: BaseException | None = None


class Runtime:
    """A loaded library with a model in it."""

    def __init__(self, path: str, version: str) -> None:
        self.layout = structures.layout_of(version)
        self.library = ctypes.CDLL(path)
        self._require_exports(path, version)
        layout = self.layout
        self.library.rkllm_createDefaultParam.restype = layout.param
        self.library.rkllm_createDefaultParam.argtypes = []
        taken = layout.callback_type if layout.callback is None else POINTER(layout.callback)
        self.library.rkllm_init.argtypes = [POINTER(c_void_p), POINTER(layout.param), taken]
        self.library.rkllm_run.argtypes = [
            c_void_p,
            POINTER(layout.input),
            POINTER(layout.infer),
            c_void_p,
        ]
        self.library.rkllm_destroy.argtypes = [c_void_p]
        if layout.clear_arguments is not None:
            clear_types = (c_void_p, c_int, POINTER(c_int), POINTER(c_int))
            count = 1 + layout.clear_arguments
            self.library.rkllm_clear_kv_cache.argtypes = clear_types[:count]
        self.handle = c_void_p()
        self.used = False
        self.current: Run | None = None
        self.callback = layout.callback_type(self._receive)

    def _require_exports(self, path: str, version: str) -> None:
        layout = self.layout
        missing = [name for name in layout.needs if not hasattr(self.library, name)]
        surplus = [name for name in layout.lacks if hasattr(self.library, name)]
        if missing or surplus:
            wrong = [f"lacks {name}" for name in missing] + [f"has {name}" for name in surplus]
            raise Refused(f"{path} is not release {version} as published: it {', '.join(wrong)}")

    def load(self, model: str, max_context: int, new_tokens: int) -> dict[str, int]:
        """Load a model; return the extended parameters that the runtime chose."""
        param = self.library.rkllm_createDefaultParam()
        chosen = {
            name: int(getattr(param.extend_param, name))
            for name in _EXTEND
            if hasattr(param.extend_param, name)
        }
        param.model_path = os.fsencode(model)
        param.max_context_len = max_context
        param.max_new_tokens = new_tokens
        param.top_k = 1  # greedy
        param.top_p = param.temperature = param.repeat_penalty = 1.0
        param.frequency_penalty = param.presence_penalty = 0.0
        param.mirostat = 0
        param.skip_special_token = False
        param.is_async = False
        if hasattr(param, "ignore_eos_token"):
            param.ignore_eos_token = True
        taken = self.callback
        if self.layout.callback is not None:
            taken = self.layout.callback()
            taken.result_callback = self.callback
            self.taken = taken  # the runtime may keep the pointer
            taken = byref(taken)
        status = self.library.rkllm_init(byref(self.handle), byref(param), taken)
        if status != 0:
            raise Refused(f"rkllm_init returned {status}; its output is below")
        return chosen

    def run(self, ids: list[int], mode: int, new_tokens: int, rows: Any = None) -> Run:
        """Clear the cache and run some tokens."""
        if self.used and self.layout.clear_arguments is not None:
            rest = [0, None, None][: self.layout.clear_arguments]
            self.library.rkllm_clear_kv_cache(self.handle, *rest)
        self.used = True
        array = (c_int32 * len(ids))(*ids)
        inputs, infer = self.layout.input(), self.layout.infer()
        inputs.input_type = structures.INPUT_TOKEN
        inputs.token_input.input_ids = ctypes.cast(array, POINTER(c_int32))
        inputs.token_input.n_tokens = len(ids)
        if hasattr(inputs, "role"):
            inputs.role = b"user"
        infer.mode = mode
        if hasattr(infer, "max_new_tokens"):
            infer.max_new_tokens = new_tokens
        current = self.current = Run(rows)
        self.started = time.perf_counter()
        status = self.library.rkllm_run(self.handle, byref(inputs), byref(infer), None)
        if current.failure is not None:
            raise current.failure
        if status != 0:
            raise Refused(f"rkllm_run returned {status}; its output is below")
        if not current.finished:
            raise Refused("rkllm_run returned 0 without reporting the end")
        return current

    def _receive(self, result: Any, _userdata: Any, state: int) -> int | None:
        seconds, current = time.perf_counter(), self.current
        try:
            if current is not None:
                self._note(current, result, state, seconds)
        except BaseException as error:  # noqa: BLE001 - ctypes would only print it
            if current is not None:
                current.failure = error
        return 0 if self.layout.statistics else None

    def _note(self, current: Run, result: Any, state: int, seconds: float) -> None:
        if state == structures.RUN_ERROR:
            raise Refused("the runtime reported an error; its output is below")
        if result and current.rows is not None and result.contents.logits.logits:
            current.rows(result.contents.logits)
        elif (
            result
            and current.rows is None
            and state in (structures.RUN_NORMAL, structures.RUN_WAITING)
        ):
            current.tokens.append(int(result.contents.token_id))
            current.seconds.append(seconds - self.started)
        if state == structures.RUN_FINISH:
            current.finished = True
            if result and self.layout.statistics:
                perf = result.contents.perf
                current.statistics = {name: float(getattr(perf, name)) for name, _ in perf._fields_}

    def close(self) -> None:
        """Free the model."""
        self.library.rkllm_destroy(self.handle)


if __name__ == "__main__":
    ask(sys.argv[1])
