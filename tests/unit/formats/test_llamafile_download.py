"""Against a real server on this machine, with a certificate of its own."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from gemquant.core.protocols import Silence
from gemquant.errors import ArtifactError, RuntimeMissingError, UsageError
from gemquant.formats import llamafile_runtime as module
from gemquant.formats.llamafile_runtime import cached_runtime, download

CONTENT = b"#!/bin/sh\necho a runtime\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is needed")


class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        places = {"/moved": "/runtime", "/down": "http://127.0.0.1/runtime", "/loop": "/loop"}
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
        elif self.path == "/runtime":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    name = ["-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", f"{path}.crt"]
    subprocess.run(["openssl", *words.split(), *name], check=True, capture_output=True, timeout=60)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def server(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[str]]]:
    """An https server that the Hub's client trusts; its address, and what was asked of it."""
    monkeypatch.setenv("GEMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        trusting = ssl.create_default_context(cafile=certificate)
        kind = type(huggingface_hub.get_session())
        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(lambda: kind(verify=trusting))
        yield f"https://localhost:{running.server_port}", Handler.requests
        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(kind)
        running.shutdown()
        thread.join()


def test_a_file_with_the_expected_hash_arrives(server: tuple[str, list[str]]):
    address, _ = server
    assert download(f"{address}/runtime", SHA256, Silence()).read_bytes() == CONTENT


def test_a_file_is_downloaded_once(server: tuple[str, list[str]]):
    address, requests = server
    for _ in range(2):
        download(f"{address}/runtime", SHA256, Silence())
    assert requests == ["/runtime"]


def test_a_damaged_copy_in_the_cache_is_not_used(server: tuple[str, list[str]]):
    address, _ = server
    download(f"{address}/runtime", SHA256, Silence())
    cached_runtime(SHA256).write_bytes(b"damaged")
    assert download(f"{address}/runtime", SHA256, Silence()).read_bytes() == CONTENT


def test_a_file_with_another_hash_is_not_used(server: tuple[str, list[str]]):
    address, _ = server
    with pytest.raises(ArtifactError, match=f"sha256 {SHA256}, not 0+; the download was discarded"):
        download(f"{address}/runtime", "0" * 64, Silence())
    assert list(cached_runtime(SHA256).parent.iterdir()) == []


def test_a_redirect_is_followed(server: tuple[str, list[str]]):
    address, requests = server
    download(f"{address}/moved", SHA256, Silence())
    assert requests == ["/moved", "/runtime"]


def test_a_redirect_out_of_https_is_not_followed(server: tuple[str, list[str]]):
    address, _ = server
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1/runtime: must be an https"):
        download(f"{address}/down", SHA256, Silence())


def test_redirects_in_a_circle_end(server: tuple[str, list[str]]):
    address, requests = server
    with pytest.raises(RuntimeMissingError, match="more than 5 redirects"):
        download(f"{address}/loop", SHA256, Silence())
    assert len(requests) == 6


def test_a_missing_file_is_said_to_be_missing(server: tuple[str, list[str]]):
    address, _ = server
    with pytest.raises(RuntimeMissingError, match="status 404"):
        download(f"{address}/absent", SHA256, Silence())


def test_more_than_a_runtime_can_be_is_not_read(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
):
    address, _ = server
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match=r"more than 1\.00 kB"):
        download(f"{address}/runtime", SHA256, Silence())
    assert list(cached_runtime(SHA256).parent.iterdir()) == []


def test_a_server_that_nobody_vouches_for_is_not_trusted(
    server: tuple[str, list[str]],
):
    address, _ = server
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(type(huggingface_hub.get_session()))
    with pytest.raises(RuntimeMissingError, match="cannot be downloaded"):
        download(f"{address}/runtime", SHA256, Silence())


@pytest.mark.parametrize("url", ["http://example.com/a", "ftp://example.com/a", "https:///a"])
def test_only_https_is_spoken(url: str):
    with pytest.raises(UsageError, match="must be an https:// URL"):
        download(url, SHA256, Silence())
