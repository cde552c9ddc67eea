"""Verbs and versions that the runtimes of Debian do not speak, straight to the plugin: 1.1.0, GC and STATUS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.containers import audit
from tests.containers.direct import Answer, Attachment, add_netns, call, conf_of
from tests.containers.hosts import Host, Underlay
from tests.containers.plugins import chosen, ours_only

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0") if chosen().is_ours else ("0.3.1", "0.4.0", "1.0.0")


@pytest.fixture(scope="module")
def shared(underlay: Underlay) -> Iterator[Host]:
    """Give a host that the tests of this file share."""
    host = underlay.new_host(chosen())
    host.boot()
    host.start_agent()
    yield host
    host.remove()


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    """Give that host; after the test it is as it was, but for namespaces."""
    before = audit.of_host(shared)
    yield shared
    for one in list(shared.path("/run/netns").iterdir()):
        shared.run("ip", "netns", "delete", one.name)
    assert not audit.difference(before, audit.of_host(shared))


def boxes(host: Host, *names: str) -> list[Attachment]:
    """Containers that consist of a namespace."""
    return [Attachment(name, add_netns(host, name)) for name in names]


def address_of(result: Answer) -> str:
    """The first address of a result, with its length."""
    return str(result.succeeded().document["ips"][0]["address"])


def error_of(answer: Answer) -> tuple[int, str]:
    """The code and the words of a refusal."""
    assert answer.code != 0, answer
    document = answer.document
    return document["code"], f"{document['msg']} {document.get('details', '')}"


def test_the_plugin_says_its_versions_without_an_agent_or_a_configuration(host: Host) -> None:
    conf = {"cniVersion": "1.0.0", "type": host.plugin.conf(host)["type"]}
    told = call(host, "VERSION", conf, Attachment("", "dummy", "dummy")).succeeded().document
    assert set(told["supportedVersions"]) >= set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_is_of_the_version_that_was_asked_for(host: Host, version: str) -> None:
    (box,) = boxes(host, "box")
    conf = conf_of(host, version)
    result = call(host, "ADD", conf, box).succeeded().document
    assert result["cniVersion"] == version
    assert ("version" in result["ips"][0]) == (version in ("0.3.1", "0.4.0"))
    assert call(host, "DEL", {**conf, "prevResult": result}, box).succeeded().stdout == ""


@pytest.mark.parametrize("version", [one for one in VERSIONS if one != "0.3.1"])
def test_a_check_may_follow_at_once(host: Host, version: str) -> None:
    (box,) = boxes(host, "box")
    conf = conf_of(host, version)
    result = call(host, "ADD", conf, box).succeeded().document
    assert call(host, "CHECK", {**conf, "prevResult": result}, box).succeeded().stdout == ""
    call(host, "DEL", conf, box).succeeded()


def test_what_is_no_version_of_the_plugin_is_refused_with_code_1(host: Host) -> None:
    (box,) = boxes(host, "box")
    assert error_of(call(host, "ADD", conf_of(host, "9.9.9"), box))[0] == 1


@ours_only
def test_gc_removes_exactly_what_is_not_listed(host: Host) -> None:
    kept, lost, other = boxes(host, "kept", "lost", "other")
    conf = conf_of(host, "1.1.0")
    addresses = {box.container: address_of(call(host, "ADD", conf, box)) for box in (kept, lost, other)}
    valid = [{"containerID": box.container, "ifname": box.ifname} for box in (kept, other)]
    assert call(host, "GC", {**conf, "cni.dev/valid-attachments": valid}).succeeded().stdout == ""
    assert "eth0" not in host.run("ip", "-n", "lost", "-brief", "link")
    for box in (kept, other):
        assert addresses[box.container] in host.run("ip", "-n", box.container, "address", "show", "dev", "eth0")
    host.run("ip", "netns", "exec", "kept", "ping", "-c1", "-W2", addresses["other"].partition("/")[0])
    for box in (kept, other):
        call(host, "DEL", conf, box).succeeded()


@ours_only
def test_gc_takes_the_older_name_of_the_list(host: Host) -> None:
    kept, lost = boxes(host, "kept", "lost")
    conf = conf_of(host, "1.1.0")
    for box in (kept, lost):
        call(host, "ADD", conf, box).succeeded()
    valid = [{"containerID": kept.container, "ifname": kept.ifname}]
    call(host, "GC", {**conf, "cni.dev/attachments": valid}).succeeded()
    assert "eth0" not in host.run("ip", "-n", "lost", "-brief", "link")
    assert "eth0" in host.run("ip", "-n", "kept", "-brief", "link")
    call(host, "DEL", conf, kept).succeeded()


@ours_only
def test_gc_removes_what_lost_its_namespace(host: Host) -> None:
    gone, kept = boxes(host, "gone", "kept")
    conf = conf_of(host, "1.1.0")
    before = address_of(call(host, "ADD", conf, gone))
    call(host, "ADD", conf, kept).succeeded()
    host.run("ip", "netns", "delete", "gone")
    valid = [{"containerID": kept.container, "ifname": kept.ifname}]
    call(host, "GC", {**conf, "cni.dev/valid-attachments": valid}).succeeded()
    (again,) = boxes(host, "again")
    assert address_of(call(host, "ADD", conf, again, {"CNI_ARGS": f"IP={before}"})) == before
    for box in (again, kept):
        call(host, "DEL", conf, box).succeeded()


@ours_only
def test_status_is_good_while_there_is_an_agent_and_50_without(new_host: Callable[[], Host]) -> None:
    host = new_host()
    conf = conf_of(host, "1.1.0")
    assert call(host, "STATUS", conf).succeeded().stdout == ""
    host.end_agent()
    code, told = error_of(call(host, "STATUS", conf))
    assert code == 50
    assert "agent" in told
    host.start_agent()
    assert call(host, "STATUS", conf).succeeded().stdout == ""


@ours_only
def test_an_attachment_without_an_agent_is_to_be_tried_again(new_host: Callable[[], Host]) -> None:
    host = new_host()
    (box,) = boxes(host, "box")
    host.end_agent()
    assert error_of(call(host, "ADD", conf_of(host), box))[0] == 11


@ours_only
def test_a_container_in_a_new_namespace_keeps_its_address(host: Host) -> None:
    """What podman does after a reboot: an ADD of an id that is still known, in another namespace."""
    old, new = boxes(host, "old", "new")
    conf = conf_of(host)
    before = address_of(call(host, "ADD", conf, old))
    host.run("ip", "netns", "delete", "old")
    moved = Attachment(old.container, new.netns)
    assert address_of(call(host, "ADD", conf, moved)) == before
    host.run("ip", "netns", "exec", "new", "ping", "-c1", "-W2", host.address)
    call(host, "DEL", conf, moved).succeeded()


@ours_only
def test_the_hosts_own_namespace_is_refused_before_anything_is_touched(host: Host) -> None:
    before = audit.of_host(host)
    answer = call(host, "ADD", conf_of(host), Attachment("box", "/proc/self/ns/net"))
    assert error_of(answer)[0] == 8
    json.loads(answer.stdout)  # one document, and no other behind it
    assert audit.of_host(host) == before


@ours_only
@pytest.mark.parametrize("netns", ["/run/netns/nobody", "/etc/passwd", "/run"])
def test_a_namespace_that_is_none_is_refused(host: Host, netns: str) -> None:
    code, told = error_of(call(host, "ADD", conf_of(host), Attachment("box", netns)))
    assert code in (4, 8)
    assert netns in told
