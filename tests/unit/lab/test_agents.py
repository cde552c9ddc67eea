"""Agents that run are told from those that should, and what one has still to do is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.errors import MuslinError, UsageError
from muslin.kernel import programs
from muslin.kernel.programs import Program
from muslin.lab import agents as door
from muslin.lab import datastore
from muslin.lab.agents import AGENT_MARK, MEMBER_MARK, Crew, await_agents, is_to_be_told, missing, raise_crew, running
from muslin.lab.presets import preset
from muslin.lab.topology import Agents
from muslin.wire.agent_api import AgentStatus, KernelStatus, LeaseStatus, NetworkStatus, PeerStatus, StoreStatus

Found = dict[str, list[Program]]


def crew(directory: str = "/run/x", **options: Any) -> Crew:
    return Crew.of("x", directory, preset(4, **{"agents": Agents(store="etcd"), **options}))


def program(name: str, *words: str) -> Program:
    return Program(pid=7, started=1, uid=0, netns=f"muslin-x-{name}", value=name, words=words)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """What is found by each mark, in place of looking."""
    marked: Found = {AGENT_MARK: [], MEMBER_MARK: []}
    monkeypatch.setattr(programs, "find", lambda mark, _places: marked[mark])
    return marked


def test_a_crew_names_its_nodes_and_members() -> None:
    assert crew().names == ("node1", "node2", "etcd1", "etcd2", "etcd3")
    assert crew(agents=Agents()).names == ("node1", "node2")
    assert crew(agents=None).names == ()


def test_programs_that_were_told_something_else_are_missing(found: Found) -> None:
    wanted = crew()
    first, second = wanted.agents
    found[AGENT_MARK] = [
        program("node1", "/usr/bin/python3", "-P", "-m", "muslin", *first.words),
        program("node2", "python3.13", "-P", "-m", "muslin", *(*second.words[:1], "--ip-masq", *second.words[1:])),
    ]
    found[MEMBER_MARK] = [program(member.name, "/usr/bin/etcd", *member.arguments) for member in wanted.members[:2]]

    members, agents = missing(wanted, running(wanted))

    assert [member.name for member in members] == ["etcd3"]
    assert [agent.node for agent in agents] == ["node2"]


def test_a_living_agent_follows_the_store_whatever_configuration_it_began_with(found: Found) -> None:
    before, wanted = crew(backend="udp"), crew(backend="vxlan")
    found[AGENT_MARK] = [program(agent.node, "python3", "-m", "muslin", *agent.words) for agent in before.agents]

    assert missing(wanted, running(wanted))[1] == []


def test_what_an_agent_runs_for_a_moment_is_no_agent(found: Found) -> None:
    found[AGENT_MARK] = [program("node1", "nft", "-f", "-")]

    assert running(crew()) == []


def test_a_child_that_still_looks_like_its_agent_is_not_taken_for_it(found: Found) -> None:
    wanted = crew()
    agent = program("node1", "python3", "-P", "-m", "muslin", *wanted.agents[0].words)
    found[AGENT_MARK] = [msgspec.structs.replace(agent, pid=3, started=2), agent]

    assert [each.process.pid for each in running(wanted)] == [agent.pid]


# ---- waiting -----------------------------------------------------------------------------------------------


def peer(number: int, **fields: Any) -> PeerStatus:
    defaults: dict[str, Any] = {
        "name": f"172.16.{number - 1}.0-24",
        "addresses": (f"10.0.0.{number}0",),
        "subnets": (f"172.16.{number - 1}.0/24",),
        "backend": "udp",
        "state": "programmed",
        "changed_at": 0.0,
    }
    return PeerStatus(**(defaults | fields))


def status(number: int, peers: tuple[PeerStatus, ...], **fields: Any) -> AgentStatus:
    defaults: dict[str, Any] = {
        "version": "1",
        "name": f"node{number}",
        "pid": 7,
        "started_at": 0.0,
        "now": 0.0,
        "ready": True,
        "healthy": True,
        "lease": LeaseStatus(state="held", subnets=(f"172.16.{number - 1}.0/24",)),
        "store": StoreStatus(kind="sqlite"),
        "kernel": KernelStatus(),
        "network": NetworkStatus(networks=("172.16.0.0/16",), backend="udp", mtu=1472),
        "peers": peers,
    }
    return AgentStatus(**(defaults | fields))


GOOD = {"node1": status(1, (peer(2),)), "node2": status(2, (peer(1),))}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, AgentStatus | None]:
    """What each node's agent says of itself, in place of asking; and no patience."""
    answers: dict[str, AgentStatus | None] = dict(GOOD)
    monkeypatch.setattr(door, "ask_status", lambda path: answers[Path(path).parent.name])
    monkeypatch.setattr(door, "START_S", 0.0)
    monkeypatch.setattr(door, "START_EACH_S", 0.0)
    return answers


