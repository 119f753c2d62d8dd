"""Starting up is quick, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

LISTING = """
import json, sys
from gemquant.__main__ import main
code = main(sys.argv[1:])
modules = sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))
print(json.dumps([name for name in modules if not name.startswith("__")]), file=sys.stderr)
sys.exit(code)
"""


def modules_after(*args: str, code: int = 0) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LISTING, *args],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    # What an editable installation leaves behind is no import of ours.
    found = {name for name in json.loads(done.stderr.splitlines()[-1]) if "editable" not in name}
    return found - {"_distutils_hack", "sitecustomize", "usercustomize", "_virtualenv"}


@pytest.mark.parametrize("args", [["--help"], ["awq", "--help"], ["rtn", "--help"], ["--version"]])
def test_help_imports_click_and_nothing_else(args: list[str]) -> None:
    assert modules_after(*args) == {"click", "gemquant"}


def test_listing_quantizers_imports_rich_but_no_torch() -> None:
    assert modules_after("quantizers", "--json") & {"torch", "transformers", "pydantic"} == set()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("awq ./typo", 3),
        ("gguf ./typo Q4_K_M", 3),
        ("imatrix ./typo -o x", 3),
        ("plan ./typo", 3),
        ("rkllm ./typo", 3),
        ("chat ./typo", 2),
        ("serve ./typo", 3),
        ("eval typo", 6),
        ("bench typo", 6),
        ("tasks typo --tasks hellaswag", 6),
        ("show typo", 6),
        ("verify typo", 6),
        ("card typo", 6),
    ],
)
def test_what_a_path_alone_shows_is_said_before_torch_is_loaded(command: str, code: int) -> None:
    if command.startswith("tasks") and find_spec("lm_eval") is None:
        code = 8  # lm-eval is missing, which is said first
    assert "torch" not in modules_after(*command.split(), code=code)


ON_WINDOWS = """
import importlib, os, pkgutil, signal, sys
import gemquant


def load(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # of an extra that is not installed
        if error.name.partition(".")[0] not in EXTRAS:
            raise


EXTRAS = {"lm_eval", "mlx", "mlx_lm", "onnx", "onnxruntime", "gguf", "datasets", "xllamacpp"}

modules = pkgutil.walk_packages(gemquant.__path__, "gemquant.")
names = [m.name for m in modules if "kernels-" not in m.name and not m.name.endswith("__main__")]
for name in names:  # with all that they import from others
    load(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "gemquant"]:
    del sys.modules[name]
sys.modules |= dict.fromkeys(["resource", "fcntl", "termios", "pwd", "grp", "pty", "readline"])
for name in ["killpg", "getpgrp", "setsid", "fork", "getuid", "geteuid", "sysconf", "pread"]:
    delattr(os, name)
for name in ["O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"]:
    delattr(os, name)
del signal.SIGKILL, signal.SIGHUP
sys.platform = "win32"
for name in names:
    load(name)
print(len(names))
"""


def test_every_module_can_be_imported_where_only_windows_modules_exist() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200
