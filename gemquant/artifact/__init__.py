"""A finished folder: its manifest, its model card, how it comes to stand and how it is checked."""

from gemquant.artifact.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    ActivationRange,
    CalibrationRecord,
    CallRecord,
    CertificateRecord,
    ConversionRecord,
    Fallback,
    FileRecord,
    Manifest,
    Quantization,
    SchemeRecord,
    Source,
    certificate_record,
    fallbacks_by_reason,
    quantization_record,
)
from gemquant.artifact.seal import SIGNATURE_FILE, Artifact, read_manifest, seal
from gemquant.artifact.staging import output_problems, staged
from gemquant.artifact.structure import structure_problems

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
    "Fallback",
    "FileRecord",
    "Manifest",
    "Quantization",
    "SchemeRecord",
    "Source",
    "certificate_record",
    "fallbacks_by_reason",
    "output_problems",
    "quantization_record",
    "read_manifest",
    "seal",
    "staged",
    "structure_problems",
]
