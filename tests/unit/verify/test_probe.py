"""The parts of the engine that need no network."""

from __future__ import annotations

from muslin.verify.matrix import all_pairs
from muslin.verify.probe import in_local_order, run_checks
from tests.unit.verify.examples import container, node


def test_no_pairs_no_work() -> None:
    assert run_checks(()) == ()


def test_the_order_holds_each_pair_once_and_speaks_of_few_nodes_at_a_time() -> None:
    parties = [party for number in range(1, 17) for party in (node(number), container(1, number))]
    pairs = all_pairs(parties, lambda *_: None)
    order = in_local_order(pairs)
    assert sorted(order) == list(range(len(pairs)))
    blocks = list(dict.fromkeys((pairs[place].source.node, pairs[place].destination.node) for place in order))
    assert len(blocks) == 16 * 16
    for start in range(0, len(blocks), 16):
        part = blocks[start : start + 16]
        assert len({source for source, _ in part}) == len({destination for _, destination in part}) == 4
