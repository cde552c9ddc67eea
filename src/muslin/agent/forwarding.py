"""Whether the packet filter of somebody else drops what this host should pass on between containers and other nodes.

Theory of operation: every filter in the kernel has its say, and one that drops wins, whatever the table ``inet muslin``
accepts. The one that does so on many hosts is the FORWARD chain of iptables, whose policy Docker sets to DROP; with
iptables' nftables variant it is a chain of the table ``ip filter`` (``ip6 filter``). It is told and not mended: it is
not ours. Not seen: the older variant of iptables, chains of other names, and rules that drop in spite of a policy that
accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from muslin.model.address import Family, family_of

ListTable = Callable[[Sequence[str]], str]
"""What ``nft list`` prints for these words, empty where there is no such thing."""

TABLES: dict[Family, tuple[str, str]] = {4: ("ip", "iptables"), 6: ("ip6", "ip6tables")}


def dropped_networks(networks: Sequence[str], list_table: ListTable) -> Iterator[str]:
    """A sentence for each network that iptables' policy drops, with what lets it through."""
    for network in networks:
        family, program = TABLES[family_of(network)]
        if "policy drop" not in list_table(("chain", family, "filter", "FORWARD")):
            continue
        rules = list_table(("table", family, "filter")).splitlines()
        if not all(
            any(f"{end} {network} " in rule and "accept" in rule for rule in rules) for end in ("saddr", "daddr")
        ):
            yield (
                f"the policy of {program}' FORWARD chain drops what this host should pass on for {network}; let it "
                f"through: {program} -I FORWARD -s {network} -j ACCEPT; {program} -I FORWARD -d {network} -j ACCEPT"
            )
