"""The documents of the agent's API: what they must not lose on the way, and what is worked out from them."""

from __future__ import annotations

import msgspec
import pytest

from muslin.wire.agent_api import AgentStatus, KernelStatus, LeaseStatus
from tests.unit.agent.node import NOW, make_peer, make_status


def test_a_status_survives_json() -> None:
    status = make_status(peers=(make_peer(2), make_peer(3, state="refused", reason="no")))
    assert msgspec.json.decode(msgspec.json.encode(status), type=AgentStatus) == status


def test_what_a_newer_agent_says_besides_is_no_fault() -> None:
    document = msgspec.to_builtins(make_status()) | {"weather": "fine"}
    assert msgspec.convert(document, AgentStatus) == make_status()


def test_another_schema_is_refused() -> None:
    document = msgspec.to_builtins(make_status()) | {"schema": "muslin.agent-status/v2"}
    with pytest.raises(msgspec.ValidationError, match=r"\$\.schema"):
        msgspec.convert(document, AgentStatus)


def test_programmed_peers_are_counted() -> None:
    peers = (make_peer(2), make_peer(3, state="failed"), make_peer(4))
    assert make_status(peers=peers).programmed == 2


def test_the_subnet_is_programmed_once_the_kernel_has_agreed() -> None:
    assert make_status().subnet_programmed
    assert not make_status(lease=LeaseStatus(state="seeking")).subnet_programmed
    assert not make_status(kernel=KernelStatus(objects=5)).subnet_programmed
    assert not make_status(kernel=KernelStatus(last_pass_at=NOW)).subnet_programmed
