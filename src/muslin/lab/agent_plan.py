"""A lab whose nodes run agents, as values: what each agent is told, where it keeps its files, who holds the leases.

Theory of operation: an agent gets what a machine would give it: a store to find the others in, the interface to
reach them by, a bridge for its containers. Which subnet it leases is not told to it but written where an agent looks
at its start: in ``subnet.env``, as if it had held that subnet before. So the addresses of the topology hold, and it is
the agent's own way of coming back that holds them. Everything lies below the lab's directory: ``NODE/`` is the run
directory of a node's agent, ``store.sqlite`` or ``etcdN/`` the store.

The members of etcd are hosts of the lab like any other: on its first segment, with the addresses number 251 to 253.

Pure. ``lab.agents`` and ``lab.datastore`` run what is planned here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import msgspec

from muslin.backends import BACKENDS
from muslin.lab.topology import Attachment, Node, Segment, Topology, families_of, nth_address_or_none
from muslin.model.address import FAMILIES, Family, address_part, family_of, network_of, prefix_length
from muslin.model.config import NetworkConfig, SubnetPool, span_of
from muslin.model.network import LocalNode, endpoint, of_family
from muslin.wire.flannel_config import encode_network_config
from muslin.wire.subnet_env import SubnetEnv, encode_subnet_env

NetnsOf = Callable[[str], str]
"""The namespace of a place of the lab."""

AGENT_BRIDGE = "br0"
RENEW_SHARE = 3  # an agent renews when this part of a lease is left: two more tries would do
ETCD_MEMBERS = 3  # the fewest that go on working without one of them
ETCD_NUMBER = 251  # of the first member's address in its segment: clear of nodes, which end with 250 in a /24
ETCD_LINK = "eth0"
ETCD_PORT = 2379  # IANA: etcd-client
ETCD_PEER_PORT = 2380  # IANA: etcd-server
ETCD_PREFIX = "/coreos.com/network"  # flannel's, --etcd-prefix
ETCD_FAST = ("--heartbeat-interval=50", "--election-timeout=500")  # milliseconds: a lab has no distance to cross


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """The agent of one node."""

    node: str
    netns: str
    subnets: tuple[str, ...]
    """That it is to lease."""
    run_directory: str
    arguments: tuple[str, ...]
    """Those that a running agent must have been started with."""
    network_config: str
    """For a store that has none yet; a living agent follows the store."""
    subnet_env: bytes

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of ``muslin``."""
        return ("agent", *self.arguments, "--network-config", self.network_config)

    @property
    def socket(self) -> str:
        """The path of its API."""
        return f"{self.run_directory}/agent.sock"

    @property
    def subnet_file(self) -> str:
        """The path of its subnet.env."""
        return f"{self.run_directory}/subnet.env"

    @property
    def log(self) -> str:
        """Where its words go."""
        return f"{self.run_directory}/agent.log"

    @property
    def commands(self) -> tuple[str, ...]:
        """What a person would type to start it for the first time."""
        lines = " ".join(shlex.quote(line) for line in self.subnet_env.decode().splitlines())
        write = f"printf '%s\\n' {lines} > {shlex.quote(self.subnet_file)}"
        start = f"ip netns exec {shlex.quote(self.netns)} muslin {shlex.join(self.words)} &"
        return f"mkdir -p {shlex.quote(self.run_directory)}", write, start


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One etcd server. ``address`` is the one that the others and the agents know it by."""

    name: str
    netns: str
    address: str
    endpoint: str
    directory: str
    arguments: tuple[str, ...]

    @property
    def log(self) -> str:
        """Where its words go."""
        return f"{self.directory}/etcd.log"

    @property
    def commands(self) -> tuple[str, ...]:
        """What a person would type to start it."""
        start = f"ip netns exec {shlex.quote(self.netns)} etcd {shlex.join(self.arguments)} &"
        return f"mkdir -p {shlex.quote(self.directory)}", start


def run_directory(directory: str, node: str) -> str:
    """Where a node's agent has its socket, its subnet.env and its log."""
    return f"{directory}/{node}"


def store_file(directory: str) -> str:
    """The file of the sqlite store."""
    return f"{directory}/store.sqlite"


def agents(directory: str, topology: Topology, netns_of: NetnsOf) -> tuple[Agent, ...]:
    """The agents of a resolved topology, by node; none where the lab does without."""
    if topology.agents is None:
        return ()
    config = network_config(topology)
    return tuple(_agent(directory, topology, config, node, netns_of(node.name)) for node in topology.nodes)


