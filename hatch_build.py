"""Puts the tunnel in C into a wheel, beside the Python one, where there is a compiler to make it with.

A wheel with it is for one platform and for any Python; one without is pure, and then the Python tunnel runs.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CoreHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles native/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the program to what the wheel holds."""
        if version == "editable":
            return
        program = Path(self.root, "build", "muslin-tunnel")
        program.parent.mkdir(exist_ok=True)
        try:
            subprocess.run([Path(self.root, "native", "build"), program], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the tunnel in C is left out, as it cannot be compiled: {error}")
            return
        build_data["force_include"][str(program)] = "muslin/tunnel/muslin-tunnel"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
