"""Makes ``packing.safetensors``: what other programs' own packing code writes for given codes.

Nothing of gemquant runs here. Made with autoawq 0.2.9 (its ``WQLinear_GEMM.from_linear`` and
``dequantize_gemm``) and compressed-tensors 0.20.0 (``PackedQuantizationCompressor``), torch 2.13.0:

    pip install --no-deps autoawq==0.2.9
    pip install compressed-tensors==0.20.0
    python tests/golden/make_packing.py
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
import types
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor, nn

OUTPUT = Path(__file__).with_name("packing.safetensors")
ROWS, COLUMNS = 32, 64
VERSIONS = {"autoawq": "0.2.9", "compressed-tensors": "0.20.0"}


def without_package_init(name: str) -> None:
    """Let submodules of a package be imported without its ``__init__``, which wants a GPU stack."""
    parent = name.rpartition(".")[0]
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{name} is not installed.")
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


def affine(bits: int, groups: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes (rows, columns), zero points and scales (rows, groups); scales are powers of
    two, so that weights decode exactly in any type and round back to the same codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (ROWS, groups), generator=generator, dtype=torch.uint8)
    scales = 2.0 ** torch.randint(-8, -2, (ROWS, groups), generator=generator)
    return codes, zeros, scales


def decoded(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    groups = zeros.shape[1]
    centred = codes.view(ROWS, groups, -1).float() - zeros.float()[..., None]
    return (centred * scales[..., None]).view(ROWS, COLUMNS)


def awq(tensors: dict[str, Tensor]) -> None:
    for package in ("awq", "awq.modules", "awq.modules.linear"):
        without_package_init(package)
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    codes, zeros, scales = affine(4, 2, seed=1)
    linear = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.float32)
    linear.weight.data = decoded(codes, zeros, scales)
    packed = WQLinear_GEMM.from_linear(
        linear, 4, COLUMNS // 2, scales=scales.t().contiguous(), zeros=zeros.t().float()
    )
    weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, COLUMNS // 2)
    tensors |= {
        "awq.codes": codes,
        "awq.zero_points": zeros,
        "awq.scales": scales.half(),
        "awq.qweight": packed.qweight,
        "awq.qzeros": packed.qzeros,
        "awq.stored_scales": packed.scales,
        "awq.decoded": weight.t().contiguous(),
    }


def compressed(tensors: dict[str, Tensor]) -> None:
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    cases = {"w3": (3, 2, False), "w4": (4, 2, False), "w4sym": (4, 2, True), "w8": (8, 1, False)}
    for seed, (case, (bits, groups, symmetric)) in enumerate(cases.items(), 2):
        codes, zeros, scales = affine(bits, groups, seed)
        if symmetric:
            zeros = torch.full_like(zeros, 2 ** (bits - 1))
        args = QuantizationArgs(
            num_bits=bits,
            symmetric=symmetric,
            strategy="channel" if groups == 1 else "group",
            group_size=None if groups == 1 else COLUMNS // groups,
        )
        state = {"weight": decoded(codes, zeros, scales), "weight_scale": scales}
        if not symmetric:
            state["weight_zero_point"] = (zeros.int() - 2 ** (bits - 1)).to(torch.int8)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        stored = compressor.compress(state, scheme)
        # Exact in bfloat16, as the scales are powers of two.
        stored["decoded"] = compressor.decompress(stored, scheme)["weight"].bfloat16()
        stored["weight_scale"] = stored["weight_scale"].bfloat16()
        stored |= {"codes": codes, "zero_points": zeros}
        tensors |= {f"{case}.{name}": tensor.contiguous() for name, tensor in stored.items()}


def main() -> None:
    for package, version in VERSIONS.items():
        installed = importlib.metadata.version(package)
        if installed != version:
            raise SystemExit(
                f"{package} {installed} is installed; the golden file is of {version}."
            )
    tensors: dict[str, Tensor] = {}
    awq(tensors)
    compressed(tensors)
    made_with = ", ".join(f"{package} {version}" for package, version in VERSIONS.items())
    save_file(tensors, OUTPUT, metadata={"made_with": made_with})
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
