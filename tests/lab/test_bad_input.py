"""Bad input and a hostile machine: one sentence with the object and the remedy, the right code, nothing changed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab.support import CHECKOUT, Muslin, leftovers, netns_names, netns_of, place_apart

pytestmark = pytest.mark.lab

HEAD = "schema: muslin.topology/v1\n"


def refused(muslin: Muslin, code: int, *arguments: object, says: tuple[str, ...], **options: Any) -> str:
    """Run ``muslin lab ...``, which must refuse with these words, briefly, and print no data."""
    done = muslin.lab(*arguments, code=code, **options)
    for words in says:
        assert words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4, done.stderr
    assert done.stdout == ""
    return done.stderr


UP = ("up", "--name")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--step", "5"], ("--step", "5", "1<=x<=4")),
        (["--step", "four"], ("--step", "'four' is not a valid")),
        (["--step", "1", "--nodes", "3"], ("step 1 is a single node, not 3", "use step 3")),
        (["--step", "2", "--nodes", "2"], ("step 2 is a single node, not 2", "use step 3")),
        (["--step", "1", "--containers", "2"], ("step 1 is a single container", "use step 2")),
        (["--step", "2", "--backend", "udp"], ("no use for the backend udp", "use step 3")),
        (["--step", "3", "--nodes", "0"], ("--nodes", "0 is not in the range")),
        (["--step", "3", "--nodes", "300"], ("a lab cannot have 300 nodes", "choose 1 to 256")),
        (["--step", "2", "--containers", "300"], ("300 containers", "choose 1 to 250")),
        (["--step", "4", "--network", "172.16.0.0/24"], ("node2", "172.16.0.0/24", "give a larger network")),
        (["--step", "4", "--network", "10.0.0.0/16"], ("10.0.0.0/24", "lan0", "choose disjoint prefixes")),
        (["--step", "4", "--network", "172.16.0.1/16"], ("'172.16.0.1/16' is no prefix", "host bits zero")),
        (["--step", "4", "--network", "fd00::/48"], ("fd00::/48 is IPv6, but the lab is IPv4 only", "family 6")),
        (["--step", "4", "--mtu", "100"], ("--mtu", "100 is not in the range")),
        (["--step", "4", "--family", "6", "--mtu", "1000"], ("1000", "1280")),
        (["--step", "4", "--backend", "ipip"], ("--backend", "'ipip' is not one of")),
        (["--step", "4", "--topology", "x.yaml"], ("--step and --topology exclude each other", "give one of them")),
        ([], ("what should the lab look like?", "give --step 1|2|3|4 or --topology FILE")),
        (["--topology", "/nonexistent/lab.yaml"], ("/nonexistent/lab.yaml cannot be read: No such file",)),
        (["--topology", "/nonexistent/lab.yaml", "--nodes", "3"], ("goes without --nodes",)),
    ],
)
def test_options_that_make_no_sense_are_refused(muslin: Muslin, options: list[str], says: tuple[str, ...]) -> None:
    done = muslin.lab("up", "--name", muslin.new_name(), *options, code=2)

    for words in says:
        assert words in done.stderr, done.stderr
    assert done.stdout == ""
    assert not leftovers(muslin.runtime)


@pytest.mark.parametrize("name", ["Lab", "-x", "a_b", "a/b", "..", "x" * 33, "", "a b"])
def test_a_name_that_no_namespace_could_carry_is_refused(muslin: Muslin, name: str) -> None:
    for verb in (["up", "--step", "1"], ["down"], ["check"], ["inspect"], ["demo"]):
        told = refused(muslin, 2, *verb, f"--name={name}", says=("cannot be the name of a lab",))
        assert "lower-case letters, digits and hyphens" in told
    assert not muslin.runtime.exists()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("nodes: [", 2, "stdin:"),
        (HEAD + "nodes:\n\t- name: a\n", 3, "indented by a tab, expected spaces"),
        ("nodes: []\n", 1, "start the file with `schema: muslin.topology/v1`"),
        (HEAD + "node: []\n", 2, "node"),
        (HEAD + "backend: ipip\nnodes: [{name: a}]\n", 2, "backend"),
        (HEAD + "nodes:\n  - name: a\n  - name: a\n", 4, "names must be unique"),
        (HEAD + f"nodes:\n  - name: {'a' * 60}\n", 3, "of at most 40"),
        (HEAD + "nodes:\n  - name: A\n", 3, "lower case letters"),
        (HEAD + "nodes:\n  - name: a\n    containers: [{name: c}, {name: c}]\n", 4, "names must be unique"),
        (HEAD + "nodes:\n  - name: a\n    subnets: [172.16.0.0/30]\n    containers: [{}, {}, {}]\n", 4, "too small"),
        (
            HEAD + "nodes:\n  - name: a\n    subnets: [172.16.0.0/23]\n  - name: b\n    subnets: [172.16.1.0/24]\n",
            6,
            "172.16.0.0/23",
        ),
        (
            HEAD + "nodes:\n  - name: a\n    links:\n      - segment: lan0\n        name: averyveryverylongname\n",
            6,
            "of at most 15",
        ),
    ],
)
def test_a_faulty_topology_is_refused_with_its_line(muslin: Muslin, text: str, line: int, says: str) -> None:
    told = refused(muslin, 2, *UP, muslin.new_name(), "--topology", "-", stdin=text, says=(says,))

    assert f"stdin:{line}: " in told
    assert not leftovers(muslin.runtime)


def test_a_faulty_topology_file_is_named_with_its_line(muslin: Muslin, tmp_path: Path) -> None:
    file = tmp_path / "bad.muslin.yaml"
    file.write_text(HEAD + "mtu: large\n")

    refused(muslin, 2, *UP, muslin.new_name(), "--topology", file, says=(f"{file}:2: mtu: ",))


def test_addresses_that_the_host_has_routes_to_are_refused_unless_allowed(muslin: Muslin) -> None:
    with place_apart("ip link set lo up; ip route add 172.16.4.0/22 dev lo", "-n") as pid:
        wrap = ("nsenter", "-t", str(pid), "-n")
        name = muslin.new_name()
        told = refused(muslin, 2, *UP, name, "--step", 4, wrap=wrap, says=("172.16.0.0/16", "172.16.4.0/22"))
        assert "--allow-overlap" in told or "--network" in told
        assert not leftovers(muslin.runtime)
        refused(muslin, 2, *UP, name, "--step", 4, "--network", "172.16.4.0/22", wrap=wrap, says=("172.16.4.0/22",))

        muslin.lab(*UP, name, "--step", 4, "--network", "172.20.0.0/16", wrap=wrap)
        muslin.lab("down", name, wrap=wrap)
        muslin.lab(*UP, name, "--step", 1, "--allow-overlap", wrap=wrap)
        muslin.lab("down", name, wrap=wrap)


def test_a_namespace_of_somebody_else_is_neither_used_nor_removed(muslin: Muslin) -> None:
    name = muslin.new_name()
    stranger = netns_of(name, "node1")
    subprocess.run(["ip", "netns", "add", stranger], check=True)
    try:
        told = refused(muslin, 2, *UP, name, "--step", 2, says=(stranger, "exists already", "--name"))
        assert f"ip netns delete {stranger}" in told
        assert netns_names(name) == {"node1"}
        muslin.lab("down", name)
        assert netns_names(name) == {"node1"}
    finally:
        subprocess.run(["ip", "netns", "delete", stranger], check=True)


# ---- the runtime directory ---------------------------------------------------------------------------------


def test_a_runtime_directory_that_cannot_be_made_is_named(muslin: Muslin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = Muslin(tmp_path / "file" / "run")

    told = refused(broken, 1, *UP, muslin.new_name(), "--step", 1, says=(str(broken.runtime), "Not a directory"))

    assert "MUSLIN_RUNTIME_DIR" in told
    assert not leftovers(muslin.runtime)


@pytest.mark.parametrize(("size", "reason"), [("ro", "Read-only file system"), ("size=4k", "No space left on device")])
def test_a_state_that_cannot_be_written_stops_up_before_it_begins(
    muslin: Muslin, tmp_path: Path, size: str, reason: str
) -> None:
    target = tmp_path / "small"
    target.mkdir()
    fill = "" if size == "ro" else f"; head -c 4096 /dev/zero > {target}/fill"
    with place_apart(f"mount -t tmpfs -o {size} none {target}{fill}", "-m", "--propagation", "private") as pid:
        small = Muslin(target / "run", ("nsenter", "-t", str(pid), "-m"))
        name = muslin.new_name()

        told = refused(small, 1, *UP, name, "--step", 4, says=(f"lab '{name}'", str(target), reason))

        assert "MUSLIN_RUNTIME_DIR" in told
        assert netns_names(name) == set()
        listed = subprocess.run([*small.wrap, "ls", target], check=True, capture_output=True, text=True).stdout
        assert listed.split() == ([] if size == "ro" else ["fill"])


def test_a_full_disk_during_an_update_leaves_the_lab_and_its_state(muslin: Muslin, tmp_path: Path) -> None:
    target = tmp_path / "small"
    target.mkdir()
    script = f"mount -t tmpfs -o size=64k none {target}; mount -t tmpfs none /run"
    with place_apart(script, "-m", "--propagation", "private") as pid:
        small = Muslin(target / "run", ("nsenter", "-t", str(pid), "-m"))
        name = small.up("--step", 1)
        fill = f"head -c 1000000 /dev/zero > {target}/fill || :"
        subprocess.run([*small.wrap, "sh", "-c", fill], check=True, capture_output=True)

        refused(small, 1, *UP, name, "--step", 4, says=(f"lab '{name}'", "No space left on device"))

        small.lab("check", "--name", name)
        small.lab("down", name)


def test_garbage_in_the_state_file_is_told_and_prune_clears_it(muslin: Muslin) -> None:
    name = muslin.up("--step", 1)
    path = muslin.runtime / name / "state.json"
    good = path.read_text()
    for garbage in ("", "{", '{"schema": "muslin.lab-state/v9"}', "\0" * 100):
        path.write_text(garbage)
        for verb in (["up", "--step", "1"], ["check"], ["down"], ["inspect"]):
            refused(muslin, 1, *verb, "--name", name, says=(str(path), f"muslin lab prune --name {name}"))
        assert muslin.json("ls", "--name", name)["labs"][0]["condition"] == "unreadable"
    path.write_text(good)
    muslin.lab("down", name)

    path.parent.mkdir(parents=True)
    path.write_text("garbage")
    muslin.lab("prune", "--name", name, "--yes")
    assert not leftovers(muslin.runtime)


def test_prune_of_an_unreadable_lab_takes_its_namespaces_too(muslin: Muslin) -> None:
    name = muslin.up("--step", 4)
    (muslin.runtime / name / "state.json").write_text("garbage")

    muslin.lab("prune", "--name", name, "--yes")
    muslin.lab("prune", "--name", name, "--yes")

    assert not leftovers(muslin.runtime)


def test_after_a_reboot_a_lab_is_lost_and_can_be_raised_or_cleared(muslin: Muslin) -> None:
    for verb in (["up", "--step", "1"], ["down"]):
        name = muslin.up("--step", 1)
        path = muslin.runtime / name / "state.json"
        state = {**json.loads(path.read_text()), "boot_id": "00000000-0000-0000-0000-000000000000"}
        path.write_text(json.dumps(state))
        for place in netns_names(name):  # which a reboot takes away
            subprocess.run(["ip", "netns", "delete", netns_of(name, place)], check=True)

        assert muslin.json("ls", "--name", name)["labs"][0]["condition"] == "lost"
        refused(muslin, 2, "check", "--name", name, says=(f"lab '{name}' is gone", f"muslin lab down --name {name}"))
        muslin.lab(*verb, "--name", name)
        if verb[0] == "up":
            muslin.lab("check", "--name", name)
        else:
            assert not (muslin.runtime / name).exists()


# ---- what a machine may lack -------------------------------------------------------------------------------


def test_without_a_tun_device_file_step_4_says_so_and_vxlan_works(muslin: Muslin) -> None:
    with place_apart("mount -t tmpfs none /dev/net", "-m", "--propagation", "slave") as pid:
        wrap = ("nsenter", "-t", str(pid), "-m")
        name = muslin.new_name()
        refused(muslin, 3, *UP, name, "--step", 4, wrap=wrap, says=("/dev/net/tun does not exist", "modprobe tun"))
        assert not leftovers(muslin.runtime)

        done = muslin.lab(*UP, name, "--step", 4, "--dry-run", wrap=wrap)
        assert "tun0" in done.stdout


def test_without_nft_a_lossy_topology_names_the_package_and_others_need_none(muslin: Muslin) -> None:
    env = {"PATH": "/nonexistent"}
    name = muslin.new_name()
    lossy = CHECKOUT / "examples" / "lossy-link.yaml"

    done = muslin.lab(*UP, name, "--topology", lossy, env=env, code=3)

    assert "nft" in done.stderr
    assert "nftables" in done.stderr
    assert not leftovers(muslin.runtime)
    muslin.lab(*UP, name, "--step", 3, env=env)
    muslin.lab("check", "--name", name, env=env)
    muslin.lab("down", name, env=env)


def test_what_the_kernel_refuses_is_named_and_all_is_taken_back(muslin: Muslin) -> None:
    # A user namespace with room for a few network namespaces, of which it needs seven: ENOSPC.
    script = "mount -t tmpfs none /run; echo 4 > /proc/sys/user/max_net_namespaces"
    with place_apart(script, "-U", "-r", "-m", "-n") as pid:
        apart = Muslin(muslin.runtime, ("nsenter", "-t", str(pid), "-U", "-m", "-n", "--preserve-credentials"))
        name = muslin.new_name()

        done = apart.lab(*UP, name, "--step", 3, code=None)

        assert done.returncode == 1
        assert "the kernel refused" in done.stderr
        assert f"ip netns add muslin-{name}-con1.node2: failed: No space left on device" in done.stderr
        listed = subprocess.run([*apart.wrap, "ip", "netns"], check=True, capture_output=True, text=True).stdout
        assert listed == ""
        assert not leftovers(muslin.runtime)


def test_a_lab_that_is_not_up_is_told_with_how_to_raise_one(muslin: Muslin) -> None:
    name = muslin.new_name()
    for verb in (["check"], ["inspect"]):
        refused(muslin, 2, *verb, "--name", name, says=(f"there is no lab '{name}'", "muslin lab up"))
    refused(muslin, 2, "exec", "--name", name, "node1", "--", "true", says=(f"there is no lab '{name}'",))


def test_an_unknown_verb_or_option_names_the_nearest(muslin: Muslin) -> None:
    assert "there is no command 'chek'. Did you mean 'check'?" in muslin.lab("chek", code=2).stderr
    assert "--stepp" in muslin.lab("up", "--stepp", 2, code=2).stderr