def _agent(directory: str, topology: Topology, config: NetworkConfig, node: Node, netns: str) -> Agent:
    assert topology.agents is not None
    run = run_directory(directory, node.name)
    settings = {
        **store_settings(directory, topology),
        "iface": node.links[0].name,
        "bridge": AGENT_BRIDGE,
        "node-name": node.name,
        "state-dir": f"{run}/state",
        "run-dir": run,
        "subnet-file": f"{run}/subnet.env",
        "log-level": "info",
        "lease-ttl": str(topology.agents.lease_ttl_s),
        "lease-renew-margin": str(topology.agents.lease_ttl_s // RENEW_SHARE),
    }
    if topology.tunnel != "c":
        settings["tunnel"] = topology.tunnel
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    env = SubnetEnv(networks=config.networks, subnets=node.subnets, mtu=_container_mtu(topology, config, node))
    return Agent(
        node=node.name,
        netns=netns,
        subnets=node.subnets,
        run_directory=run,
        arguments=tuple(words),
        network_config=encode_network_config(config).decode(),
        subnet_env=encode_subnet_env(env),
    )


def store_settings(directory: str, topology: Topology) -> dict[str, str]:
    """Where the store of the agents is to be found, as settings of an agent."""
    if topology.agents and topology.agents.store == "etcd":
        return {"store": "etcd", "etcd-endpoints": ",".join(etcd_endpoints(topology)), "etcd-prefix": ETCD_PREFIX}
    return {"store": "sqlite", "store-path": store_file(directory)}


def _container_mtu(topology: Topology, config: NetworkConfig, node: Node) -> int:
    local = LocalNode(
        name=node.name,
        netns="",
        underlay_link=node.links[0].name,
        underlay_mtu=topology.mtu,
        addresses=tuple(sorted(node.links[0].addresses, key=family_of)),
        subnets=node.subnets,
        networks=topology.networks,
    )
    backend = BACKENDS[config.backend]
    return backend.mtu(backend.parse_options({}), local)


def network_config(topology: Topology) -> NetworkConfig:
    """What the agents share. Unlike flannel's default it leaves no subnet out: node 1 has the first one."""
    pools = tuple(_pool(topology, network) for network in topology.networks)
    return NetworkConfig(pools=pools, backend=topology.backend)


def _pool(topology: Topology, network: str) -> SubnetPool:
    subnets = [subnet for node in topology.nodes if (subnet := topology.subnet_of(node, family_of(network)))]
    length = prefix_length(subnets[0]) if subnets else prefix_length(network)
    last = network_of(f"{_last_address(network)}/{length}")
    return SubnetPool(
        network=network,
        subnet_length=length,
        subnet_min=address_part(network),
        subnet_max=address_part(last),
    )


def _last_address(network: str) -> str:
    first, last = span_of(network)
    return nth_address_or_none(network, last - first) or address_part(network)


# The members of etcd


def etcd_members(topology: Topology) -> tuple[Node, ...]:
    """The hosts that hold the store, on the first segment; none without agents, or with another store."""
    if topology.agents is None or topology.agents.store != "etcd" or not topology.segments:
        return ()
    return tuple(_etcd_host(topology.segments[0], position) for position in range(ETCD_MEMBERS))


def _etcd_host(segment: Segment, position: int) -> Node:
    found = (nth_address_or_none(prefix, ETCD_NUMBER + position) for prefix in _one_a_family(segment.prefixes))
    addresses = tuple(address for address in found if address)
    link = Attachment(segment=segment.name, name=ETCD_LINK, addresses=addresses)
    return Node(name=f"etcd{position + 1}", links=(link,))


def _one_a_family(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    found = (of_family(prefixes, family) for family in families_of(prefixes))
    return tuple(prefix for prefix in found if prefix)


def etcd_family(topology: Topology) -> Family | None:
    """The family that etcd is talked to in: one that the members and all nodes have; None when there is none."""
    hosts = (*etcd_members(topology), *topology.nodes)
    for family in FAMILIES:
        if all(any(family_of(address) == family for address in host.links[0].addresses) for host in hosts):
            return family
    return None


def etcd_endpoints(topology: Topology) -> tuple[str, ...]:
    """Where agents find the store."""
    return tuple(f"http://{endpoint(_etcd_address(topology, host), ETCD_PORT)}" for host in etcd_members(topology))


def _etcd_address(topology: Topology, host: Node) -> str:
    addresses = host.links[0].addresses
    return of_family(addresses, etcd_family(topology) or 4) or addresses[0]


def members(directory: str, topology: Topology, netns_of: NetnsOf) -> tuple[Member, ...]:
    """The etcd servers of a resolved topology."""
    hosts = etcd_members(topology)
    peers = {host.name: f"http://{endpoint(_etcd_address(topology, host), ETCD_PEER_PORT)}" for host in hosts}
    cluster = ",".join(f"{name}={url}" for name, url in peers.items())
    found = []
    for host in hosts:
        address, home = _etcd_address(topology, host), f"{directory}/{host.name}"
        client = f"http://{endpoint(address, ETCD_PORT)}"
        arguments = (
            f"--name={host.name}",
            f"--data-dir={home}/data",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peers[host.name]}",
            f"--initial-advertise-peer-urls={peers[host.name]}",
            f"--initial-cluster={cluster}",
            *ETCD_FAST,
        )
        netns = netns_of(host.name)
        found.append(
            Member(name=host.name, netns=netns, address=address, endpoint=client, directory=home, arguments=arguments)
        )
    return tuple(found)
