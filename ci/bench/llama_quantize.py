"""llama.cpp's own quantize, in process: the oracle of the GGUF tests and the peer of the benchmark.

The library is the prebuilt one of an npm package, with llama.cpp v0.5.0; its sources are in the
bundle of `node-llama-cpp@3.22.1`. Get it, and quantize:

    npm install --prefix build/llama.cpp --ignore-scripts @node-llama-cpp/linux-x64@3.22.1
    python ci/bench/llama_quantize.py model-bf16.gguf model-q4_k_m.gguf Q4_K_M --threads 2

Structures are laid out by hand here, so the library's defaults are read back and compared before
anything runs: another version is an error, not a wrong result.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
LLAMA_CPP = "v0.5.0"
INSTALL = f"npm install --prefix build/llama.cpp --ignore-scripts {PACKAGE}"
FOLDER = (
    Path(__file__).resolve().parents[2]
    / "build/llama.cpp/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
)
_TYPE_COUNT = 43


class _Params(ctypes.Structure):
    """``llama_model_quantize_params`` of v0.5.0."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    )


_DEFAULTS = {
    "nthread": 0, "ftype": int(LlamaFileType.MOSTLY_Q8_0), "output_tensor_type": _TYPE_COUNT,
    "token_embedding_type": _TYPE_COUNT, "allow_requantize": False,
    "quantize_output_tensor": True, "only_copy": False, "pure": False, "keep_split": False,
    "dry_run": False, "imatrix": None, "kv_overrides": None, "tt_overrides": None,
    "prune_layers": None, "max_buf_size": 8 << 30,
}  # fmt: skip


class _Override(ctypes.Structure):
    """``llama_model_tensor_override``: a regular expression and a ggml type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _Importance(ctypes.Structure):
    """``llama_model_imatrix_data``: a tensor's name and Σx² / tokens for each of its columns."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class QuantizeOptions:
    """llama-quantize's options; types by ggml's name, overrides in lower case as it makes them."""

    threads: int = 1
    pure: bool = False
    output_type: str | None = None
    embedding_type: str | None = None
    overrides: Sequence[tuple[str, str]] = ()
    allow_requantize: bool = False


class Llama:
    """llama.cpp's shared library."""

    def __init__(self, folder: Path = FOLDER) -> None:
        path = folder / f"libllama.{LLAMA_CPP}.so"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; install it: {INSTALL}")
        self.ggml = _ggml(folder / "libggml-base.so")
        self._library = ctypes.CDLL(str(path))
        self._library.llama_model_quantize_default_params.restype = _Params
        self._library.llama_model_quantize.argtypes = (
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.POINTER(_Params),
        )
        self._library.llama_model_quantize.restype = ctypes.c_uint32
        self.log: list[str] = []
        # Kept on the instance: the library calls it for as long as it lives.
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._on_log = kind(lambda _level, text, _: self.log.append(text.decode(errors="replace")))
        self._library.llama_log_set.argtypes = (kind, ctypes.c_void_p)
        self._library.llama_log_set(self._on_log, None)
        defaults = self._library.llama_model_quantize_default_params()
        read = {name: getattr(defaults, name) for name, *_ in _Params._fields_}
        if read != _DEFAULTS:
            raise RuntimeError(f"{path}: its defaults are not those of {LLAMA_CPP}: {read}")

    def quantize(
        self,
        source: Path,
        target: Path,
        file_type: str,
        options: QuantizeOptions,
        importance: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Run ``llama_model_quantize``. importance: float32, one value per column, by tensor.

        Raises RuntimeError with llama.cpp's own words.
        """
        params = self._library.llama_model_quantize_default_params()
        kept: list[object] = []
        params.nthread, params.pure = options.threads, options.pure
        params.ftype = _file_type(file_type)
        params.allow_requantize = options.allow_requantize
        if options.output_type is not None:
            params.output_tensor_type = GGMLQuantizationType[options.output_type]
        if options.embedding_type is not None:
            params.token_embedding_type = GGMLQuantizationType[options.embedding_type]
        if options.overrides:
            rows = [_Override(p.encode(), GGMLQuantizationType[t]) for p, t in options.overrides]
            table = (_Override * (len(rows) + 1))(*rows, _Override(None, _TYPE_COUNT))
            params.tt_overrides = ctypes.addressof(table)
            kept.append(table)
        if importance is not None:
            arrays = {n: np.ascontiguousarray(v, np.float32) for n, v in importance.items()}
            pointer = ctypes.POINTER(ctypes.c_float)
            entries = [
                _Importance(n.encode(), v.ctypes.data_as(pointer), v.size)
                for n, v in arrays.items()
            ]
            matrix = (_Importance * (len(entries) + 1))(*entries, _Importance(None, None, 0))
            params.imatrix = ctypes.addressof(matrix)
            kept += [arrays, matrix]
        self.log.clear()
        code = self._library.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
        del kept
        if code:
            raise RuntimeError("".join(self.log[-8:]).strip() or f"exit code {code}")


def _ggml(path: Path) -> ctypes.CDLL:
    """ggml itself, for its ``ggml_quantize_chunk``."""
    library = ctypes.CDLL(str(path))
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, pointer, pointer, whole, whole, whole, pointer,
    )  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def _file_type(name: str) -> int:
    """``LLAMA_FTYPE_…`` by llama-quantize's name of it."""
    return int(LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"])


def read_importance(path: Path) -> dict[str, np.ndarray]:
    """Read a GGUF importance matrix as llama-quantize does, with gguf-py and nothing of ours."""
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    sums = {name.removesuffix(".in_sum2"): v for name, v in tensors.items() if "in_sum2" in name}
    importance = {}
    for name, value in sums.items():  # of experts (experts, columns), and their counts (experts, 1)
        counts = np.rint(tensors[f"{name}.counts"])
        importance[name] = np.where(counts > 0, value / np.maximum(counts, 1), 1).ravel()
    return importance


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path)
    add("target", type=Path)
    add("type", help="file type: Q4_K_M, …")
    add("--threads", type=int, default=1)
    add("--imatrix", type=Path, help="GGUF importance matrix")
    add("--pure", action="store_true")
    add("--output-type", help="ggml type of the head")
    add("--embedding-type", help="ggml type of the embedding")
    add("--tensor-type", action="append", default=[], metavar="PATTERN=TYPE")
    add("--allow-requantize", action="store_true")
    add("--library", type=Path, default=FOLDER, help="folder of the shared libraries")
    args = parser.parse_args()
    options = QuantizeOptions(
        threads=args.threads,
        pure=args.pure,
        output_type=args.output_type,
        embedding_type=args.embedding_type,
        overrides=[tuple(text.split("=", 1)) for text in args.tensor_type],
        allow_requantize=args.allow_requantize,
    )
    importance = read_importance(args.imatrix) if args.imatrix else None
    llama = Llama(args.library)
    begin = time.perf_counter()
    try:
        llama.quantize(args.source, args.target, args.type, options, importance)
    except RuntimeError as error:
        sys.exit(f"llama_model_quantize: {error}")
    print(f"{time.perf_counter() - begin:.3f} s in llama_model_quantize, {args.threads} threads")


if __name__ == "__main__":
    main()
