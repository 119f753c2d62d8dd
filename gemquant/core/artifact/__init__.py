"""A finished folder: its manifest and model card, how it is written and how it is checked."""

from gemquant.core.artifact.evaluation import LevelEvaluation, emulated_corners
from gemquant.core.artifact.finalize import SIGNATURE_FILE, Artifact, finalize, read_manifest
from gemquant.core.artifact.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    ActivationRangeRecord,
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
    TokensWithoutRow,
    fallbacks_by_reason,
    quantization_record,
    structure_problems,
)
from gemquant.core.artifact.staging import output_problems, staged

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "SIGNATURE_FILE",
    "ActivationRangeRecord",
    "Artifact",
    "CalibrationRecord",
    "CallRecord",
    "ConversionRecord",
    "Fallback",
    "FileRecord",
    "FoldRecord",
    "LevelEvaluation",
    "Manifest",
    "Quantization",
    "SchemeRecord",
    "SmoothingRecord",
    "Source",
    "TokensWithoutRow",
    "emulated_corners",
    "fallbacks_by_reason",
    "finalize",
    "output_problems",
    "quantization_record",
    "read_manifest",
    "staged",
    "structure_problems",
]
