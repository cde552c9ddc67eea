"""The packet filter that looks at what containers send, as the text that nft prints, and its elements."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from muslin.plan.sources import Family, elements, table

BRIDGE_TEXT = """\
set cables {
type ifname . ether_addr
}
set sources4 {
type ifname . ipv4_addr
}
set sources6 {
type ifname . ipv6_addr
}
chain containers {
type filter hook prerouting priority dstnat; policy accept;
iifname != "mus*" return
iifname . ether saddr != @cables counter drop
iifname . ip saddr != @sources4 counter drop
iifname . arp saddr ether != @cables counter drop
arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @sources4 counter drop
ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @sources6 counter drop
}"""


def test_the_table_of_a_bridge_looks_at_arp_as_well() -> None:
    assert table("", "bridge").text == BRIDGE_TEXT


def test_the_table_of_routed_cables_has_no_arp_to_look_at() -> None:
    lines = [line for line in BRIDGE_TEXT.splitlines() if "arp" not in line]
    assert table("", "inet").text == "\n".join(lines).replace("dstnat", "raw")


@pytest.mark.parametrize("family", ["bridge", "inet"])
def test_nft_understands_the_table(family: Family) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    made = table("", family)
    script = f"table {family} {made.name} {{\n{made.text}\n}}\n"
    done = subprocess.run(["nft", "-c", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    refused_as_user = "Operation not permitted" in done.stderr or "Permission denied" in done.stderr
    assert done.returncode == 0 or refused_as_user, done.stderr


def test_a_container_is_one_element_in_each_set_that_it_needs() -> None:
    found = list(elements("", "bridge", "mus0", "02:00:00:00:00:01", ("10.0.0.2/24", "fd00::2/64")))
    assert [(element.table, element.set, element.address) for element in found] == [
        ("muslin_cni", "cables", "mus0 . 02:00:00:00:00:01"),
        ("muslin_cni", "sources4", "mus0 . 10.0.0.2"),
        ("muslin_cni", "sources6", "mus0 . fd00::2"),
    ]
    without_length = list(elements("", "bridge", "mus0", "02:00:00:00:00:01", ("10.0.0.2", "fd00::2")))
    assert without_length == found
    assert [one.set for one in elements("", "inet", "mus0", "02:00:00:00:00:01", ("fd00::2",))] == [
        "cables",
        "sources6",
    ]


def test_elements_stand_in_the_table_of_their_family() -> None:
    families: tuple[Family, ...] = ("bridge", "inet")
    for family in families:
        made = table("node", family)
        assert all(element.requires == (made.key,) for element in elements("node", family, "m", "02::", ("10.0.0.2",)))
