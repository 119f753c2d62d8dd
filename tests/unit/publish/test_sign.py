"""A signature holds for one key and one folder, to the byte."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gemquant.core.artifact import Artifact
from gemquant.errors import ArtifactError, OutputError, RuntimeMissingError, UsageError
from gemquant.publish.sign import sign
from gemquant.publish.verify import signature_path, verify_signature

pytest.importorskip("model_signing", reason="the extra signing is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path


def make_keys(folder: Path, name: str, *, password: bytes | None = None) -> Keys:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = Keys(folder / f"{name}.key", folder / f"{name}.pub")
    keys.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption(),
        )
    )
    keys.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path, "signing")


@pytest.fixture
def signed(artifact: Artifact, keys: Keys) -> Artifact:
    sign(artifact.path, private_key=keys.private, signature=signature_path(artifact.path))
    return artifact


def check(artifact: Artifact, keys: Keys) -> None:
    verify_signature(artifact.path, signature=signature_path(artifact.path), public_key=keys.public)


def test_what_was_signed_verifies(signed: Artifact, keys: Keys) -> None:
    check(signed, keys)


def test_a_signed_artifact_is_still_an_artifact(signed: Artifact) -> None:
    assert (signed.path / "model.sig").is_file()
    assert "model.sig" not in Artifact.open(signed.path).manifest.files


def test_a_signed_folder_may_be_renamed(signed: Artifact, keys: Keys, tmp_path: Path) -> None:
    moved = signed.path.rename(tmp_path / "renamed")
    verify_signature(moved, signature=moved / "model.sig", public_key=keys.public)


def test_what_the_hub_adds_to_a_download_does_not_break_a_signature(
    signed: Artifact, keys: Keys
) -> None:
    (signed.path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    notes = signed.path / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("1")
    Artifact.open(signed.path)
    check(signed, keys)


def test_another_key_is_refused(signed: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not match .*Key mismatch"):
        check(signed, make_keys(tmp_path, "other"))


def test_another_key_is_refused_though_it_claims_to_be_the_same(
    signed: Artifact, keys: Keys, tmp_path: Path
) -> None:
    other = make_keys(tmp_path, "other")
    verify = signature_path(signed.path)
    mine = json.loads(verify.read_text())
    verify.unlink()
    sign(signed.path, private_key=other.private, signature=verify)
    forged = json.loads(verify.read_text())
    forged["verificationMaterial"] = mine["verificationMaterial"]
    verify.write_text(json.dumps(forged))
    with pytest.raises(ArtifactError, match="was not made with the key of"):
        check(signed, keys)


def test_a_changed_byte_is_refused(signed: Artifact, keys: Keys) -> None:
    path = signed.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"Hash mismatch for 'model\.safetensors'"):
        check(signed, keys)


def test_an_added_file_is_refused(signed: Artifact, keys: Keys) -> None:
    (signed.path / "modeling.py").write_text("print()")
    with pytest.raises(ArtifactError, match=r"Extra files found.*modeling\.py"):
        check(signed, keys)


def test_a_missing_file_is_refused(signed: Artifact, keys: Keys) -> None:
    (signed.path / "NOTICE").unlink()
    with pytest.raises(ArtifactError, match=r"Missing files.*NOTICE"):
        check(signed, keys)


def test_a_signed_payload_cannot_be_edited(signed: Artifact, keys: Keys) -> None:
    path = signature_path(signed.path)
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"NOTICE", b"N0TICE")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError, match="was not made with the key of"):
        check(signed, keys)


def test_a_true_signature_that_leaves_the_weights_out_is_refused(
    artifact: Artifact, keys: Keys
) -> None:
    import model_signing.hashing
    import model_signing.signing

    place = signature_path(artifact.path)
    partial = model_signing.hashing.Config().set_ignored_paths(
        paths=["model.sig", "model.safetensors"]
    )
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys.private)
    config.set_hashing_config(partial).sign(artifact.path, place)
    with pytest.raises(ArtifactError, match=r"leaves out model\.safetensors: it must cover"):
        check(artifact, keys)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b'{"dsseEnvelope": 1}', b"[" * 5000], ids=range(5)
)
def test_what_is_no_signature_is_refused(artifact: Artifact, keys: Keys, content: bytes) -> None:
    signature_path(artifact.path).write_bytes(content)
    with pytest.raises(ArtifactError, match="does not match"):
        check(artifact, keys)


def test_a_missing_signature_says_how_to_name_one(artifact: Artifact, keys: Keys) -> None:
    with pytest.raises(ArtifactError, match=r"model\.sig: cannot be read: No such file") as caught:
        check(artifact, keys)
    assert caught.value.hint == "Pass its path with --signature."


def test_a_broken_artifact_is_not_signed(artifact: Artifact, keys: Keys) -> None:
    (artifact.path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not the file the manifest describes"):
        sign(artifact.path, private_key=keys.private, signature=signature_path(artifact.path))
    assert not signature_path(artifact.path).exists()


def test_a_signature_is_replaced_only_when_asked(signed: Artifact, keys: Keys) -> None:
    place = signature_path(signed.path)
    with pytest.raises(OutputError, match="exists"):
        sign(signed.path, private_key=keys.private, signature=place)
    sign(signed.path, private_key=keys.private, signature=place, force=True)
    check(signed, keys)


def test_a_signature_inside_the_artifact_has_one_name(artifact: Artifact, keys: Keys) -> None:
    with pytest.raises(OutputError, match=r"where a signature is called model\.sig"):
        sign(artifact.path, private_key=keys.private, signature=artifact.path / "my.sig")


def test_a_signature_may_lie_elsewhere(artifact: Artifact, keys: Keys, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere.sig"
    sign(artifact.path, private_key=keys.private, signature=place)
    verify_signature(artifact.path, signature=place, public_key=keys.public)


def test_an_encrypted_key_needs_its_password(artifact: Artifact, tmp_path: Path) -> None:
    keys = make_keys(tmp_path, "locked", password=b"open sesame")
    place = signature_path(artifact.path)
    with pytest.raises(UsageError, match="is encrypted") as caught:
        sign(artifact.path, private_key=keys.private, signature=place)
    assert "GEMQUANT_KEY_PASSWORD" in str(caught.value.hint)
    sign(artifact.path, private_key=keys.private, signature=place, password=b"open sesame")
    check(artifact, keys)


def test_a_key_of_another_kind_is_named_with_the_command_that_makes_one(
    artifact: Artifact, tmp_path: Path
) -> None:
    place = tmp_path / "rsa.key"
    place.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(UsageError, match="not the private half of an elliptic curve") as caught:
        sign(artifact.path, private_key=place, signature=signature_path(artifact.path))
    assert "openssl ecparam -genkey -name prime256v1" in str(caught.value.hint)


def test_a_missing_key_is_named(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a private key: cannot be read: No such file"):
        sign(
            artifact.path,
            private_key=tmp_path / "none",
            signature=signature_path(artifact.path),
        )


def test_without_the_package_the_extra_is_named(
    artifact: Artifact, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(RuntimeMissingError) as caught:
        check(artifact, keys)
    assert caught.value.hint == "pip install 'gemquant[signing]'"


def model_signing_program(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *args], capture_output=True, text=True, check=False
    )


def test_the_program_of_the_standard_verifies_our_signature(signed: Artifact, keys: Keys) -> None:
    place = str(signature_path(signed.path))
    command = ["verify", "key", str(signed.path), "--signature", place]
    done = model_signing_program(*command, "--public_key", str(keys.public))
    assert done.returncode == 0, done.stderr
    (signed.path / "NOTICE").write_text("changed")
    done = model_signing_program(*command, "--public_key", str(keys.public))
    assert (done.returncode, "Hash mismatch for 'NOTICE'" in done.stderr) == (1, True)


def test_we_verify_what_the_program_of_the_standard_signed(artifact: Artifact, keys: Keys) -> None:
    place = str(signature_path(artifact.path))
    command = ["sign", "key", str(artifact.path), "--signature", place]
    done = model_signing_program(*command, "--private_key", str(keys.private))
    assert done.returncode == 0, done.stderr
    Artifact.open(artifact.path)
    check(artifact, keys)
    (artifact.path / "NOTICE").write_text("changed")
    with pytest.raises(ArtifactError, match="Hash mismatch for 'NOTICE'"):
        check(artifact, keys)
