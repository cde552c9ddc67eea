"""What is known of the network: which configuration is followed, and how long the one before is served."""

from __future__ import annotations

import json

import msgspec

from muslin.agent.network import LINGER_S, Network
from muslin.model.config import NetworkConfig
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.wire.flannel_config import parse_network_config


def config(backend: str = "vxlan", **options: object) -> bytes:
    return json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": backend, **options}}).encode()


def parsed(backend: str = "vxlan", **options: object) -> NetworkConfig:
    return parse_network_config(config(backend, **options))


def lease(number: int, backend: str) -> Lease:
    says = Advertisement(
        addresses=(f"10.0.0.{number}",), backend=backend, data={"VNI": 1} if backend == "vxlan" else {}
    )
    return Lease(subnets=(f"10.5.{number}.0/24",), advertisement=says)


def shown(text: bytes | None, *leases: Lease) -> ClusterSnapshot:
    return ClusterSnapshot(revision=1, config=text, leases=leases)


def test_the_first_configuration_is_followed_and_the_same_again_is_no_news() -> None:
    network = Network()
    assert network.take(shown(config()))
    assert not network.take(shown(config()))
    assert not network.take(shown(config() + b" ")), "other text that says the same"
    assert (network.config, network.previous, network.warning) == (parsed(), None, "")


def test_an_earlier_run_s_configuration_holds_until_the_store_says_otherwise() -> None:
    network = Network(parsed())
    assert not network.take(shown(config()))
    assert network.take(shown(config("host-gw")))


def test_what_another_version_wrote_down_is_forgotten() -> None:
    unknown = msgspec.structs.replace(parsed(), backend="warp")
    assert Network(unknown, parsed()).config is None
    network = Network(parsed(), unknown)
    assert (network.config, network.previous) == (parsed(), None)


def test_a_wrong_configuration_is_said_and_the_one_before_followed() -> None:
    network = Network()
    network.take(shown(config()))
    for wrong in (b"{", b"[]", b"\xff", config("warp"), config(VNI="x"), b'{"Network": "10.5.0.0/33"}'):
        assert not network.take(shown(wrong))
        assert "is wrong" in network.warning
        assert "the one before is followed" in network.warning
        assert network.config == parsed()
    network.take(shown(config()))
    assert network.warning == ""


def test_a_configuration_that_is_deleted_is_missed_and_followed_further() -> None:
    network = Network()
    assert not network.take(shown(None))
    assert "muslin network set" in network.warning
    network.take(shown(config()))
    network.take(shown(None))
    assert (network.config, "the last one is followed" in network.warning) == (parsed(), True)
    assert not network.take(shown(config()))
    assert network.warning == ""


def test_keys_that_mean_nothing_are_said_and_harm_nobody() -> None:
    network = Network()
    assert network.take(shown(b'{"Network": "10.5.0.0/16", "Colour": "blue", "Backend": {"Type": "vxlan"}}'))
    assert "Colour" in network.warning


def test_the_one_before_is_served_until_nobody_follows_it_and_some_seconds_longer() -> None:
    network = Network(parsed())
    network.take(shown(config("host-gw"), lease(1, "vxlan"), lease(2, "vxlan")))
    assert network.previous == parsed()
    for now in (100.0, 100.0 + 86_400):
        assert not network.let_go("10.5.1.0-24", now)
        assert network.lingers_s(now) is None, "a lease's end comes with a snapshot, and needs no timer"
    now = 90_000.0
    network.take(shown(config("host-gw"), lease(1, "vxlan"), lease(2, "host-gw")))
    assert not network.let_go("10.5.1.0-24", now), "the own lease does not count"
    assert network.lingers_s(now) == LINGER_S
    assert not network.let_go("10.5.1.0-24", now + LINGER_S - 0.1)
    assert network.let_go("10.5.1.0-24", now + LINGER_S)
    assert network.lingers_s(now) is None
    assert not network.let_go("10.5.1.0-24", now + LINGER_S)


def test_who_comes_back_to_the_one_before_is_waited_for_again() -> None:
    network = Network(parsed())
    network.take(shown(config("host-gw"), lease(2, "host-gw")))
    network.let_go("", 100.0)
    network.take(shown(config("host-gw"), lease(2, "vxlan")))
    assert not network.let_go("", 200.0)
    network.take(shown(config("host-gw"), lease(2, "host-gw")))
    assert not network.let_go("", 300.0)
    assert network.let_go("", 300.0 + LINGER_S)


def test_what_cannot_be_served_beside_the_new_one_goes_at_once() -> None:
    network = Network(parsed())
    network.take(shown(config(Port=4789), lease(2, "vxlan")))
    assert network.previous is None


def test_a_wish_needs_a_configuration_and_a_snapshot() -> None:
    own, other = lease(1, "vxlan"), lease(2, "vxlan")
    assert Network(parsed()).wish(own, "") is None
    network = Network()
    network.take(shown(None, own, other))
    assert network.wish(own, "") is None
    network.take(shown(config(), own, other))
    wish = network.wish(own, "02:00:00:00:00:01")
    assert wish is not None
    assert (wish.subnets, wish.leases) == (own.subnets, (other,))
