"""How an explanation reads."""

from muslin.explain.both import Question, explain
from muslin.explain.text import draw
from tests.unit.explain.networks import two_nodes
from tests.unit.explain.test_carry import udp

REQUEST = """\
request: 172.16.0.2 → 172.16.1.2, ICMP, 84 bytes
  1 con1   out veth11  ttl 64  default via 172.16.0.1 dev veth11 = DEFAULT (beats nothing: 172.16.0.0/24 veth11 \
does not contain it)
  2 node1  in br0 (port veth10) out eth0  ttl 64 → 63  172.16.1.0/24 via 10.0.0.20 dev eth0 = STATIC (beats nothing: \
the only route that contains it)
  3 lan    br0: in node1 out node2  ttl 63  switched: does not know the MAC: sends it by every port
  4 node2  in eth0 out br0 (port veth10)  ttl 63 → 62  172.16.1.0/24 dev br0 = DIRECTLY CONNECTED (beats nothing: \
the only route that contains it)
  5 con2   in veth11 for itself  ttl 62  172.16.1.2 dev veth11 = LOCAL (beats 172.16.1.0/24 dev veth11: rule 0 is \
asked before 32766, table local before main)
  arrives with TTL 62
"""


def test_one_line_a_hop_with_type_and_reason() -> None:
    found = explain(two_nodes().sights, Question(netns="con1", destination="172.16.1.2"))
    assert draw(found).startswith(REQUEST)


def test_a_carried_packet_has_its_hops_below_the_one_that_wrapped_it() -> None:
    lines = draw(explain(udp().sights, Question(netns="con1", destination="172.16.1.2"))).splitlines()
    assert lines[3].strip() == (
        "↳ into UDP 10.0.0.10 > 10.0.0.20 port 9000, +28 bytes (the tunnel's peer for 172.16.1.0/24 is 10.0.0.20:9000)"
    )
    assert [line.split()[0] for line in lines[4:7]] == ["2.1", "2.2", "2.3"]


def test_a_drop_ends_with_one_sentence_and_what_mends_it() -> None:
    network = two_nodes()
    network.places["node2"].sysctls["net/ipv4/conf/eth0/forwarding"] = "0"
    lines = draw(explain(network.sights, Question(netns="con1", destination="172.16.1.2"))).splitlines()
    assert lines[-2:] == [
        "  ✗ node2 is not 172.16.1.2 and does not forward (net.ipv4.conf.eth0.forwarding=0)",
        "    mend it in node2: sysctl -w net.ipv4.ip_forward=1",
    ]


def test_wide_tells_what_was_asked_and_why_not_why_another_lost() -> None:
    question = Question(netns="con1", destination="172.16.1.2", why_not="node2@10.0.0.0/24")
    text = draw(explain(two_nodes().sights, question), wide=True)
    assert "· 172.16.0.1 is 02:00" in text
    assert "· MTU 1500, 1416 bytes left" in text
    assert "· forwarding is on" in text
    assert text.endswith("node2: 10.0.0.0/24 dev eth0 does not contain 172.16.1.2")
