"""Every fault of the catalogue: it breaks what it should, the diagnosis names it, and what it prints mends the lab."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest

from muslin.lab.fault_catalogue import FAULTS
from muslin.lab.faults import Fault
from tests.lab.support import Muslin, broken, wait_until

STEP: dict[str, tuple[str, ...]] = {
    "loopback-down": ("--step", "1"),
    "link-down": ("--step", "2"),
    "unplugged": ("--step", "2"),
    "duplicate-address": ("--step", "2"),
    "bridged-frames-filtered": ("--step", "2"),
    "no-default-route": ("--step", "3", "--family", "dual"),
    "no-forwarding": ("--step", "3", "--family", "dual"),
    "no-return-route": ("--step", "3", "--family", "dual"),
    "wrong-mask": ("--step", "3", "--family", "dual"),
    "forward-policy": ("--step", "3", "--family", "6"),
    "masquerade": ("--step", "3", "--family", "dual"),
    "stale-route": ("--step", "3"),
    "checksum-offload": ("--step", "4"),
    "link-flap": ("--step", "3"),
    "strict-reverse-path": ("--step", "4"),
    "black-hole": ("--step", "4"),
    "tunnel-gone": ("--step", "4"),
    "tunnel-port-blocked": ("--step", "4"),
    "tunnel-mac": ("--step", "4", "--backend", "vxlan"),
    "wrong-outer-address": ("--step", "4", "--backend", "vxlan"),
}
OBJECTS = {
    "loopback-down": "link lo",
    "link-down": "link veth",
    "unplugged": "link veth",
    "duplicate-address": "address 172.16.0.",
    "bridged-frames-filtered": "iifname br0 oifname br0 drop",
    "no-default-route": "route to ",
    "no-forwarding": "sysctl net.ipv",
    "no-return-route": "route to ",
    "wrong-mask": "route 172.16.0.0/16 dev veth",
    "forward-policy": "policy drop",
    "masquerade": "masquerade",
    "stale-route": "neighbour 10.0.0.99",
    "link-flap": "route to 172.16.",
    "checksum-offload": "tcp checksum set",
    "strict-reverse-path": "rp_filter",
    "black-hole": "icmp type destination-unreachable drop",
    "tunnel-gone": "tunnel on tun0",
    "tunnel-port-blocked": "udp dport 9000 drop",
    "tunnel-mac": "link vxlan1",
    "wrong-outer-address": "neighbour 10.0.0.99",
}


def mend(muslin: Muslin, command: str) -> None:
    """Run a command as it was printed."""
    words = [shlex.quote(word) for word in muslin.command()]
    assert command.startswith("muslin ")
    line = " ".join([*words, command.removeprefix("muslin ")])
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, check=False, env=muslin.environment(), cwd="/"
    )
    assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_turns_the_check_red_is_named_and_what_is_printed_mends_it(muslin: Muslin, fault: Fault) -> None:
    name = muslin.up(*STEP[fault.name])
    assert muslin.json("diagnose", "--name", name)["findings"] == []
    told = muslin.json("break", fault.name, "--seed", "3", "--name", name)
    assert (told["symptom"], told["fault"]) == (fault.symptom, "")
    report = muslin.json("check", "--timeout", "0.5", "--name", name, code=1)
    assert broken(report) & {"R1", "R2", "R3"}
    found = muslin.json("diagnose", "--prove", "--name", name, code=1)["findings"]
    assert found[0]["cause"] in fault.causes
    assert [one for one in found if one["contradiction"] or not one["proof"]] == [], "the kernel says the same"
    assert OBJECTS[fault.name] in found[0]["object"]
    assert found[0]["place"] in found[0]["sentence"]
    for finding in found:
        for command in finding["mend"]:
            mend(muslin, command)
    done: dict[str, Any] = {}

    def mended() -> bool:
        # Neighbours and carriers take a moment; the exercise itself says when all is proved again.
        done.update(muslin.json("break", "--check", "--name", name, code=None))
        return not done["broken"]

    wait_until(mended, f"{fault.name} is mended")
    assert (done["fault"], done["score"]) == (fault.name, 100)


def test_every_fault_has_an_object_and_a_lab_here() -> None:
    names = {fault.name for fault in FAULTS}
    assert names == set(STEP) == set(OBJECTS)


def test_an_exercise_gives_hints_counts_points_and_is_healed(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    first = muslin.json("break", "--random", "--seed", "7", "--name", name)
    for number in (1, 2, 3, 3):
        assert len(muslin.json("break", "--hint", "--name", name)["hints"]) == number
    assert muslin.json("break", "--hint", "--name", name)["score"] == 40
    assert "is broken already" in muslin.lab("break", "--random", "--name", name, code=2).stderr
    assert muslin.json("break", "--check", "--name", name, code=1)["broken"] is True
    solved = muslin.json("break", "--solve", "--name", name)
    assert solved["fault"]
    assert solved["score"] == 0
    muslin.lab("heal", "--name", name)
    # What was asked for by ARP meanwhile is given up in its own time (net.ipv4.neigh.default.retrans_time_ms).
    wait_until(lambda: muslin.lab("check", "--name", name, code=None).returncode == 0, "the lab is healed")
    assert muslin.json("inspect", "--name", name)["drift"] == []
    assert "has not been broken" in muslin.lab("break", "--hint", "--name", name, code=2).stderr
    again = muslin.json("break", "--random", "--seed", "7", "--name", name)
    assert again == first, "the same seed breaks the same"
    muslin.lab("heal", "--name", name)


def test_wrong_checksums_in_a_vxlan_hit_connections_and_no_ping_and_heal_gives_the_offload_back(muslin: Muslin) -> None:
    name = muslin.up("--step", "4", "--backend", "vxlan")

    def offload() -> str:
        lines = muslin.inside(name, "node1", "ethtool", "-k", "eth0").stdout.splitlines()
        return next(line for line in lines if line.startswith("tx-checksumming:"))

    begun = offload()
    muslin.lab("break", "checksum-offload", "--seed", "3", "--name", name)
    assert offload() != begun
    muslin.inside(name, "con1.node1", "ping", "-c", "1", "-W", "2", "172.16.1.2")
    report = muslin.json("check", "--timeout", "0.5", "--name", name, code=1)
    assert "R1" in broken(report)
    muslin.lab("heal", "--name", name)
    assert offload() == begun
    muslin.lab("check", "--name", name)


def test_what_makes_no_sense_is_refused_with_what_does(muslin: Muslin) -> None:
    name = muslin.up("--step", "2")
    listed = {row["name"]: row["fits"] for row in muslin.json("break", "--list", "--name", name)["faults"]}
    assert listed["unplugged"] is True
    assert listed["tunnel-gone"] is False
    assert "makes no sense in this lab" in muslin.lab("break", "tunnel-gone", "--name", name, code=2).stderr
    assert "there is no fault 'nope'" in muslin.lab("break", "nope", "--name", name, code=2).stderr
    assert "break what?" in muslin.lab("break", "--name", name, code=2).stderr
    assert "give SRC and DST" in muslin.lab("diagnose", "con1", "--name", name, code=2).stderr
    assert "nothing is wrong on the way of 1 pair" in muslin.lab("diagnose", "con1", "con2", "--name", name).stdout


def test_agents_mend_what_is_theirs_and_one_is_shown_how(muslin: Muslin) -> None:
    name = muslin.up("--step", "3", "--agents")
    told = muslin.lab("break", "no-return-route", "--seed", "3", "--name", name)
    assert "the agents have mended it" in told.stdout
    assert "node1$ ip route add 172.16.1.0/24" in told.stdout
    assert "it was no-return-route" in told.stdout
    assert "to mend it yourself, break a lab without agents" in told.stderr
    assert "has not been broken" in muslin.lab("break", "--hint", "--name", name, code=2).stderr
    again = muslin.json("break", "no-forwarding", "--seed", "3", "--name", name)
    assert (again["broken"], again["fault"]) == (False, "no-forwarding")
    assert 0 < again["mended_by_agents"]["after_s"] < 3
    assert again["mended_by_agents"]["repairs"][0]["commands"] == ["sysctl -q -w net.ipv4.ip_forward=1"]
    wait_until(lambda: muslin.lab("check", "--name", name, code=None).returncode == 0, "all is well")


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_what_agents_leave_alone_is_an_exercise_there_too(muslin: Muslin, backend: str) -> None:
    name = muslin.up("--step", "4", "--backend", backend, "--agents")
    for fault in ("tunnel-port-blocked", "checksum-offload", "masquerade"):
        told = muslin.lab("break", fault, "--seed", "3", "--name", name)
        assert "none of the agents' business" in told.stderr
        found = muslin.json("diagnose", "--name", name, code=1)["findings"]
        assert OBJECTS[fault].replace("9000", "8285" if backend == "udp" else "8472") in found[0]["object"]
        for finding in found:
            for command in finding["mend"]:
                mend(muslin, command)
        assert muslin.json("diagnose", "--name", name)["ok"] is True
        muslin.lab("heal", "--name", name)


def test_down_takes_the_record_along(muslin: Muslin) -> None:
    name = muslin.up("--step", "2")
    muslin.lab("break", "--random", "--name", name)
    muslin.lab("down", name)
    muslin.up("--step", "2", name=name)
    assert "has not been broken" in muslin.lab("break", "--hint", "--name", name, code=2).stderr
