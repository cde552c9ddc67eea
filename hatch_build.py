"""Puts what is written in C into a wheel: the tunnel, beside the Python one, and the plugin for container runtimes.

A wheel with them is for one platform and for any Python; where there is no compiler it is pure, and then the Python
tunnel runs, and `muslin cni install` says what is missing.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


PROGRAMS = (
    ("muslin-tunnel", "program", "muslin/tunnel/muslin-tunnel"),
    ("muslin-cni", "cni", "muslin/cli/muslin-cni"),
)
"""Name, kind for native/build, place in the wheel."""


class CoreHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles native/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the programs to what the wheel holds."""
        if version == "editable":
            return
        made = [place for place in PROGRAMS if self._compile(*place, build_data)]
        if made:
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _compile(self, name: str, kind: str, place: str, build_data: dict[str, Any]) -> bool:
        program = Path(self.root, "build", name)
        program.parent.mkdir(exist_ok=True)
        try:
            subprocess.run([Path(self.root, "native", "build"), program, kind], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"{name} is left out, as it cannot be compiled: {error}")
            return False
        build_data["force_include"][str(program)] = place
        return True
