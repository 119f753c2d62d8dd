"""The package's build: compile the kernels, and ship what was built in the wheel."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    """Compiles into the source tree; a wheel then carries the libraries and its platform's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build, and add the libraries to the wheel."""
        path = Path(self.root) / "gemquant" / "numerics" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("gemquant_native_build", path)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        built = build.build()
        if built:
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"
            build_data["artifacts"] += [str(made.relative_to(self.root)) for made in built]
