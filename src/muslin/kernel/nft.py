"""The door to nftables: whole tables in, canonical text out, by the ``nft`` program.

Theory of operation: a table is replaced as one transaction from text, which takes the elements of its sets along, and
is read back with ``nft -s -t list table`` (stateless and terse: neither counters nor the elements of sets, which
``kernel.nft_sets`` reads and writes). Only tables that were asked for are read: beside the 20,000 rules of others that
a Kubernetes host may have, listing all takes 0.25 s and one table 4 ms. Each is a run of nft of its own, as two ``list
table`` in one run of nft 1.0.6 do not find the first. Desired text is written in exactly the form that nft prints, so
both compare as text with the indentation taken away. nft starts inside the namespace because the thread that starts it
has entered it.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Sequence

from muslin.errors import UnsupportedError
from muslin.kernel import netns as netns_door
from muslin.kernel.nft_sets import has_table, read_elements
from muslin.kernel.sessions import Session
from muslin.model.kernel import NftTable

TIMEOUT_S = 30.0
_TABLE_LINE = re.compile(r"^table (\w+) (\S+)( \{)?$")


def run_nft(netns: str, arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run nft inside of a namespace; UnsupportedError where it is not installed, TimeoutError when it hangs."""

    def call() -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["nft", *arguments],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except FileNotFoundError:
            raise UnsupportedError(
                "the program 'nft' is missing, which packet filter tables need",
                "install the package nftables (apt-get install nftables)",
            ) from None
        except subprocess.TimeoutExpired:
            words = " ".join(arguments)
            raise TimeoutError(errno.ETIMEDOUT, f"nft {words} did not end within {TIMEOUT_S:.0f} s", netns) from None

    return netns_door.call_in(netns, call)


def list_text(netns: str, words: Sequence[str]) -> str:
    """What ``nft -s list`` prints for these words, such as ``chain ip filter FORWARD``; empty where there is none."""
    result = run_nft(netns, ["-s", "list", *words])
    return result.stdout if result.returncode == 0 else ""


def devices_of(text: str) -> list[str]:
    """The links that a chain of the ingress hook names: ``device "eth0"`` or ``devices = { "eth0", "eth1" }``."""
    found = re.search(r"\bdevices? (?:= \{([^}]*)\}|(\S+))", text)
    return re.findall(r'[^\s",]+', found[1] or found[2]) if found else []


def normalise(text: str) -> str:
    """The body of a table without indentation and blank lines."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def read_table(session: Session, family: str, name: str) -> NftTable | None:
    """One table, None when there is none of this name; OSError when nft cannot read it."""
    if not has_table(session, family, name):
        return None
    netns = session.netns
    result = run_nft(netns, ["-s", "-t", "list", "table", family, name])
    if result.returncode != 0:
        words = " ".join(result.stderr.split())
        raise OSError(_errno_in(words), f"nft could not list table {family} {name}: {words}", netns)
    return next(iter(parse_ruleset(netns, result.stdout)), None)


def parse_ruleset(netns: str, text: str) -> list[NftTable]:
    """Tables from the output of ``nft -s list ruleset`` or ``nft -s list table``."""
    tables = []
    current: tuple[str, str] | None = None
    body: list[str] = []
    for line in text.splitlines():
        if current is None:
            if match := _TABLE_LINE.match(line):
                current, body = (match[1], match[2]), []
        elif line == "}":
            family, name = current
            tables.append(NftTable(netns=netns, family=family, name=name, text=normalise("\n".join(body))))  # type: ignore[arg-type]
            current = None
        else:
            body.append(line)
    return tables


def create_table(table: NftTable) -> None:
    """Make ``table``; OSError EEXIST when there is one of this name."""
    place = f"{table.family} {table.name}"
    _run_script(table.netns, f"create table {place}\ntable {place} {{\n{table.text}\n}}\n")


def replace_table(session: Session, table: NftTable, before: NftTable | None = None) -> None:
    """Put ``table`` in place, in one transaction; OSError with nft's own words when it refuses.

    The elements of sets that it shares with ``before``, which it takes the place of, go into that transaction: so a
    rule that looks into such a set never finds it empty.
    """
    kept = table.sets_kept_from(before) if before else ()
    elements = {name: [el.address for el in read_elements(session, table.family, table.name, name)] for name in kept}
    _run_script(table.netns, table.with_elements(elements).script)


def delete_table(table: NftTable) -> None:
    """Remove a table."""
    _run_script(table.netns, f"delete table {table.family} {table.name}\n")


def _run_script(netns: str, script: str) -> None:
    result = run_nft(netns, ["-f", "-"], script)
    if result.returncode != 0:
        words = " ".join(result.stderr.split())
        raise OSError(_errno_in(words), f"nft refused: {words}", netns)


def _errno_in(words: str) -> int:
    """The kernel's errno, of which nft tells only the text; EINVAL for what nft itself refuses."""
    known = (errno.ENOENT, errno.EEXIST, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP)
    return next((number for number in known if os.strerror(number) in words), errno.EINVAL)
