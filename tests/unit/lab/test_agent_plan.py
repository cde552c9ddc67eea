"""What agents and members of etcd are told, and where they keep their files."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any

import pytest

from muslin.lab.agent_plan import (
    Agent,
    Member,
    agents,
    etcd_endpoints,
    etcd_family,
    etcd_members,
    members,
    network_config,
)
from muslin.lab.plan import netns_of
from muslin.lab.presets import preset
from muslin.lab.topology import Agents, Topology
from muslin.settings import BY_NAME
from muslin.wire.flannel_config import parse_network_config
from muslin.wire.subnet_env import parse_subnet_env

PLACE = partial(netns_of, "x")
ETCD = Agents(store="etcd")


def agents_of(**options: Any) -> tuple[Agent, ...]:
    topology = preset(options.pop("step", 4), **{"agents": Agents(), **options})
    return agents("/run/x", topology, PLACE)


def members_of(topology: Topology) -> tuple[Member, ...]:
    return members("/run/x", topology, PLACE)


def test_a_lab_without_agents_has_none() -> None:
    assert agents("/run/x", preset(4), PLACE) == ()
    assert etcd_members(preset(4)) == etcd_members(preset(4, agents=Agents())) == ()
    assert members_of(preset(4)) == ()


def test_each_node_has_an_agent_that_is_told_where_it_is() -> None:
    first, second = agents_of(backend="vxlan")

    assert (first.node, first.netns, first.subnets) == ("node1", "muslin-x-node1", ("172.16.0.0/24",))
    assert (second.run_directory, second.socket) == ("/run/x/node2", "/run/x/node2/agent.sock")
    assert shlex.join(second.words).startswith(
        "agent --store sqlite --store-path /run/x/store.sqlite --iface eth0 --bridge br0 --node-name node2 "
        "--state-dir /run/x/node2/state --run-dir /run/x/node2 --subnet-file /run/x/node2/subnet.env "
        "--log-level info --lease-ttl 86400 --lease-renew-margin 28800 --network-config '{"
    )


@pytest.mark.parametrize("store", ["sqlite", "etcd"])
def test_every_word_is_a_setting_of_the_agent_or_its_value(store: Any) -> None:
    for agent in agents_of(agents=Agents(store=store)):
        names, values = agent.words[1::2], agent.words[2::2]
        assert {name.removeprefix("--") for name in names} <= set(BY_NAME)
        assert not [value for value in values if value.startswith("--")]


@pytest.mark.parametrize(
    ("options", "mtu"),
    [({"step": 3}, 1500), ({}, 1472), ({"backend": "vxlan"}, 1450), ({"backend": "vxlan", "families": (4, 6)}, 1430)],
)
def test_an_agent_finds_the_subnet_of_its_node_as_if_it_had_been_there_before(
    options: dict[str, Any], mtu: int
) -> None:
    for agent in agents_of(**options):
        env = parse_subnet_env(agent.subnet_env)
        assert env.subnets == agent.subnets
        assert env.mtu == mtu


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_the_network_shares_out_every_nodes_subnet_the_first_included(families: Any) -> None:
    topology = preset(4, nodes=5, families=families, agents=Agents())
    config = network_config(topology)

    assert (config.networks, config.backend) == (topology.networks, "udp")
    assert all(config.accepts(node.subnets) for node in topology.nodes)
    assert [pool.index_of(subnet) for pool, subnet in zip(config.pools, topology.nodes[0].subnets, strict=True)] == (
        [0] * len(families)
    )
    read = parse_network_config(agents("", topology, PLACE)[0].network_config.encode())
    assert read.pools == config.pools
    assert read.backend == config.backend


def test_the_members_of_etcd_are_hosts_of_the_first_segment_that_know_each_other() -> None:
    topology = preset(4, agents=ETCD, underlay="routed", families=(4, 6))
    first, _, third = members_of(topology)

    assert [host.links[0].segment for host in etcd_members(topology)] == ["lan1"] * 3
    assert etcd_members(topology)[0].links[0].addresses == ("10.0.1.251", "fd00:10:0:1::fb")
    assert etcd_endpoints(topology) == tuple(f"http://10.0.1.{number}:2379" for number in (251, 252, 253))
    assert (third.name, third.netns, third.directory) == ("etcd3", "muslin-x-etcd3", "/run/x/etcd3")
    assert "--data-dir=/run/x/etcd3/data" in third.arguments
    cluster = "etcd1=http://10.0.1.251:2380,etcd2=http://10.0.1.252:2380,etcd3=http://10.0.1.253:2380"
    assert {f"--initial-cluster={cluster}"} <= set(first.arguments) & set(third.arguments)
    agent = agents("/run/x", topology, PLACE)[1]
    assert agent.arguments[:4] == ("--store", "etcd", "--etcd-endpoints", ",".join(etcd_endpoints(topology)))


def test_etcd_is_spoken_to_in_the_family_that_there_is() -> None:
    topology = preset(4, agents=ETCD, families=(6,))

    assert etcd_family(topology) == 6
    assert etcd_endpoints(topology)[0] == "http://[fd00:10::fb]:2379"
    assert "--listen-peer-urls=http://[fd00:10::fd]:2380" in members_of(topology)[2].arguments


def test_commands_are_what_a_person_would_type() -> None:
    (agent, _), (member, *_) = agents_of(agents=ETCD), members_of(preset(4, agents=ETCD))

    assert agent.commands[0] == "mkdir -p /run/x/node1"
    assert "FLANNEL_SUBNET=172.16.0.1/24" in agent.commands[1]
    assert agent.commands[1].endswith("> /run/x/node1/subnet.env")
    assert agent.commands[2].startswith("ip netns exec muslin-x-node1 muslin agent --store etcd ")
    assert member.commands[-1].startswith("ip netns exec muslin-x-etcd1 etcd --name=etcd1 ")
    assert agent.commands[2][-2:] == member.commands[-1][-2:] == " &"
