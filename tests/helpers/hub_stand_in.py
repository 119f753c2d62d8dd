"""A stand-in for the Hub's API, as far as huggingface_hub 2.4.0 calls it in a push: a contract.

It holds repositories in memory behind a server on loopback, and refuses what it does not know. It
was written from the requests that the library makes, without the Hub: passing here shows that we
call the library rightly and that the bytes sent are the artifact's, not that the Hub accepts them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.hub_repository import Repository, Stored

TOKEN = "hf_standInStandInStandIn"
LARGE = (".safetensors", ".gguf")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):  # noqa: N818 - an answer, whatever raises it
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


Fault = Callable[[str, str], None]


@dataclass
class StandIn:
    """The server's state. requests: every method and path. uploaded: objects as they arrived."""

    url: str = ""
    part_bytes: int | None = None
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)
    writable: str = "me"
    fault: Fault = lambda method, path: None

    def repository(self, name: str, *, private: bool = True, **files: bytes) -> Repository:
        """Make one, as the Hub does: with a commit that holds .gitattributes."""
        made = self.repositories[name] = Repository(private)
        tree = {".gitattributes": Stored(ATTRIBUTES, large=False)}
        tree |= {key: Stored(content, large=False) for key, content in files.items()}
        made.commit("main", tree, "initial commit")
        return made

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Any:
        """Answer one request: a JSON document, or headers for the upload of a part."""
        self.requests.append((method, path))
        self.fault(method, path)
        for route_method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and route_method == method:
                if token != TOKEN and not path.startswith("/store/"):
                    raise Refusal(401, message="Invalid credentials in Authorization header")
                return route(self, body, *map(unquote, match.groups()))
        raise Refusal(501, message=f"the stand-in does not know {method} {path}")

    # ------------------------------------------------------------ routes

    def whoami(self, body: bytes) -> Any:
        return {"type": "user", "name": self.writable, "auth": {"type": "access_token"}}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.writable:
            raise Refusal(403, message="You don't have the rights")
        if name in self.repositories:
            raise Refusal(409, message="You already created this model repo")
        self.repository(name, private=asked["visibility"] == "private")
        return {"url": f"{self.url}/{name}"}

    def info(self, body: bytes, name: str, revision: str = "main") -> Any:
        repository = self._of(name)
        sha = self._revision(repository, revision)
        return {"_id": "1", "id": name, "sha": sha, "private": repository.private, "tags": []}

    def branch(self, body: bytes, name: str, branch: str) -> Any:
        repository = self._of(name)
        repository.branches[branch] = repository.branches["main"]
        return {}

    def tree(self, body: bytes, name: str, revision: str) -> Any:
        repository = self._of(name)
        files = repository.commits[self._revision(repository, revision)]
        return [self._entry(path, stored) for path, stored in files.items()]

    def validate(self, body: bytes) -> Any:
        asked = json.loads(body)
        assert asked["repoType"] == "model"
        if "license:" not in asked["content"]:
            raise Refusal(400, message="no license")
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        repository = self._of(name)
        there = repository.commits[self._revision(repository, revision)]
        answers = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE)
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": there[file["path"]].blob_id if file["path"] in there else None,
                }
            )
        return {"files": answers}

    def batch(self, body: bytes, name: str) -> Any:
        self._of(name)
        return {
            "transfer": "basic",
            "objects": [self._object(o) for o in json.loads(body)["objects"]],
        }

    def put(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, message="the content has another hash")
        self.objects[oid] = body
        self.uploaded.append(oid)
        return {}

    def part(self, body: bytes, oid: str, number: str) -> Any:
        self.parts[oid, int(number)] = body
        return {"ETag": f'"{oid[:8]}-{number}"'}

    def complete(self, body: bytes, oid: str) -> Any:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        return self.put(b"".join(self.parts[oid, number] for number in numbers), oid)

    def verify(self, body: bytes) -> Any:
        asked = json.loads(body)
        if len(self.objects[asked["oid"]]) != asked["size"]:
            raise Refusal(400, message="the content has another size")
        return {}

    def commit(self, body: bytes, name: str, branch: str) -> Any:
        repository = self._of(name)
        header, *lines = map(json.loads, body.splitlines())
        head = repository.branches[branch]
        if header["value"].get("parentCommit") not in {None, head}:
            raise Refusal(412, message="A commit has happened since")
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Stored(self.objects[value["oid"]], large=True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(501, message=f"the stand-in does not know {line['key']}")
        oid = repository.commit(branch, files, header["value"]["summary"])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> bytes:
        repository = self._of(name)
        return repository.commits[self._revision(repository, revision)][path].content

    # ------------------------------------------------------------ parts of answers

    def _of(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repositories[name]

    def _revision(self, repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _entry(self, path: str, stored: Stored) -> dict[str, Any]:
        size = len(stored.content)
        entry = {"type": "file", "path": path, "size": size, "oid": stored.blob_id}
        if stored.large:
            sha256 = hashlib.sha256(stored.content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return entry

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in self.objects:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{self.url}/store/{oid}"}
        if self.part_bytes is not None:
            count = -(-size // self.part_bytes)
            upload = {
                "href": f"{self.url}/store/complete/{oid}",
                "header": {
                    "chunk_size": str(self.part_bytes),
                    **{f"{n:05}": f"{self.url}/store/{oid}/{n}" for n in range(1, count + 1)},
                },
            }
        actions = {"upload": upload, "verify": {"href": f"{self.url}/api/verify"}}
        return {"oid": oid, "size": size, "actions": actions}


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", StandIn.whoami),
    ("POST", "/api/repos/create", StandIn.create),
    ("GET", f"/api/models/{NAME}", StandIn.info),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", StandIn.info),
    ("POST", f"/api/models/{NAME}/branch/([^/]+)", StandIn.branch),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", StandIn.tree),
    ("POST", "/api/validate-yaml", StandIn.validate),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", StandIn.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", StandIn.batch),
    ("PUT", "/store/([0-9a-f]{64})", StandIn.put),
    ("PUT", "/store/([0-9a-f]{64})/([0-9]+)", StandIn.part),
    ("POST", "/store/complete/([0-9a-f]{64})", StandIn.complete),
    ("POST", "/api/verify", StandIn.verify),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", StandIn.commit),
    ("HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", StandIn.resolve),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", StandIn.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def _serve(self) -> None:
        body = self._body()
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ") or None
        path = urlsplit(self.path).path
        status, extra = 200, {}
        try:
            answer = self.stand_in.answer(self.command, path, body, token)
            extra = answer if isinstance(answer, dict) and "ETag" in answer else {}
            if isinstance(answer, bytes):
                oid = hashlib.sha1(answer).hexdigest()
                extra = {"ETag": f'"{oid}"', "X-Repo-Commit": path.split("/")[4]}
        except Refusal as refusal:
            status, answer = refusal.status, {"error": refusal.message}
            extra = {"X-Error-Message": refusal.message}
            if refusal.code:
                extra["X-Error-Code"] = refusal.code
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Nothing: tests look at ``requests``."""


@contextmanager
def hub_stand_in() -> Iterator[StandIn]:
    """Serve on a free port of 127.0.0.1."""
    stand_in = StandIn()
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
