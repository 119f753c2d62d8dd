"""A stand-in for rkllm-toolkit that checks how it is called, and nothing else.

It has the documented signatures of one release, records every call, and writes a file of the bytes
that a test asks for. What it writes is no RKLLM model; it validates our side of the contract only,
never a conversion.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from gemquant.core.targets import ToolkitVersion

_DEFAULTS = {"device": "'cpu'", "do_quantization": "True", "optimization_level": "1"}

_MODULE = """\
import json, os, pathlib, time

class RKLLM:
    def __init__(self):
        self._record("RKLLM", {{}})

    def load_huggingface(self, {load}):
        return self._record("load_huggingface", locals())

    def build(self, {build}):
        if {hangs}:
            pathlib.Path({log!r} + ".pid").write_text(str(os.getpid()))
            time.sleep(600)
        return self._record("build", locals())

    def export_rkllm(self, {export}):
        pathlib.Path(export_path).write_bytes(bytes.fromhex({begins!r}).ljust({size}, b"\\0"))
        return self._record("export_rkllm", locals())

    def get_logits(self, inputs):
        import torch
        ids = inputs["input_ids"]
        self._record("get_logits", {{"keys": list(inputs), "shape": list(ids.shape)}})
        return torch.zeros(1, ids.shape[1], {vocabulary})

    def _record(self, function, values):
        values = {{key: value for key, value in values.items() if key != "self"}}
        with open({log!r}, "a") as log:
            log.write(json.dumps([function, values]) + chr(10))
        return {fails}.get(function, 0)
"""


def signature_checker(
    folder: Path,
    release: ToolkitVersion,
    *,
    log: Path,
    size: int = 100,
    begins: str = "",
    fails: dict[str, object] | None = None,
    hangs: bool = False,
    vocabulary: int = 0,
) -> Path:
    """Make an environment whose rkllm-toolkit is the stand-in; return its Python.

    hangs: its build never ends, and the process id is in ``log``.pid. vocabulary: its get_logits
    finds every one of so many tokens equally likely; it uses our own torch.
    """
    base = Path(sys.base_prefix) / "bin"
    number = f"python3.{sys.version_info.minor}"
    site = folder / "lib" / number / "site-packages"
    package = site / "rkllm"
    package.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base / number)
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (package / "__init__.py").touch()
    (package / "api.py").write_text(
        _MODULE.format(
            load=_parameters(release.load),
            build=_parameters(release.build),
            export=_parameters(release.export),
            begins=begins,
            size=size,
            hangs=hangs,
            vocabulary=vocabulary,
            log=str(log),
            fails=repr(fails or {}),
        )
    )
    if vocabulary:
        (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    info = site / f"rkllm_toolkit-{release.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: rkllm-toolkit\nVersion: {release.version}\n"
    )
    return folder / "bin" / "python"


def _parameters(names: tuple[str, ...]) -> str:
    first, *others = names
    return ", ".join([first, *(f"{name}={_DEFAULTS.get(name)}" for name in others)])
