"""``muslin explain`` by an ordinary user: what he may see is told, and what he may not is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.assumptions.room import NEEDS_ROOT, inside, ip, open_room
from tests.lab.support import SEVERAL_USERS, Muslin

pytestmark = [NEEDS_ROOT, SEVERAL_USERS]

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_routes_are_told_without_root_and_the_packet_filter_is_named_as_unseen(tmp_path: Path) -> None:
    muslin = Muslin(tmp_path / "run")
    with open_room() as room:
        netns, far = room.netns("mine"), room.netns("far")
        ip(netns, "link set lo up")
        ip(netns, f"link add d0 type veth peer name d1 netns {far}")
        ip(far, "link set d1 up")
        ip(netns, "addr add 10.1.0.1/24 dev d0")
        ip(netns, "link set d0 up")
        inside(netns, "nft", "add table ip t; add chain ip t o { type filter hook output priority 0; policy drop; }")
        here = ("nsenter", f"--net=/run/netns/{netns}")
        root = muslin.run("explain", "host", "10.1.0.7", wrap=here, code=1)
        assert "the packet filter of host drops it in output" in root.stdout
        assert "not seen" not in root.stdout
        user = (*here, *NOBODY)
        told = muslin.run("explain", "host", "10.1.0.7", wrap=user)
        assert "10.1.0.0/24 dev d0 = DIRECTLY CONNECTED" in told.stdout
        last = told.stdout.splitlines()[-1]
        assert last.startswith("not seen, and so not reckoned with: the packet filter (nft) of host and the inside of ")
        assert last.endswith("as root, the same command sees all")
        document = muslin.run("explain", "host", "10.1.0.7", "-o", "json", wrap=user).stdout
        assert "the packet filter (nft) of host" in document
        assert "10.1.0.0/24 dev d0" in muslin.run("routes", wrap=user).stdout
        for words in (("explain", netns, "10.1.0.7"), ("explain", "host", netns), ("routes", netns)):
            assert (
                f"looking into the network namespace '{netns}' needs root"
                in muslin.run(*words, wrap=user, code=2).stderr
            )
