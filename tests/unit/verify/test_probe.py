"""The parts of the engine that need no network."""

from __future__ import annotations

from muslin.verify.matrix import all_pairs
from muslin.verify.probe import _batches, run_checks
from tests.unit.verify.examples import two_nodes


def test_no_pairs_no_work() -> None:
    assert run_checks(()) == ()


def test_batches_hold_each_pair_once_and_one_source_each() -> None:
    pairs = all_pairs(two_nodes(), lambda *_: None)
    shuffled = sorted(pairs, key=lambda pair: pair.address)
    batches = list(_batches(shuffled, 5))
    assert sorted(place for batch in batches for place in batch) == list(range(len(pairs)))
    assert all(len({shuffled[place].source.name for place in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == 5
