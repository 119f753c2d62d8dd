"""Whether a container holds what its manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemquant.core.artifact.manifest import Manifest, Quantization, quantization_record
from gemquant.core.scheme import INTEGER
from gemquant.errors import ArtifactError

if TYPE_CHECKING:
    from gemquant.core.protocols import Layout

_LISTED = 8


def structure_problems(manifest: Manifest, layout: Layout) -> list[ArtifactError]:
    """Compare a container's own layout with the manifest, layer by layer.

    Symmetry is left out: AWQ's container stores the zero points of both kinds and says nothing.
    """
    described = manifest.quantization
    found = quantization_record(
        described.quantizer, layout, float_dtype=described.float_dtype, file_bytes=1
    )
    said, stored = _schemes(described), _schemes(found)
    differing = [
        f"{module} ({stored.get(module, 'absent')}, not {said.get(module, 'absent')})"
        for module in {**said, **stored}
        if said.get(module) != stored.get(module)
    ]
    if not differing:
        return []
    rest = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    return [
        ArtifactError(
            "These are not stored as the manifest describes: "
            f"{', '.join(differing[:_LISTED])}{rest}."
        )
    ]


def _schemes(quantization: Quantization) -> dict[str, str]:
    schemes = dict.fromkeys(quantization.unquantized, "unquantized")
    for scheme in quantization.schemes:
        codes = "" if scheme.codes == INTEGER else f" {scheme.codes}"
        words = f"{scheme.bits} bits{codes}, group size {scheme.group_size}"
        schemes |= dict.fromkeys(scheme.modules, words)
    return schemes
