"""CNI's network configuration: what each command reads of it, what real runtimes put into it, and its errors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire.cni import NetworkConf, answer_version, parse_conf
from muslin.wire.cni_call import COMMANDS, Call, parse_call
from muslin.wire.cni_error import NEWEST, VERSIONS, CniError
from muslin.wire.cni_result import Dns, Interface, Ip, Result
from tests.unit.wire.cni_examples import ID, NETNS, PODMAN, PREV, call, conf, outcome
from tests.unit.wire.test_cni_result import JSON

STRICT = ("ADD", "CHECK", "STATUS")


def fault_of(stdin: bytes, by: Call | None = None) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_conf(stdin, by or call())
    return caught.value


# ---- the document and its version ------------------------------------------------------------------------


def test_defaults() -> None:
    assert parse_conf(conf(), call()) == NetworkConf(cni_version="1.1.0", name="podnet", type="muslin-cni")


def test_all_keys_of_ours() -> None:
    stdin = conf(
        mode="routed",
        mtu=1450,
        hairpinMode=True,
        defaultRoute=False,
        spoofCheck=False,
        bridge="cni0",
        ipMasq=True,
        dns={"nameservers": ["10.5.0.10"], "domain": "d", "search": ["s"], "options": ["o"]},
    )
    assert parse_conf(stdin, call()) == NetworkConf(
        cni_version="1.1.0",
        name="podnet",
        type="muslin-cni",
        mode="routed",
        mtu=1450,
        hairpin=True,
        default_route=False,
        spoof_check=False,
        bridge="cni0",
        ip_masq=True,
        dns=Dns(nameservers=("10.5.0.10",), domain="d", search=("s",), options=("o",)),
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "stdin",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"null",
            b"7",
            b'"x"',
            b"\xff",
            b"{}x",
            b'{"a": "\xff"}',
            b'{"a": "\\ud800"}',
            b"\xef\xbb\xbf{}",
        ),
        *(b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}"),
    ],
    ids=lambda stdin: repr(stdin[:12]),
)
def test_what_is_no_json_object_is_error_6(command: str, stdin: bytes) -> None:
    fault = fault_of(stdin, call(command))
    assert fault.code == 6
    assert "the network configuration" in fault.msg


def test_nesting_that_could_not_be_written_again_is_refused_and_less_is_not() -> None:
    def nested(depth: int) -> bytes:
        return conf(x=msgspec.Raw(b"[" * depth + b"]" * depth))

    assert parse_conf(nested(99), call()).name == "podnet"
    assert "more than 100 levels" in fault_of(nested(100)).msg
    assert parse_conf(conf(x=[[]] * 500), call()).name == "podnet"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_that_is_supported(version: str) -> None:
    assert parse_conf(conf(cniVersion=version), call()).cni_version == version


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.0", "1.1.1", "2.0.0", "", None, " 1.0.0", "x" * 999])
def test_a_version_that_is_not_literally_supported_is_error_1(command: str, version: str | None) -> None:
    """SPEC.md, "Version considerations"; missing or empty means 0.1.0."""
    fault = fault_of(conf(cniVersion=version), call(command))
    assert fault.code == 1
    assert "incompatible CNI versions" in fault.msg
    assert ("0.1.0" in fault.msg) == (version in ("0.1.0", "", None))
    assert all(supported in fault.details for supported in VERSIONS)


@pytest.mark.parametrize("version", [1, 1.1, ["1.0.0"], {}, True])
def test_a_version_that_is_no_string_cannot_be_decoded(version: Any) -> None:
    assert fault_of(conf(cniVersion=version)).code == 6


@pytest.mark.parametrize(
    ("command", "least"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0"), ("ADD", "0.3.1"), ("DEL", "0.3.1")]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_needs_the_version_that_introduced_it(command: str, least: str, version: str) -> None:
    """CHECK came with 0.4.0, GC and STATUS with 1.1.0."""
    stdin = conf(cniVersion=version, prevResult={})
    if version >= least:
        assert parse_conf(stdin, call(command)).cni_version == version
    else:
        fault = fault_of(stdin, call(command))
        assert fault.code == 1
        assert command in fault.msg
        assert least in fault.details


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (conf(cniVersion="0.4.0"), "0.4.0"),
        (b'{"CNIVERSION": "1.0.0"}', "1.0.0"),
        (conf(cniVersion="9.9.9"), NEWEST),
        (conf(cniVersion=7), NEWEST),
        (b"{}", NEWEST),
        (b"{", NEWEST),
        (b"[]", NEWEST),
    ],
)
def test_an_error_is_told_in_the_version_that_was_asked_for(stdin: bytes, version: str) -> None:
    assert answer_version(stdin) == version


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "VERSION"])
@pytest.mark.parametrize("name", [None, "", "a b", "-a", "a/b", 7, ["x"]])
def test_a_name_that_is_missing_or_wrong_is_error_7(command: str, name: Any) -> None:
    fault = fault_of(conf(name=name), call(command))
    assert fault.code == 7
    assert fault.msg.startswith("name is ")


# ---- keys and values -------------------------------------------------------------------------------------


def test_keys_count_without_regard_to_case_at_every_level() -> None:
    """containerd 1.6 capitalises the keys of runtimeConfig."""
    stdin = msgspec.json.encode(
        {
            "CNIVersion": "1.1.0",
            "Name": "podnet",
            "MTU": 1450,
            "HairpinMode": True,
            "RuntimeConfig": {
                "IPs": ["10.5.3.7/24"],
                "Mac": "02:00:00:00:00:01",
                "DNS": {"Servers": ["10.5.0.10"], "Searches": ["s"], "Options": ["o"]},
                "PortMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
                "Bandwidth": {"IngressRate": 1, "IngressBurst": 4294967295},
            },
            "PREVRESULT": {"IPs": [{"Address": "10.9.0.2/24", "Interface": 0}], "Interfaces": [{"Name": "eth1"}]},
        }
    )
    made = parse_conf(stdin, call())
    assert (made.mtu, made.hairpin, made.addresses, made.mac) == (1450, True, ("10.5.3.7",), "02:00:00:00:00:01")
    assert made.dns == Dns(nameservers=("10.5.0.10",), search=("s",), options=("o",))
    assert made.prev_result == Result(
        ips=(Ip(address="10.9.0.2/24", interface=0),), interfaces=(Interface(name="eth1"),)
    )


def test_unknown_keys_are_passed_over() -> None:
    """SPEC.md lets a plugin refuse them; upstream does not, and libcni leaves ``capabilities`` in."""
    stdin = conf(capabilities={"ips": True}, isGateway=True, ipam={}, plugins=None, args={"labels": [1]})
    assert parse_conf(stdin, call()) == parse_conf(conf(), call())
    assert parse_conf(conf(args="understood by others"), call()) == parse_conf(conf(), call())
    assert parse_conf(conf(args={"cni": 7}), call()) == parse_conf(conf(), call())


def test_null_and_zero_are_as_good_as_absent() -> None:
    keys = (
        "mode",
        "mtu",
        "hairpinMode",
        "defaultRoute",
        "dns",
        "bridge",
        "runtimeConfig",
        "args",
        "prevResult",
        "ipam",
    )
    assert parse_conf(conf(**dict.fromkeys(keys)), call()) == parse_conf(conf(), call())
    assert parse_conf(conf(mtu=0, mode=""), call()) == parse_conf(conf(), call())


@pytest.mark.parametrize("command", STRICT)
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("type", 7, "type is 7"),
        ("mode", "macvlan", 'mode is "macvlan"'),
        ("mode", True, "mode is true"),
        ("mtu", "1450", 'mtu is "1450"'),
        ("mtu", 1450.0, "mtu is 1450.0"),
        ("mtu", True, "mtu is true"),
        ("mtu", 67, "mtu is 67"),
        ("mtu", 65536, "mtu is 65536"),
        ("mtu", -1, "mtu is -1"),
        ("hairpinMode", "true", 'hairpinMode is "true"'),
        ("defaultRoute", 1, "defaultRoute is 1"),
        ("spoofCheck", [], "spoofCheck is []"),
        ("bridge", {}, "bridge is {}"),
        ("ipMasq", 0, "ipMasq is 0"),
        ("dns", "10.5.0.10", 'dns is "10.5.0.10"'),
        ("dns", {"nameservers": "10.5.0.10"}, 'dns.nameservers is "10.5.0.10"'),
        ("runtimeConfig", [], "runtimeConfig is []"),
        ("runtimeConfig", {"ips": "10.5.3.7"}, 'runtimeConfig.ips is "10.5.3.7"'),
        ("runtimeConfig", {"ips": ["10.5.3"]}, 'runtimeConfig.ips is ["10.5.3"]'),
        ("runtimeConfig", {"ips": ["10.5.3.7", "10.5.3.8"]}, 'runtimeConfig.ips is ["10.5.3.7","10.5.3.8"]'),
        ("runtimeConfig", {"mac": "x"}, 'runtimeConfig.mac is "x"'),
        ("runtimeConfig", {"dns": {"servers": 1}}, "runtimeConfig.dns.servers is 1"),
        ("args", {"cni": {"ips": [7]}}, "args.cni.ips is [7]"),
        ("prevResult", "x", 'prevResult is "x"'),
        ("prevResult", {"ips": [{"address": 7}]}, "prevResult.ips[0].address is 7"),
    ],
)
def test_a_wrong_value_is_error_7_that_names_key_and_value(command: str, key: str, value: Any, named: str) -> None:
    fault = fault_of(conf(**({"prevResult": PREV} | {key: value})), call(command))
    assert fault.code == 7
    assert fault.msg.startswith(named + "; expected ")


@pytest.mark.parametrize("command", STRICT)
def test_an_unsupported_field_is_error_2_that_names_key_and_value(command: str) -> None:
    """SPEC.md, "Error": "The error message must contain the key and value of the unsupported field"."""
    fault = fault_of(conf(prevResult=PREV, ipam={"type": "host-local"}), call(command))
    assert fault.code == 2
    assert 'ipam is {"type":"host-local"}' in fault.msg


# ---- what a container wants ------------------------------------------------------------------------------


def test_podman_wants_address_and_mac_by_cni_args_alone() -> None:
    """podman does so even when the capabilities are declared; unknown keys must not fail."""
    stdin = conf(cniVersion="0.4.0", runtimeConfig={"aliases": {"podnet": ["web1"]}})
    made = parse_conf(stdin, parse_call(PODMAN))
    assert (made.addresses, made.mac) == (("10.5.3.77",), "02:11:22:33:44:55")


PLACES: list[dict[str, Any]] = [
    {"runtimeConfig": {"ips": ["10.5.3.1"], "mac": "02:00:00:00:00:01"}},
    {"args": {"cni": {"ips": ["10.5.3.2"], "mac": "02:00:00:00:00:02"}}},
]


def test_the_precedence_of_the_three_places() -> None:
    """CONVENTIONS.md, "ips": runtimeConfig.ips / args.cni.ips > CNI_ARGS IP=."""
    by = call(IP="10.5.3.3", MAC="02:00:00:00:00:03")
    wanted = [
        parse_conf(conf(**PLACES[0], **PLACES[1]), by),
        parse_conf(conf(**PLACES[1]), by),
        parse_conf(conf(), by),
        parse_conf(conf(runtimeConfig={"ips": [], "mac": ""}), by),
        parse_conf(conf(), call()),
    ]
    assert [made.addresses for made in wanted] == [("10.5.3.1",), ("10.5.3.2",), ("10.5.3.3",), ("10.5.3.3",), ()]
    assert [made.mac[-1:] for made in wanted] == ["1", "2", "3", "3", ""]


@pytest.mark.parametrize(
    ("texts", "addresses"),
    [
        (["10.5.3.7"], ("10.5.3.7",)),
        (["10.5.3.7/24"], ("10.5.3.7",)),
        (["FD00::0:5/64", "10.5.3.7/32"], ("fd00::5", "10.5.3.7")),
    ],
)
def test_an_address_counts_without_its_length_and_however_it_is_spelt(
    texts: list[str], addresses: tuple[str, ...]
) -> None:
    assert parse_conf(conf(runtimeConfig={"ips": texts}), call()).addresses == addresses
    assert parse_conf(conf(args={"cni": {"ips": texts}}), call()).addresses == addresses
    assert parse_conf(conf(), call(IP=",".join(texts))).addresses == addresses


@pytest.mark.parametrize(
    "text", ["x", "10.5.3", "10.5.3.7/33", "10.5.3.7/", "10.5.3.7/x", "fe80::1%eth0", "1.1.1.1,2.2.2.2"]
)
def test_an_address_that_is_none_in_cni_args_is_error_4(text: str) -> None:
    fault = fault_of(conf(), call(IP=text))
    assert fault.code == 4
    assert f"CNI_ARGS holds IP={text}" in fault.msg


@pytest.mark.parametrize("text", ["02-00-5E-00-53-01", "02:00:5e:00:53:01"])
def test_a_mac_however_it_is_spelt(text: str) -> None:
    assert parse_conf(conf(), call(MAC=text)).mac == "02:00:5e:00:53:01"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "02:00:5e:00:53",
        "02:00:5e:00:53:01:02",
        "00:00:00:00:00:00",
        "01:00:5e:00:53:01",
        "02-00:5e-00:53-01",
        "\udcff",
    ],
)
def test_a_mac_that_no_interface_can_have_is_refused(text: str) -> None:
    assert fault_of(conf(), call(MAC=text)).code == 4
    if text.isascii():
        assert fault_of(conf(args={"cni": {"mac": text}})).code == 7


# ---- CHECK, DEL, GC --------------------------------------------------------------------------------------


def test_check_needs_the_result_of_the_add() -> None:
    """SPEC.md, "CHECK": "The plugin must consult prevResult"."""
    fault = fault_of(conf(), call("CHECK"))
    assert fault.code == 7
    assert "prevResult is missing" in fault.msg
    made = parse_conf(conf(prevResult=PREV), call("CHECK"))
    assert made.prev_result is not None
    assert made.prev_result.ips == (Ip(address="10.9.0.2/24", gateway="10.9.0.1", interface=0),)


@pytest.mark.parametrize(
    "garbage", [None, "", "x", 7, [], {"ips": 7}, {"ips": [{"address": "torn"}]}, {"interfaces": [None]}]
)
def test_a_del_passes_over_garbage_in_prev_result(garbage: Any) -> None:
    """SPEC.md, "DEL": best effort, and a DEL comes without prevResult, or with half of it."""
    assert parse_conf(conf(prevResult=garbage), call("DEL")).prev_result is None


def test_a_del_gets_the_result_when_it_can_be_read() -> None:
    made = parse_conf(conf(prevResult=PREV), call("DEL"))
    assert made.prev_result == Result(
        interfaces=(Interface(name="eth0", mac="02:00:00:00:00:09", sandbox=NETNS),),
        ips=(Ip(address="10.9.0.2/24", gateway="10.9.0.1", interface=0),),
    )


@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_what_an_add_refuses_does_not_keep_a_container_from_being_removed(command: str) -> None:
    """an ADD that failed is followed by a DEL, and a pod is stuck until that works."""
    stdin = conf(mtu="x", mode=7, runtimeConfig=[], ipam={"type": "x"}, dns=1, prevResult={"ips": 7})
    assert parse_conf(stdin, call(command, IP="x", MAC="y")).name == "podnet"


ALIVE = [{"containerID": ID, "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Valid-Attachments"])
def test_gc_is_told_what_is_alive(key: str) -> None:
    made = parse_conf(conf(**{key: ALIVE}), call("GC"))
    assert made.valid_attachments == ((ID, "eth0"), ("b", "net1"))
    assert parse_conf(conf(**{key: []}), call("GC")).valid_attachments == ()


def test_of_the_two_keys_that_libcni_sends_the_specified_one_counts() -> None:
    both = {"cni.dev/attachments": [], "cni.dev/valid-attachments": ALIVE}
    assert parse_conf(conf(**both), call("GC")).valid_attachments == ((ID, "eth0"), ("b", "net1"))


def test_no_list_is_not_an_empty_one() -> None:
    """An absent key is a nil list, as ``cnitool gc`` sends it."""
    assert parse_conf(conf(), call("GC")).valid_attachments is None
    assert parse_conf(conf(**{"cni.dev/valid-attachments": None}), call("GC")).valid_attachments is None


@pytest.mark.parametrize(
    "alive",
    [{}, "x", [7], [None], [{}], [{"containerID": ID}], [{"ifname": "eth0"}], [{"containerID": 7, "ifname": "e"}]],
)
def test_a_list_that_is_misread_would_remove_the_living(alive: Any) -> None:
    fault = fault_of(conf(**{"cni.dev/valid-attachments": alive}), call("GC"))
    assert fault.code == 7
    assert "cni.dev/valid-attachments" in fault.msg


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("GC", "VERSION")])
def test_only_gc_reads_the_list(command: str) -> None:
    stdin = conf(prevResult=PREV, **{"cni.dev/valid-attachments": [7]})
    assert parse_conf(stdin, call(command)).valid_attachments is None


# ---- any bytes -------------------------------------------------------------------------------------------

KEYS = ["name", "type", "mode", "mtu", "hairpinMode", "bridge", "dns", "ipam", "runtimeConfig", "args", "prevResult"]


@given(st.binary(), st.sampled_from(COMMANDS))
def test_no_bytes_raise_anything_else(stdin: bytes, command: str) -> None:
    with pytest.raises(CniError):
        parse_conf(stdin, call(command))
    answer_version(stdin)


@given(
    st.dictionaries(st.sampled_from([*KEYS, "cni.dev/valid-attachments", "cniVersion", "MTU"]), JSON),
    st.sampled_from(COMMANDS),
    st.dictionaries(st.sampled_from(["IP", "MAC"]), st.text(alphabet="0123456789abcdef:./,%\udcff")),
)
def test_no_document_raises_anything_else(values: dict[str, Any], command: str, args: dict[str, str]) -> None:
    made = outcome(lambda: parse_conf(conf(**values), call(command, **args)))
    if isinstance(made, CniError):
        assert made.code in (1, 2, 4, 6, 7)
        assert made.msg
    else:
        assert made.cni_version in VERSIONS


@given(st.data())
def test_a_torn_document_raises_nothing_else(data: st.DataObject) -> None:
    whole = conf(prevResult=PREV, runtimeConfig={"ips": ["10.5.3.7/24"]}, dns={"search": ["é"]})
    at = data.draw(st.integers(0, len(whole) - 1))
    torn = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]
    for stdin in (whole[:at], torn):
        made = outcome(lambda stdin=stdin: parse_conf(stdin, call()))  # type: ignore[misc]
        assert not isinstance(made, CniError) or made.code in (1, 6, 7)
