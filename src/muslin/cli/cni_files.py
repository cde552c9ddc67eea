"""The files that ``muslin cni install`` puts on a host, and their removal: nothing that is not ours is touched.

Theory of operation: first everything is looked at, and one file of somebody else's in the way refuses all. Then a
record of what will be there is kept in the agent's state directory, then the plugin is written and at last the network
configurations, each whole, synced and renamed into its place: at no moment does a runtime find a network whose plugin
is not there, or half a file. Removal goes the other way round, for what the record names and for what lies where an
installation would have written; each file is looked at first, whether it is ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from muslin.agent.files import write_whole
from muslin.cli.cni_network import is_ours, parse_network
from muslin.cli.cni_program import NAME, is_program
from muslin.errors import MuslinError, UsageError

RECORD_NAME = "cni-files.json"
NETWORK_SUFFIXES = (".conf", ".conflist", ".json")
"""What runtimes take for a network configuration: libcni, ConfFiles()."""


class CniFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file, and what happens to it."""

    path: str
    kind: Literal["plugin", "network", "record", "directory"]
    action: Literal["write", "replace", "keep", "remove"]

    def describe(self) -> str:
        """One line."""
        return f"{self.action:<8}{self.path}"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it should be."""

    path: Path
    content: bytes
    kind: Literal["plugin", "network"]

    @property
    def mode(self) -> int:
        """Its permissions."""
        return 0o755 if self.kind == "plugin" else 0o644


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Which files an installation has written, and which directories it has made for them, the deepest last."""

    schema: Literal["muslin.cni-files/v1"] = "muslin.cni-files/v1"
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


# ---- writing ---------------------------------------------------------------------------------------------


def judge(target: Target) -> CniFile:
    """What is to be done to a file; UsageError when somebody else's is in the way."""
    path, kind = target.path, target.kind
    action: Literal["write", "replace", "keep"] = "replace"
    if not os.path.lexists(path):
        action = "write"
    elif not _is_ours(path, kind):
        raise UsageError(
            f"{path} is there already and not of Muslin's, so it stays as it is and nothing was written",
            "see what it is, and move it away"
            + (" or take another --name" if kind == "network" else " or take another --bin-dir"),
        )
    elif path.read_bytes() == target.content and path.stat().st_mode & 0o777 == target.mode:
        action = "keep"
    return CniFile(path=str(path), kind=kind, action=action)


def refuse_same_network(conf_dir: Path, own: Path, name: str) -> None:
    """UsageError when another file of the directory has a network of this name: a runtime would take either."""
    for path in _networks(conf_dir):
        found = None if path == own else parse_network(path.read_bytes())
        if found is not None and found.name == name:
            raise UsageError(f"{path} has a network {name!r} already", "take another --name, or remove that one")


def earlier_network(conf_dir: Path, own: Path) -> Path | None:
    """The file that a runtime which wants one network takes instead of ours, if there is one."""
    first = min([own, *_networks(conf_dir)], key=lambda path: path.name)
    return first if first != own else None


def write_files(targets: Iterable[Target], state_directory: Path) -> None:
    """Write those that are not as they should be, the plugins first; MuslinError naming one that cannot be."""
    ordered = sorted(targets, key=lambda target: target.kind == "network")
    with _usual_umask():
        made = tuple(str(path) for path in _missing_directories(ordered))
        _keep_record(state_directory, tuple(str(target.path) for target in ordered), made)
        for target in ordered:
            if judge(target).action != "keep":
                _make_directory(target.path.parent)
                write_whole(target.path, target.content, target.mode)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MuslinError(
            f"{path} cannot be made: {error.strerror}", "see its owner, or take another --bin-dir or --conf-dir"
        ) from error


def _missing_directories(targets: Iterable[Target]) -> list[Path]:
    """What has to be made, the deepest last."""
    wanted = {parent for target in targets for parent in target.path.parents}
    return sorted(path for path in wanted if not path.exists())


@contextlib.contextmanager
def _usual_umask() -> Iterator[None]:
    """Whoever has a stricter one has it for his own files; these are for runtimes of any user."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


# ---- removing --------------------------------------------------------------------------------------------


def find_ours(
    bin_dirs: Iterable[str], conf_dirs: Iterable[str], state_directory: Path, *, whole: bool = True
) -> list[CniFile]:
    """What there is to remove, in this order; with ``whole`` also what the record names, and the record."""
    record = read_record(state_directory) if whole else Record()
    recorded = [Path(path) for path in record.files]
    networks = [path for directory in conf_dirs for path in _networks(Path(directory))]
    networks += [path for path in recorded if path.name != NAME]
    programs = [Path(directory, NAME) for directory in bin_dirs] + [path for path in recorded if path.name == NAME]
    found = [_removal(path, "network") for path in _unique(networks) if _is_ours(path, "network")]
    found += [_removal(path, "plugin") for path in _unique(programs) if _is_ours(path, "plugin")]
    # What was being written when the writer ended.
    for path in recorded:
        rest = path.with_name(f"{path.name}.new")
        found += [_removal(rest, "plugin" if path.name == NAME else "network")] if rest.is_file() else []
    found += [_removal(state_directory / RECORD_NAME, "record")] if whole and record != Record() else []
    going = {Path(file.path) for file in found}
    for directory in (Path(path) for path in reversed(record.directories)):
        if directory.is_dir() and set(directory.iterdir()) <= going:
            found.append(_removal(directory, "directory"))
            going.add(directory)
    return found


def remove_files(files: Iterable[CniFile], state_directory: Path) -> None:
    """Remove what ``find_ours`` has found; what is gone meanwhile is fine, and so is a directory that is used again."""
    for file in files:
        path = Path(file.path)
        if file.kind == "directory":
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the agent's own files are in it, or it never was
        state_directory.rmdir()


def _removal(path: Path, kind: Literal["plugin", "network", "record", "directory"]) -> CniFile:
    return CniFile(path=str(path), kind=kind, action="remove")


# ---- the record ------------------------------------------------------------------------------------------


def read_record(state_directory: Path) -> Record:
    """What was written; an empty one where nothing usable is kept."""
    try:
        return msgspec.json.decode((state_directory / RECORD_NAME).read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, UnicodeDecodeError):
        return Record()


def _keep_record(state_directory: Path, files: tuple[str, ...], directories: tuple[str, ...]) -> None:
    before = read_record(state_directory)
    after = Record(
        files=tuple(sorted({*before.files, *files})), directories=tuple(sorted({*before.directories, *directories}))
    )
    if after == before:
        return
    _make_directory(state_directory)
    write_whole(state_directory / RECORD_NAME, msgspec.json.encode(after))


# ---- looking ---------------------------------------------------------------------------------------------


def _is_ours(path: Path, kind: str) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    return is_program(path) if kind == "plugin" else is_ours(path.name, path.read_bytes())


def _networks(conf_dir: Path) -> list[Path]:
    """Files that runtimes take for network configurations, by name."""
    found = conf_dir.iterdir() if conf_dir.is_dir() else ()
    return sorted(path for path in found if path.suffix in NETWORK_SUFFIXES and path.is_file())


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
