"""The text of nftables: what `nft -s list ruleset` prints as table objects."""

from __future__ import annotations

import subprocess

import pytest

from muslin.errors import UnsupportedError
from muslin.kernel.nft import devices_of, normalise, parse_ruleset, run_nft
from muslin.model.kernel import NftTable

RULESET = """\
# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t}
}
table inet muslin {
\tset peers {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1,
\t\t\t     10.0.0.2 }
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr @peers counter accept comment "a } in a comment"
\t}
}
table ip6 empty {
}
table netdev muslin {
\tchain loss-eth0 {
\t\ttype filter hook ingress device "eth0" priority filter; policy accept;
\t}
}
"""


def test_tables_are_told_apart_and_lose_their_indentation() -> None:
    tables = {(table.family, table.name): table for table in parse_ruleset("n1", RULESET)}
    assert list(tables) == [("ip", "nat"), ("inet", "muslin"), ("ip6", "empty"), ("netdev", "muslin")]
    assert all(table.netns == "n1" for table in tables.values())
    assert tables["ip6", "empty"].text == ""
    assert (
        tables["inet", "muslin"].text.splitlines()
        == [
            "set peers {",
            "type ipv4_addr",
            "elements = { 10.0.0.1,",
            "10.0.0.2 }",
            "}",
            "chain forward {",
            "type filter hook forward priority filter; policy accept;",
            'ip saddr @peers counter accept comment "a } in a comment"',
            "}",
            "}",
        ][:-1]
    )


def test_no_tables_are_no_objects() -> None:
    assert parse_ruleset("n1", "") == []


def test_what_a_table_says_of_itself_reads_back_as_that_table() -> None:
    for table in parse_ruleset("n1", RULESET):
        indented = "".join(f"\t{line}\n" for line in table.text.splitlines())
        printed = f"table {table.family} {table.name} {{\n{indented}}}\n"
        assert parse_ruleset("n1", printed) == [table]


def test_normal_text_stays_as_it_is() -> None:
    text = "\n\n\tchain c {\n\t\tcounter drop  \n\n\t}\n"
    assert normalise(text) == "chain c {\ncounter drop\n}"
    assert normalise(normalise(text)) == normalise(text)


def test_a_script_replaces_the_table_in_one_transaction_even_if_there_is_none() -> None:
    table = NftTable(netns="", family="ip", name="t", text="chain c {\n}")
    assert table.script == "table ip t\ndelete table ip t\ntable ip t {\nchain c {\n}\n}\n"


@pytest.mark.parametrize(
    ("failure", "told"),
    [(FileNotFoundError("nft"), UnsupportedError), (subprocess.TimeoutExpired("nft", 30), TimeoutError)],
)
def test_a_program_that_is_missing_or_hangs_is_told(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, told: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(told, match="nft"):
        run_nft("", ["list", "tables"])


@pytest.mark.parametrize(
    ("line", "devices"),
    [
        ('type filter hook ingress device "eth0" priority filter; policy accept;', ["eth0"]),
        ('type filter hook ingress devices = { "eth0", "v-1.2" } priority filter; policy accept;', ["eth0", "v-1.2"]),
        ("type filter hook forward priority filter; policy accept;", []),
    ],
)
def test_the_links_of_an_ingress_chain_are_read_from_its_text(line: str, devices: list[str]) -> None:
    assert devices_of(f"table netdev t {{\n\tchain c {{\n\t\t{line}\n\t}}\n}}") == devices