ALIVE = {"node1": lambda: True, "node2": lambda: True}


def complaint(wanted: Crew) -> str:
    with pytest.raises(MuslinError) as failure:
        await_agents(wanted, ALIVE)
    return str(failure.value)


def test_agents_that_have_all_peers_in_the_kernel_are_done(said: Any) -> None:
    await_agents(crew(), ALIVE)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "node1: it does not answer"),
        (status(1, (), ready=False, problems=("the store is away",)), "node1: the store is away"),
        (status(1, (), ready=False), "node1: it is not ready"),
        (status(1, (), network=None), "node1: it is not ready"),
        (status(1, ()), "node1: it does not know node2 yet"),
        (status(1, (peer(2, state="pending"),)), "node1: node2 is pending"),
        (status(1, (peer(2, state="failed", reason="no route"),)), "node1: node2 is failed: no route"),
        (status(1, (peer(2, state="refused", backend="vxlan", reason="two"),)), "node1: node2 still speaks vxlan"),
        (status(1, (peer(2, backend="host-gw"),)), "node1: node2 still speaks host-gw"),
        (
            status(1, (peer(2),), network=NetworkStatus(networks=(), backend="vxlan", mtu=0)),
            "node1: it still follows the backend vxlan",
        ),
    ],
)
def test_what_an_agent_lacks_is_named(said: Any, answer: Any, words: str) -> None:
    said["node1"] = answer

    told = complaint(crew())
    assert words in told
    assert "node2:" not in told


def test_a_peer_that_cannot_be_served_keeps_nobody_waiting(said: Any) -> None:
    said["node1"] = status(1, (peer(2, state="refused", reason="a router lies between"),))

    await_agents(crew(), ALIVE)


def test_a_subnet_that_was_not_free_ends_the_waiting(said: Any) -> None:
    said["node1"] = status(1, (), lease=LeaseStatus(state="held", subnets=("172.16.9.0/24",)))

    assert "the agent of node1 has leased 172.16.9.0/24, since 172.16.0.0/24 was not free" in complaint(crew())


def test_an_agent_that_has_ended_is_quoted(said: Any, tmp_path: Path) -> None:
    said["node2"] = None
    wanted = crew(str(tmp_path))
    (tmp_path / "node2").mkdir()
    Path(wanted.agents[1].log).write_text("one\n" * 9 + "no interface eth0\n")

    with pytest.raises(MuslinError, match="the agent of node2 has ended") as failure:
        await_agents(wanted, {**ALIVE, "node2": lambda: False})
    assert str(failure.value).splitlines()[-1] == "  no interface eth0"
    assert len(str(failure.value).splitlines()) == 1 + door.LAST_LINES


def test_agents_are_told_only_where_they_follow_another_backend(said: Any) -> None:
    assert not is_to_be_told(crew(backend="udp"))
    assert is_to_be_told(crew(backend="vxlan"))
    said.update(node1=None, node2=None)
    assert not is_to_be_told(crew(backend="vxlan"))


def test_a_path_that_no_socket_can_have_is_named_with_what_would_help(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "write_network", lambda *_: False)

    with pytest.raises(UsageError, match="longer than the 107 bytes") as failure:
        raise_crew(crew("/" + "x" * 100, agents=Agents()))
    assert "MUSLIN_RUNTIME_DIR" in failure.value.hint
