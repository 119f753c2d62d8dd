"""What an evaluation document says of an artifact and of its original, beside the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from gemquant.core.artifact import Artifact, Manifest
from gemquant.core.artifact.content import content_digest, content_files
from gemquant.core.artifact.evaluation import ArtifactEvaluation, LevelEvaluation, OriginalRecord
from gemquant.core.scheme import INTEGER, NAMES, PER_CHANNEL, Scheme
from gemquant.formats.checkpoint import Checkpoint

FORMAT_OPTION = "type"
"""A quantizer's option that names a mixture of formats, as ``Q4_K_M``."""


def artifact_evaluation(
    artifact: Artifact, levels: Sequence[LevelEvaluation]
) -> ArtifactEvaluation:
    """Describe an artifact by its manifest."""
    manifest = artifact.manifest
    return ArtifactEvaluation(
        name=artifact_name(artifact),
        container=manifest.container,
        quantizer=manifest.quantization.quantizer,
        scheme=scheme_words(manifest),
        digest=content_digest(manifest),
        size_bytes=sum(file.bytes for file in content_files(manifest).values()),
        bits_per_weight=manifest.quantization.bits_per_weight,
        libraries=manifest.libraries,
        levels=tuple(levels),
    )


def artifact_name(artifact: Artifact) -> str:
    """The name of its folder."""
    return artifact.path.resolve().name


def original_record(original: Checkpoint) -> OriginalRecord:
    """Describe the model that artifacts are compared with."""
    return OriginalRecord(
        ref=original.ref,
        revision=original.revision,
        architecture=original.config["model_type"],
        base_model=original.provenance.base_model,
        digest=_digest(original.source_digest().values()),
    )


def scheme_words(manifest: Manifest) -> str:
    """How its weights are stored, in a few words.

    The mixture that was asked for where the quantizer makes one, else the schemes of its layers.
    """
    options = manifest.recipe.get("options")
    asked = options.get(FORMAT_OPTION) if isinstance(options, dict) else None
    if isinstance(asked, list) and asked:
        return ", ".join(map(str, asked))
    schemes = map(_words, manifest.quantization.schemes)
    return " + ".join(dict.fromkeys(schemes)) or manifest.quantization.float_dtype


def _words(scheme: Scheme) -> str:
    if scheme.codes != INTEGER:
        return NAMES.get(scheme.codes, scheme.codes)
    size = "per row" if scheme.group_size == PER_CHANNEL else f"g{scheme.group_size}"
    return f"w{scheme.bits} {size} {'symmetric' if scheme.symmetric else 'asymmetric'}"


def _digest(lines: Iterable[str]) -> str:
    """``sha256:`` over lines in order of the alphabet."""
    text = "".join(f"{line}\n" for line in sorted(lines))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
