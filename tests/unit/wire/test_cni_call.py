"""The environment of a CNI call: what each command needs, and error 4 for what it does not get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire.cni_call import COMMANDS, Call, parse_call
from muslin.wire.cni_error import CniError
from tests.unit.wire.cni_examples import ADD, ID, NETNS, PODMAN, outcome

# SPEC.md, "CNI operations": what each command requires.
REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"},
    "CHECK": {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set[str](),
    "VERSION": set[str](),
}
NAMES = ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS")


def fault_of(**env: str) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_call(ADD | env)
    assert caught.value.code == 4
    return caught.value


def test_a_call_of_podman() -> None:
    assert parse_call(PODMAN) == Call(
        command="ADD",
        container_id=ID,
        ifname="eth0",
        netns=NETNS,
        args={
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": "web1",
            "K8S_POD_NAME": "web1",
            "K8S_POD_INFRA_CONTAINER_ID": ID,
            "MAC": "02:11:22:33:44:55",
            "IP": "10.5.3.77",
        },
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("absent", ["", None])
def test_the_message_names_every_required_variable_that_is_missing_and_no_other(
    command: str, absent: str | None
) -> None:
    env = {"CNI_COMMAND": command} | ({} if absent is None else dict.fromkeys(NAMES, absent))
    if not REQUIRED[command]:
        assert parse_call(env).command == command
        return
    with pytest.raises(CniError) as caught:
        parse_call(env)
    assert caught.value.code == 4
    assert {name for name in NAMES if name in caught.value.msg} == REQUIRED[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_requires_is_enough(command: str) -> None:
    env = {"CNI_COMMAND": command} | {name: ADD[name] for name in REQUIRED[command]}
    made = parse_call(env)
    assert (made.command, made.args, made.override) == (command, {}, False)


def test_all_that_is_wrong_is_named_at_once() -> None:
    fault = fault_of(CNI_CONTAINERID="../x", CNI_IFNAME="", CNI_NETNS="", CNI_ARGS="nonsense")
    for name in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"):
        assert name in fault.msg


@pytest.mark.parametrize("command", ["", "add", "UPDATE", "\udcff" * 100])
def test_an_unknown_command_is_error_4(command: str) -> None:
    assert "CNI_COMMAND" in fault_of(CNI_COMMAND=command).msg


@pytest.mark.parametrize("value", ["a", "0", ID, "a.b-c_d", "A" * 300])
def test_container_ids(value: str) -> None:
    assert parse_call(ADD | {"CNI_CONTAINERID": value}).container_id == value


@pytest.mark.parametrize("value", ["_a", ".a", "-a", "a/b", "a b", "a\n", "é", "a;b", "\udcff"])
def test_an_id_must_start_alphanumeric_and_go_on_with_those_or_underscore_dot_hyphen(value: str) -> None:
    assert "CNI_CONTAINERID" in fault_of(CNI_CONTAINERID=value).msg
    assert "CNI_CONTAINERID" in fault_of(CNI_COMMAND="DEL", CNI_CONTAINERID=value).msg


@pytest.mark.parametrize("value", ["eth0", "x", "fifteen-bytes.x", "...", "lo", "ö", "alles"])
def test_interface_names(value: str) -> None:
    assert parse_call(ADD | {"CNI_IFNAME": value}).ifname == value


@pytest.mark.parametrize(
    "value",
    [
        *("sixteen-bytes..x", ".", "..", "a/b", "a:b", "a b", "\ta", "a\n", "a\u2003b"),  # SPEC.md, "Parameters"
        *("öööööööö", "à", "eth%d", "all", "default", "\udcff"),  # what the kernel, or JSON, has against it
    ],
)
def test_an_interface_name_that_cannot_be_used_is_refused(value: str) -> None:
    assert "CNI_IFNAME" in fault_of(CNI_IFNAME=value).msg
    assert "CNI_IFNAME" in fault_of(CNI_COMMAND="DEL", CNI_IFNAME=value).msg


@pytest.mark.parametrize("netns", ["", "/gone", "\udcff", None])
def test_a_del_takes_any_netns_or_none(netns: str | None) -> None:
    """containerd's later DELs come with CNI_NETNS="", after a reboot with a path that is gone."""
    env = {name: value for name, value in ADD.items() if name != "CNI_NETNS"} | {"CNI_COMMAND": "DEL"}
    assert parse_call(env if netns is None else env | {"CNI_NETNS": netns}).netns == (netns or "")


def test_a_netns_that_no_result_could_tell_is_refused() -> None:
    assert "CNI_NETNS" in fault_of(CNI_NETNS="/run/\udcff").msg


def test_a_version_call_with_podmans_dummies() -> None:
    """CNI_NETNS=CNI_IFNAME=CNI_PATH=dummy, empty CONTAINERID; nothing of it is kept."""
    dummies = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy", "CNI_CONTAINERID": ""}
    assert parse_call(dummies | {"CNI_COMMAND": "VERSION"}) == Call(command="VERSION")


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=1;B=2;", {"A": "1", "B": "2"}),
        ("A=", {"A": ""}),
        ("A=b=c", {"A": "b=c"}),
        ("A=1;A=2", {"A": "2"}),
    ],
)
def test_args_are_pairs(text: str, args: dict[str, str]) -> None:
    assert parse_call(ADD | {"CNI_ARGS": text}).args == args


@pytest.mark.parametrize("text", ["A", "=1", "A=1;B", "A=1;=;B=2"])
def test_args_that_are_no_pairs_are_refused_but_not_on_a_del(text: str) -> None:
    assert "CNI_ARGS" in fault_of(CNI_ARGS=text).msg
    assert parse_call(ADD | {"CNI_ARGS": text, "CNI_COMMAND": "DEL"}).args == {}


@pytest.mark.parametrize(
    ("value", "override"), [("1", True), ("TRUE", True), ("true", True), ("0", False), ("", False), ("yes", False)]
)
def test_netns_override(value: str, override: bool) -> None:
    assert parse_call(ADD | {"CNI_NETNS_OVERRIDE": value}).override is override


ANY_VALUE = st.one_of(st.text(), st.text(alphabet="\udc80\udcff\ud800a=;/%.", max_size=20))


@given(
    st.sampled_from(COMMANDS),
    st.dictionaries(st.sampled_from([*NAMES, "CNI_NETNS_OVERRIDE", "CNI_COMMAND"]), ANY_VALUE),
)
def test_no_environment_raises_anything_else(command: str, env: dict[str, str]) -> None:
    made = outcome(lambda: parse_call({"CNI_COMMAND": command} | env))
    if isinstance(made, CniError):
        assert made.code == 4
        assert b"CNI_" in made.msg.encode()
    elif made.command in ("ADD", "CHECK"):
        assert f"{made.container_id}{made.ifname}{made.netns}".encode()
