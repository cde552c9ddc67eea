"""CNI's result: golden documents in every version, what other plugins put into it, and a chain."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire.cni_error import VERSIONS, CniError
from muslin.wire.cni_result import Dns, Interface, Ip, Result, Route, encode_result, merge, parse_result
from tests.unit.wire.cni_examples import NETNS, outcome

OURS = Result(
    interfaces=(
        Interface(name="mus0123456789ab", mac="02:aa:bb:cc:dd:ee", mtu=1450),
        Interface(name="eth0", mac="02:11:22:33:44:55", mtu=1450, sandbox=NETNS),
    ),
    ips=(
        Ip(address="10.5.3.77/24", gateway="10.5.3.1", interface=1),
        Ip(address="fd00:5:0:3::4d/64", gateway="fd00:5:0:3::1", interface=1),
    ),
    routes=(Route(dst="0.0.0.0/0", gw="10.5.3.1", mtu=1400, table=254, scope=0), Route(dst="::/0")),
    dns=Dns(nameservers=("10.5.0.10",), domain="example.org", search=("a", "b"), options=("ndots:5",)),
)
DNS = {"nameservers": ["10.5.0.10"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:5"]}
PLAIN_INTERFACES = [
    {"name": "mus0123456789ab", "mac": "02:aa:bb:cc:dd:ee"},
    {"name": "eth0", "mac": "02:11:22:33:44:55", "sandbox": NETNS},
]
PLAIN_IPS = [
    {"address": "10.5.3.77/24", "gateway": "10.5.3.1", "interface": 1},
    {"address": "fd00:5:0:3::4d/64", "gateway": "fd00:5:0:3::1", "interface": 1},
]
PLAIN_ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.5.3.1"}, {"dst": "::/0"}]
OF_0_4 = {
    "interfaces": PLAIN_INTERFACES,
    "ips": [PLAIN_IPS[0] | {"version": "4"}, PLAIN_IPS[1] | {"version": "6"}],
    "routes": PLAIN_ROUTES,
    "dns": DNS,
}
# The result in each version of the specification, as its "ADD Success" (before 1.0.0: "Result") has it.
GOLDEN: dict[str, dict[str, Any]] = {
    "0.3.1": {"cniVersion": "0.3.1"} | OF_0_4,
    "0.4.0": {"cniVersion": "0.4.0"} | OF_0_4,
    "1.0.0": {
        "cniVersion": "1.0.0",
        "interfaces": PLAIN_INTERFACES,
        "ips": PLAIN_IPS,
        "routes": PLAIN_ROUTES,
        "dns": DNS,
    },
    "1.1.0": {
        "cniVersion": "1.1.0",
        "interfaces": [interface | {"mtu": 1450} for interface in PLAIN_INTERFACES],
        "ips": PLAIN_IPS,
        "routes": [PLAIN_ROUTES[0] | {"mtu": 1400, "table": 254, "scope": 0}, PLAIN_ROUTES[1]],
        "dns": DNS,
    },
}


def encoded(result: Result, version: str) -> Any:
    return msgspec.json.decode(encode_result(result, version))


def fault_of(document: dict[str, Any]) -> str:
    with pytest.raises(CniError) as caught:
        parse_result(document, "1.1.0", "prevResult.")
    assert caught.value.code == 7
    return caught.value.msg


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_documents(version: str) -> None:
    assert encoded(OURS, version) == GOLDEN[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_read_is_written_again(version: str) -> None:
    assert encoded(parse_result(GOLDEN[version]), version) == GOLDEN[version]
    assert parse_result(GOLDEN["1.1.0"]) == OURS


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_result_leaves_out_what_is_optional(version: str) -> None:
    assert encoded(Result(), version) == {"cniVersion": version, "interfaces": [], "ips": []}
    assert parse_result({}, version) == Result()


def test_every_known_key_is_read_without_regard_to_case() -> None:
    def shouted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key.upper(): shouted(inner) for key, inner in value.items()}
        return [shouted(inner) for inner in value] if isinstance(value, list) else value

    assert parse_result(shouted(GOLDEN["1.1.0"])) == OURS
    assert parse_result(shouted(GOLDEN["0.4.0"])) == parse_result(GOLDEN["0.4.0"])


def test_of_two_keys_that_differ_in_case_the_later_wins() -> None:
    assert parse_result({"ips": [], "IPs": [{"address": "10.5.3.7/24"}]}).ips == (Ip(address="10.5.3.7/24"),)


def test_null_is_as_good_as_absent() -> None:
    nothing = {"interfaces": None, "ips": None, "routes": None, "dns": None, "cniVersion": None}
    assert parse_result(nothing) == Result()
    assert parse_result({"dns": {"search": None, "domain": None}}).dns == Dns()


STRANGE = {"io.example/x": [1, None, {"Deep": 1.5}], "socketPath": "/run/vhost.sock"}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_nobody_here_knows_survives_in_every_place(version: str) -> None:
    document = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "pciID": "0000:01:00.0"} | STRANGE],
        "ips": [{"address": "10.5.3.7/24"} | STRANGE | ({"version": "4"} if version < "1.0.0" else {})],
        "routes": [{"dst": "0.0.0.0/0"} | STRANGE],
        "dns": {"domain": "x"} | STRANGE,
    } | STRANGE
    assert encoded(parse_result(document), version) == document
    assert encoded(merge(parse_result(document), Result()), version) == document


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_newer_keys_in_an_older_document_are_passed_on(version: str) -> None:
    """Plugins built with a newer library say mtu in every version."""
    document: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mtu": 1450}],
        "ips": [],
        "routes": [{"dst": "0.0.0.0/0", "priority": 7}],
    }
    assert encoded(parse_result(document), version) == document


def test_the_version_of_the_configuration_counts_where_the_document_has_none() -> None:
    document = {"interfaces": [{"name": "eth0", "mtu": 1450}]}
    assert parse_result(document, "1.1.0").interfaces[0].mtu == 1450
    assert parse_result(document, "0.4.0").interfaces[0].mtu is None


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"interfaces": {}}, "prevResult.interfaces is {}"),
        ({"interfaces": [None]}, "prevResult.interfaces is [null]"),
        ({"interfaces": [{"name": 7}]}, "prevResult.interfaces[0].name is 7"),
        ({"interfaces": [{"name": "a"}, {"name": "b", "mtu": "1450"}]}, 'prevResult.interfaces[1].mtu is "1450"'),
        ({"interfaces": [{"name": "a", "mtu": True}]}, "prevResult.interfaces[0].mtu is true"),
        ({"ips": [{"gateway": "10.5.3.1"}]}, "prevResult.ips[0].address is missing"),
        ({"ips": [{"address": "10.5.3.7"}]}, 'prevResult.ips[0].address is "10.5.3.7"'),
        ({"ips": [{"address": "10.5.3.7/33"}]}, 'prevResult.ips[0].address is "10.5.3.7/33"'),
        ({"ips": [{"address": "10.5.3.7/24", "gateway": "gw"}]}, 'prevResult.ips[0].gateway is "gw"'),
        ({"ips": [{"address": "10.5.3.7/24", "interface": 1.0}]}, "prevResult.ips[0].interface is 1.0"),
        ({"routes": [{"gw": "10.5.3.1"}]}, "prevResult.routes[0].dst is missing"),
        ({"routes": [{"dst": "0.0.0.0/0", "table": "main"}]}, 'prevResult.routes[0].table is "main"'),
        ({"dns": []}, "prevResult.dns is []"),
        ({"dns": {"search": ["a", 1]}}, 'prevResult.dns.search is ["a",1]'),
        ({"cniVersion": 1.1}, "prevResult.cniVersion is 1.1"),
    ],
)
def test_a_wrong_type_is_named_with_its_place_and_value(document: dict[str, Any], named: str) -> None:
    assert fault_of(document).startswith(named + "; expected ")


def test_a_long_value_is_cut() -> None:
    assert len(fault_of({"dns": "x" * 10_000})) < 200


def test_merge_moves_the_indexes_of_ours_and_leaves_theirs() -> None:
    """SPEC.md, "ADD": a plugin given a prevResult "must ... output it, with any modifications"."""
    prev = parse_result(
        {
            "interfaces": [{"name": "tap0"}, {"name": "net1", "sandbox": NETNS}],
            "ips": [{"address": "10.9.0.2/24", "interface": 1}, {"address": "10.9.1.2/24"}],
            "routes": [{"dst": "10.9.0.0/16"}],
        }
    )
    ours = Result(
        interfaces=OURS.interfaces, ips=(*OURS.ips, Ip(address="10.5.4.1/32", interface=None)), routes=OURS.routes
    )
    merged = merge(prev, ours)
    assert merged.interfaces == prev.interfaces + ours.interfaces
    assert [ip.interface for ip in merged.ips] == [1, None, 3, 3, None]
    assert [route.dst for route in merged.routes] == ["10.9.0.0/16", "0.0.0.0/0", "::/0"]
    assert merge(None, ours) is ours
    assert merge(prev, Result()) == prev


def test_merge_keeps_each_name_server_once_and_the_first_domain() -> None:
    one = Result(dns=Dns(nameservers=("1.1.1.1", "2.2.2.2"), search=("a",), options=("x",)))
    other = Result(dns=Dns(nameservers=("2.2.2.2", "3.3.3.3"), domain="d", search=("a", "b"), options=("x",)))
    assert merge(one, other).dns == Dns(
        nameservers=("1.1.1.1", "2.2.2.2", "3.3.3.3"), domain="d", search=("a", "b"), options=("x",)
    )
    assert merge(other, Result(dns=Dns(domain="e"))).dns.domain == "d"


# ---- any result ------------------------------------------------------------------------------------------

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
NUMBER = st.none() | st.integers(0, 2**32 - 1)
REST = st.dictionaries(TEXT.map(lambda text: f"x-{text}"), JSON, max_size=2)
ADDRESS = st.ip_addresses().map(str)
PREFIX = st.one_of(
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 128)),
)
INTERFACES = st.builds(Interface, name=TEXT, mac=TEXT, mtu=NUMBER, sandbox=TEXT, rest=REST)
IPS = st.builds(Ip, address=PREFIX, gateway=st.just("") | ADDRESS, interface=NUMBER, rest=REST)
ROUTES = st.builds(
    Route,
    dst=PREFIX,
    gw=st.just("") | ADDRESS,
    mtu=NUMBER,
    advmss=NUMBER,
    priority=NUMBER,
    table=NUMBER,
    scope=NUMBER,
    rest=REST,
)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
RESULTS = st.builds(
    Result,
    interfaces=st.lists(INTERFACES, max_size=3).map(tuple),
    ips=st.lists(IPS, max_size=3).map(tuple),
    routes=st.lists(ROUTES, max_size=3).map(tuple),
    dns=st.builds(Dns, nameservers=TEXTS, domain=TEXT, search=TEXTS, options=TEXTS, rest=REST),
    rest=REST,
)


@given(RESULTS)
def test_any_result_is_read_as_it_was_written(result: Result) -> None:
    assert parse_result(encoded(result, "1.1.0")) == result


@given(RESULTS, st.sampled_from(VERSIONS))
def test_an_older_document_is_whole_after_a_second_writing(result: Result, version: str) -> None:
    document = encoded(result, version)
    assert encoded(parse_result(document), version) == document
    for ip in document["ips"]:
        expected = str(ipaddress.ip_interface(ip["address"]).version) if version < "1.0.0" else None
        assert ip.get("version") == expected
    if version < "1.1.0":
        assert not any("mtu" in interface for interface in document["interfaces"])


@given(RESULTS, RESULTS)
def test_in_a_merged_result_every_address_is_still_on_its_interface(prev: Result, ours: Result) -> None:
    merged = merge(prev, ours)
    for ip, moved in zip(ours.ips, merged.ips[len(prev.ips) :], strict=True):
        if ip.interface is not None and ip.interface < len(ours.interfaces):
            assert moved.interface is not None
            assert merged.interfaces[moved.interface] == ours.interfaces[ip.interface]
    assert merged.ips[: len(prev.ips)] == prev.ips


@given(st.dictionaries(st.sampled_from(["interfaces", "IPS", "routes", "dns", "cniVersion", "x"]), JSON))
def test_no_document_raises_anything_else(document: dict[str, Any]) -> None:
    result = outcome(lambda: parse_result(document))
    if isinstance(result, CniError):
        assert result.code == 7
    else:
        assert parse_result(encoded(result, "1.1.0"), "1.1.0").ips == result.ips
