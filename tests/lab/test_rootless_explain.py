"""explain, trace, break and capture for an ordinary user: no root, no tcpdump, the same words."""

from __future__ import annotations

import pytest

from tests.lab.support import SEVERAL_USERS, Muslin
from tests.lab.test_rootless import home, python, user

__all__ = ["home", "python", "user"]

pytestmark = [pytest.mark.lab, SEVERAL_USERS]


def test_a_packet_is_explained_traced_lost_and_found_without_root(user: Muslin) -> None:
    name = user.up("--step", "4")
    assert user.json("explain", "con1.node1", "con1.node2", "--name", name)["request"]["outcome"] == "arrives"
    traced = user.json("trace", "con1.node1", "con1.node2", "--name", name)
    assert (traced["ok"], traced["answered"]) == (True, True)
    assert len(traced["lines"]) == 24
    user.lab("break", "forward-policy", "--seed", "1", "--name", name)
    found = user.json("diagnose", "--prove", "--name", name, code=1)["findings"]
    assert found[0]["cause"] == "filter"
    assert "nft trace names the same rule: inet firewall forward: policy drop" in found[0]["proof"]
    user.lab("heal", "--name", name)
    user.inside(name, "node2", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    counted = user.json("trace", "con1.node1", "con1.node2", "--size", 3000, "--no-df", "--name", name)
    assert "node2 counted it: IpInAddrErrors" in counted["proof"]
    assert {line["place"] for line in counted["lines"] if "fragment" in line} >= {"con1.node1", "node1", "node2"}
    user.inside(name, "node2", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    user.lab("check", "--name", name)
