"""Files: whatever a person writes becomes a topology or a sentence with a line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.errors import UsageError
from muslin.lab import topology, topology_file
from muslin.lab.presets import preset
from muslin.lab.topology import SCHEMA, Agents, Topology
from muslin.lab.topology_file import dump_topology, load_topology, schema_text
from muslin.lab.validate import validate

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
HEAD = f"schema: {SCHEMA}\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
PRESETS = [
    preset(1),
    preset(2),
    preset(3, nodes=30, containers=3),
    preset(4, families=(4, 6), mtu=9000),
    preset(4, underlay="routed", backend="vxlan", families=(6,)),
    preset(4, agents=Agents()),
    preset(3, agents=Agents(store="etcd", lease_ttl_s=60), nodes=3),
]

MISTAKES = [
    ("", "1: found nothing, expected a topology"),
    ("# only a comment\n", "1: found nothing"),
    ("\n- a\n", "2: found a list, expected a topology"),
    ("text", "1: found a single value"),
    ("nodes: []", "1: schema is missing"),
    (
        "schema: muslin.topology/v2",
        "1: schema: 'muslin.topology/v2' is not known, expected muslin.topology/v1",
    ),
    (HEAD, "1: nodes: there is no node"),
    (HEAD + "nodes:\n- name: a\n  nam: b\n", "4: nodes[0].nam: is not a field of a node: did you mean name?"),
    (
        HEAD + "nodes:\n- name: a\n  links: [{segment: x, foo: 1}]",
        "4: nodes[0].links[0].foo: is not a field of a link",
    ),
    (
        HEAD + "nodes:\n- name: 1\n",
        "3: nodes[0].name: found a whole number, expected text (write it in quotes)",
    ),
    (HEAD + "nodes:\n- attach: direct\n", "3: nodes[0]: name is missing: a node needs it"),
    (HEAD + "backend: foo\n", "2: backend: 'foo' is not known, expected none, host-gw, udp, vxlan"),
    (HEAD + "agents: {store: zookeeper}\n", "2: agents.store: 'zookeeper' is not known, expected sqlite, etcd"),
    (HEAD + "agents: {stor: etcd}\n", "2: agents.stor: is not a field of agents: did you mean store?"),
    (HEAD + "agents: true\n", "2: agents: found true or false, expected a mapping (name: value) or nothing"),
    (HEAD + "step: 9\n", "2: step: 9 is not known, expected 1, 2, 3, 4"),
    (HEAD + "mtu: 1.5\n", "2: mtu: found a number, expected a whole number"),
    (HEAD + "mtu: " + "1" * 5000, "2: mtu: "),
    (HEAD + "nodes:", "2: nodes: found nothing, expected a list"),
    (HEAD + "nodes: [{name: a, containers: [{mtu: x}]}]", "2: nodes[0].containers[0].mtu: found text"),
    (HEAD + "mtu: 1500\nmtu: 1400", "3: mtu: given twice, first on line 2"),
    (HEAD + "nodes:\n\t- name: a", "3: indented by a tab, expected spaces"),
    (HEAD + "nodes: [", "not valid YAML"),
    (HEAD + "---\n" + HEAD, "2: not valid YAML: expected a single document"),
    (HEAD + "nodes: *x", "2: not valid YAML: found undefined alias"),
    (HEAD + "on: 1", "2: on is no name of a field"),
    (HEAD + "? [a]\n: b", "2: a list or mapping is no name of a field"),
    (
        HEAD + "nodes: !!python/object:os.system {}",
        "2: nodes: the tag !!python/object:os.system has no meaning",
    ),
    (HEAD + "nodes: !!binary aGk=", "2: nodes: the tag !!binary has no meaning"),
    (HEAD + "<<: 3", "a merge key (<<) takes a mapping"),
    ("\x00\x01", "1: holds bytes that no text has"),
    ("\ud800", "1: holds bytes that no text has"),
    (b"a: b\n\xff\xfe", "2: holds bytes that no text has"),
    ("[" * 100_000, "1: nested more than 32 levels"),
    (HEAD + "networks: &a [*a]", "2: networks: an alias contains itself"),
    (BOMB, "aliases or lists grow to more than 250000 values"),
    ("x" * (1 << 20) + "x", "1: holds 1048577 characters"),
    (json.dumps({"schema": SCHEMA, "mtu": "x"}, indent="\t"), "3: mtu: found text, expected a whole number"),
    (
        HEAD + "mtu: 1\nnodes:\n- name: a\n- name: a\n",
        "5: nodes[1].name: node a has the same name as node a: names must be unique\nlab.yaml:2: mtu: ",
    ),
    (HEAD + "nodes:\n- name: A\n" + "- name: A\n" * 40, "and 61 more problems"),
]


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: the one in C is missing from some builds."""
    monkeypatch.setattr(topology_file, "Loader", getattr(yaml, request.param))


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_told_with_its_line(text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_topology("lab.yaml", text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("lab.yaml:")


def test_stdin_is_called_so() -> None:
    with pytest.raises(UsageError, match=r"^stdin:1: found nothing"):
        load_topology("-", "")


@pytest.mark.usefixtures("loader")
def test_json_yaml_and_aliases_read_alike() -> None:
    wanted = load_topology("a", HEAD + "nodes: [{name: a, containers: [{}, {}]}, {name: b, containers: [{}, {}]}]")
    value = {"schema": SCHEMA, "nodes": [{"name": name, "containers": [{}, {}]} for name in "ab"]}
    shared = "nodes:\n- &n\n  name: a\n  containers: [{}, {}]\n- <<: [*n]\n  name: b\n"
    assert load_topology("b", json.dumps(value, indent="\t")) == wanted
    assert load_topology("c", (HEAD + shared).encode()) == wanted


@pytest.mark.parametrize("value", PRESETS)
def test_a_dump_loads_as_the_same(value: Topology) -> None:
    assert load_topology("dump", dump_topology(value)) == value


def test_a_dump_holds_no_defaults() -> None:
    text = dump_topology(preset(4))
    assert "loss_percent" not in text
    assert "mtu" not in text
    assert text.startswith(HEAD)


@given(st.one_of(st.text(max_size=200), st.text("{}[]:,-&*!|>'\"?%@\n\t ab<1.", max_size=60), st.binary(max_size=80)))
@settings(max_examples=300, deadline=None)
def test_text_at_random_never_ends_in_a_traceback(text: str | bytes) -> None:
    with pytest.raises(UsageError):
        load_topology("random", text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["lan0", "10.0.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "links", "segment", "addresses", "mtu", "containers", "subnets"]),
            inner,
            max_size=4,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(Topology.__struct_fields__), JSON))
@settings(max_examples=200, deadline=None)
def test_values_at_random_never_end_in_a_traceback(value: dict[str, object]) -> None:
    with contextlib.suppress(UsageError):
        assert validate(load_topology("random", json.dumps(value | {"schema": SCHEMA}))) == ()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_sound(path: Path) -> None:
    loaded = load_topology(path.name, path.read_text())
    assert load_topology("again", dump_topology(loaded)) == loaded


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def test_the_published_schema_is_that_of_the_code() -> None:
    # To renew it: python3 -c 'from muslin.lab.topology_file import *; print(schema_text(), end="")' > FILE
    assert (ROOT / "schemas" / "topology-v1.json").read_text() == schema_text()


def test_the_reference_names_every_field() -> None:
    reference = (ROOT / "docs" / "topology.md").read_text()
    structs = [value for value in vars(topology).values() if isinstance(value, msgspec.StructMeta)]
    fields = {field for struct in structs for field in struct.__struct_fields__}
    assert {"schema", "via", "loss_percent"} <= fields
    assert not [field for field in fields if f"`{field}`" not in reference]
