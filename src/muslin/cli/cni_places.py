"""Where the container runtimes of this host look for CNI plugins and for network configurations.

Theory of operation: every runtime has its own two settings, most leave them as they are, and distributions change the
defaults. So the files of those that are known are read; what they name comes first, and beside it the usual places
that are there. A file that cannot be understood is said and passed over: it may be of a version yet to come.

======== ================================================= ==========================================
podman   containers.conf(5)                                 ``[network] cni_plugin_dirs, network_config_dir``
containerd config.toml, ``[plugins."...cri".cni]``           ``bin_dir``, ``bin_dirs``, ``conf_dir``
cri-o    crio.conf(5)                                       ``[crio.network] plugin_dirs, network_dir``
======== ================================================= ==========================================
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

USUAL_BIN = "/opt/cni/bin"
OTHER_BINS = ("/usr/lib/cni", "/usr/libexec/cni")
"""Debian's packages and Fedora's."""
USUAL_CONF = "/etc/cni/net.d"


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Directories, those that a runtime names first. ``troubles``: a sentence for each file that says nothing."""

    bin_dirs: tuple[str, ...] = ()
    conf_dirs: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


def find_places(root: Path, environment: Mapping[str, str] = os.environ) -> Places:
    """What there is below ``root``, which is ``/`` but in tests; what a file names counts from there, too."""
    bins: list[str] = []
    confs: list[str] = []
    troubles: list[str] = []
    for read, paths in _files(root, environment):
        named = Places()
        for path in paths:
            try:
                later = read(tomllib.loads(path.read_text()))
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                troubles.append(f"{path} cannot be read, and what it may say is passed over: {error}")
                continue
            # Of one runtime's files the last one that says something counts.
            named = Places(bin_dirs=later.bin_dirs or named.bin_dirs, conf_dirs=later.conf_dirs or named.conf_dirs)
        bins += named.bin_dirs[:1]
        confs += named.conf_dirs
    bins += [place for place in (USUAL_BIN, *OTHER_BINS) if (root / place[1:]).is_dir()]
    return Places(
        bin_dirs=_below(root, bins or [USUAL_BIN]),
        conf_dirs=_below(root, [*confs, USUAL_CONF]),
        troubles=tuple(troubles),
    )


def _below(root: Path, places: list[str]) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(str(root / place[1:]) for place in places))


Read = Callable[[dict[str, Any]], Places]


def _files(root: Path, environment: Mapping[str, str]) -> Iterator[tuple[Read, list[Path]]]:
    """Each runtime's files, the one that counts most last."""
    only = environment.get("CONTAINERS_CONF")
    podman = [Path(only)] if only else _with_parts(root, "etc/containers/containers.conf", "usr/share/containers")
    yield read_podman, podman
    yield read_containerd, [root / "etc/containerd/config.toml"]
    yield read_crio, _with_parts(root, "etc/crio/crio.conf", "usr/share/crio")


def _with_parts(root: Path, main: str, vendor: str) -> list[Path]:
    path = root / main
    return [root / vendor / path.name, path, *sorted(path.with_name(f"{path.name}.d").glob("*.conf"))]


def read_podman(document: dict[str, Any]) -> Places:
    """Of a containers.conf. With netavark, which is no CNI, the directory is not ours to write to."""
    network = _table(document, "network")
    conf = () if network.get("network_backend") == "netavark" else _texts(network.get("network_config_dir"))
    return Places(bin_dirs=_texts(network.get("cni_plugin_dirs")), conf_dirs=conf)


def read_containerd(document: dict[str, Any]) -> Places:
    """Of a config.toml of version 1, 2 or 3, which differ in the plugin's name."""
    bins: list[str] = []
    confs: list[str] = []
    for plugin in _table(document, "plugins").values():
        cni = _table(plugin, "cni")
        bins += _texts(cni.get("bin_dir")) + _texts(cni.get("bin_dirs"))
        confs += _texts(cni.get("conf_dir"))
    return Places(bin_dirs=tuple(bins), conf_dirs=tuple(confs))


def read_crio(document: dict[str, Any]) -> Places:
    """Of a crio.conf."""
    network = _table(_table(document, "crio"), "network")
    return Places(bin_dirs=_texts(network.get("plugin_dirs")), conf_dirs=_texts(network.get("network_dir")))


def _table(document: Any, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _texts(value: Any) -> tuple[str, ...]:
    """Absolute paths, of one text or of many; anything else is nothing."""
    several = value if isinstance(value, list) else [value]
    return tuple(os.path.normpath(each) for each in several if isinstance(each, str) and each.startswith("/"))
