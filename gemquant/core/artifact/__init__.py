"""A finished folder: its manifest, its model card, how it comes to stand and how it is checked."""

from gemquant.core.artifact.certificates import (
    CertificateRecord,
    EmulationRecord,
    certificate_record,
    emulated_corners,
)
from gemquant.core.artifact.finalize import SIGNATURE_FILE, Artifact, read_manifest, seal
from gemquant.core.artifact.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    ActivationRange,
    CalibrationRecord,
    CallRecord,
    ConversionRecord,
    Fallback,
    FileRecord,
    FoldRecord,
    Manifest,
    Quantization,
    SchemeRecord,
    SmoothingRecord,
    Source,
    fallbacks_by_reason,
    quantization_record,
)
from gemquant.core.artifact.staging import output_problems, staged
from gemquant.core.artifact.structure import structure_problems

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "SIGNATURE_FILE",
    "ActivationRange",
    "Artifact",
    "CalibrationRecord",
    "CallRecord",
    "CertificateRecord",
    "ConversionRecord",
    "EmulationRecord",
    "Fallback",
    "FileRecord",
    "FoldRecord",
    "Manifest",
    "Quantization",
    "SchemeRecord",
    "SmoothingRecord",
    "Source",
    "certificate_record",
    "emulated_corners",
    "fallbacks_by_reason",
    "output_problems",
    "quantization_record",
    "read_manifest",
    "seal",
    "staged",
    "structure_problems",
]
