"""Names of a lab's places as ends of a question."""

from __future__ import annotations

from typing import Any

import pytest

from muslin.errors import UsageError
from muslin.lab.places import addresses_of, find_end, question_for
from muslin.lab.presets import preset
from muslin.lab.state import LabState


def lab(**shape: Any) -> LabState:
    return LabState(name="lab", topology=preset(4, **shape), created_at=0, boot_id="b")


def test_a_name_has_its_first_address_or_that_of_the_family() -> None:
    both = lab(families=(4, 6))
    assert find_end(both, "con1.node1", None) == ("con1.node1", "172.16.0.2")
    assert find_end(both, "con1.node1", 6) == ("con1.node1", "fd00:172:16::2")
    assert find_end(both, "node2", None) == ("node2", "10.0.0.20")


def test_an_address_is_its_holders_and_may_be_nobodys() -> None:
    assert find_end(lab(), "172.16.1.2", None) == ("con1.node2", "172.16.1.2")
    assert find_end(lab(), "172.16.0.1", None) == ("node1", "172.16.0.1")
    assert find_end(lab(), "8.8.8.8", None) == (None, "8.8.8.8")
    assert addresses_of(lab(underlay="routed"))["router1"] == ("10.0.1.1", "10.0.2.1")


def test_a_source_that_is_an_address_is_used_as_such() -> None:
    question = question_for(lab(), "10.0.0.10", "con1.node2", size_bytes=1000)
    assert (question.netns, question.source_address, question.size_bytes) == ("node1", "10.0.0.10", 1000)
    assert question_for(lab(), "node1", "con1.node2").source_address is None
    assert question_for(lab(), "node1", "con1.node2").expected == "con1.node2"


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("8.8.8.8", "node1", "nobody in lab 'lab' has the address 8.8.8.8"),
        ("con9", "node1", "has no 'con9'"),
        ("10.0.0.10", "fd00::1", "of different families"),
    ],
)
def test_a_wrong_end_is_refused_in_words(source: str, destination: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        question_for(lab(), source, destination)
