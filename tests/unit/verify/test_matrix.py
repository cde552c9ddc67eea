"""The talk's matrices, and even samples of large ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.verify.matrix import Endpoint, Pair, all_pairs, sample_pairs
from tests.unit.verify.examples import CROSSING, FROM_NODE, UNDERLAY, container, node, two_nodes


def no_hops(source: Endpoint, destination: Endpoint, address: str) -> None:
    return None


def count(pairs: tuple[Pair, ...], requirement: str) -> int:
    return sum(requirement in pair.requirements for pair in pairs)


def test_one_container_and_its_node_make_4_pairs() -> None:
    only_underlay = Endpoint(name="node1", role="node", node="node1", netns="n", addresses=("10.0.0.10",))
    assert len(all_pairs([only_underlay, container(1, 1)], no_hops)) == 4


def test_a_bridge_with_two_containers_makes_12_pairs() -> None:
    assert len(all_pairs([node(1), container(1, 1), container(2, 1)], no_hops)) == 12


def test_two_nodes_with_two_containers_make_48_pairs() -> None:
    pairs = all_pairs(two_nodes(), no_hops)
    assert len(pairs) == 48
    assert [count(pairs, name) for name in ("R1", "R2", "R3", "underlay")] == [16, 24, 40, 8]


def test_a_source_is_asked_only_in_its_own_families() -> None:
    both = Endpoint(name="a", role="container", node="n", netns="a", addresses=("172.16.0.2", "fd00::2"))
    four = Endpoint(name="b", role="container", node="n", netns="b", addresses=("172.16.0.3",))
    pairs = all_pairs([both, four], no_hops)
    assert [(pair.source.name, pair.address) for pair in pairs] == [
        ("a", "172.16.0.2"),
        ("a", "fd00::2"),
        ("a", "172.16.0.3"),
        ("b", "172.16.0.2"),
        ("b", "172.16.0.3"),
    ]


def test_expected_hops_are_asked_for_each_pair() -> None:
    pairs = all_pairs([node(1), container(1, 2)], lambda s, d, a: (s.name, d.name, a).count("node1"))
    assert {(p.source.name, p.address): p.expected_hops for p in pairs}[("node1", "172.16.0.1")] == 2


@pytest.mark.parametrize(
    ("pair", "requirements"),
    [(CROSSING, ("R1", "R3")), (FROM_NODE, ("R2", "R3")), (UNDERLAY, ("underlay",))],
)
def test_what_a_pair_proves(pair: Pair, requirements: tuple[str, ...]) -> None:
    assert pair.requirements == requirements
    assert pair.crosses_nodes


def large_lab() -> tuple[Pair, ...]:
    parties = [node(n) for n in range(1, 6)]
    parties += [container(c, n) for n in range(1, 6) for c in range(1, 6)]
    return all_pairs(parties, no_hops)


@given(count=st.integers(0, 1100), seed=st.integers(0, 5))
def test_a_sample_is_even_and_repeatable(count: int, seed: int) -> None:
    pairs = large_lab()
    sample = sample_pairs(pairs, count, seed)
    assert sample == sample_pairs(pairs, count, seed)
    assert len(sample) == min(count, len(pairs))
    assert len({(pair.source.name, pair.address) for pair in sample}) == len(sample)
    if len(sample) >= len({pair.address for pair in pairs}):
        assert {pair.source.name for pair in sample} == {pair.source.name for pair in pairs}
        assert {pair.address for pair in sample} == {pair.address for pair in pairs}


def test_another_seed_is_another_sample() -> None:
    assert sample_pairs(large_lab(), 50, 1) != sample_pairs(large_lab(), 50, 2)
