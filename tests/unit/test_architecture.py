"""Rules of the house that an import contract cannot say. ARCHITECTURE.md names each of them.

An exception list here may only shrink: an entry that is no longer needed fails the test that reads it.
"""

import ast
import configparser
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "muslin"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# The one door to netlink. A package of that name would be the same door.
NETLINK_DOOR = ("kernel/netlink.py", "kernel/netlink/")

# What a room without I/O may take from the socket module: text to bytes and back, and numbers.
PURE_SOCKET_NAMES = ("inet_pton", "inet_ntop", "AF_", "IPPROTO_", "ntoh", "hton")

TUNNEL_MAY_IMPORT = ("muslin.wire", "muslin.model", "muslin.errors", "muslin.tunnel")


def list_sources(*directories: str) -> list[Path]:
    """Python files of the checkout below these directories."""
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


@functools.cache
def parse_source(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def list_rooms() -> set[str]:
    """Packages and modules directly below src/muslin."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return packages | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def list_functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse_source(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def list_imports(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, also inside functions."""
    for node in ast.walk(parse_source(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield node.module or ""


def uses_name(path: Path, name: str) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.alias) and node.name == name)
        for node in ast.walk(parse_source(path))
    )


def test_the_rules_see_the_code() -> None:
    assert list_sources("src"), "no source found: every rule below would hold of nothing"


@pytest.mark.parametrize("path", list_sources("src", "tests", "benchmarks"), ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines; split it by what it knows"
    for function in list_functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}:{function.lineno} {function.name}: {length} lines"


@pytest.mark.parametrize("path", list_sources("src"), ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parse_source(path)), f"{name_of(path)} has no docstring"


def test_every_room_is_a_package_with_a_docstring() -> None:
    directories = {path.parent for path in PACKAGE.rglob("*.py")}
    bare = sorted(name_of(directory) for directory in directories if not (directory / "__init__.py").exists())
    assert not bare, f"without __init__.py the import contracts do not see: {bare}"


def test_only_the_netlink_door_opens_netlink() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in list_sources("src") if uses_name(path, "AF_NETLINK")}
    strangers = {user for user in users if not user.startswith(NETLINK_DOOR)}
    assert not strangers, f"netlink is spoken through muslin.kernel.netlink alone, but also in {sorted(strangers)}"


def test_pure_rooms_take_no_sockets_from_the_socket_module() -> None:
    for path in list_sources("src/muslin/model", "src/muslin/wire"):
        for node in ast.walk(parse_source(path)):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "socket"), (
                f"{name_of(path)}: `import socket`, not from it"
            )
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket":
                fine = node.attr.startswith(PURE_SOCKET_NAMES)
                assert fine, f"{name_of(path)}:{node.lineno} uses socket.{node.attr}"


def test_the_tunnel_needs_nothing_but_the_standard_library() -> None:
    for path in list_sources("src/muslin/tunnel"):
        for name in list_imports(path):
            known = name.split(".")[0] in sys.stdlib_module_names
            ours = any(name == room or name.startswith(room + ".") for room in TUNNEL_MAY_IMPORT)
            assert known or ours, f"{name_of(path)} imports {name}"


def test_every_room_that_exists_is_named_without_parentheses() -> None:
    contracts = configparser.ConfigParser(interpolation=None)
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    floors = contracts["importlinter:contract:floors"]["layers"].replace("|", " ").split()
    planned = {floor.strip("()") for floor in floors if floor.startswith("(")}
    assert not planned & list_rooms(), "take the parentheses off, and add the room to its other contracts"
