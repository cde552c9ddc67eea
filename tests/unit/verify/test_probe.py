"""The parts of the engine that need no network."""

from __future__ import annotations

from muslin.verify.matrix import Pair, all_pairs
from muslin.verify.probe import in_local_order, run_checks
from tests.unit.verify.examples import container, node


def test_no_pairs_no_work() -> None:
    assert run_checks(()) == ()


def test_the_order_holds_each_pair_once_and_speaks_of_few_nodes_at_a_time() -> None:
    parties = [party for number in range(1, 17) for party in (node(number), container(1, number))]
    pairs = all_pairs(parties, lambda *_: None)
    order = in_local_order(pairs)
    assert sorted(order) == list(range(len(pairs)))
    roles = [pairs[place].source.role for place in order]
    assert roles == sorted(roles, reverse=True), "nodes ask first"
    for role in ("node", "container"):
        check_locality([pairs[place] for place in order if pairs[place].source.role == role])


def check_locality(pairs: list[Pair]) -> None:
    blocks = list(dict.fromkeys((pair.source.node, pair.destination.node) for pair in pairs))
    assert len(blocks) == 16 * 16
    for start in range(0, len(blocks), 16):
        part = blocks[start : start + 16]
        assert len({source for source, _ in part}) == len({destination for _, destination in part}) == 4
