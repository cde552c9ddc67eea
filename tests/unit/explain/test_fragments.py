"""Cut packets: what is cut fits, begins where it may, and is the whole when put together again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muslin.explain.both import Question, explain
from muslin.explain.fragments import carried, cut
from muslin.explain.path import Piece
from muslin.explain.taps import sightings
from tests.unit.explain.networks import two_nodes
from tests.unit.explain.test_carry import udp

SIZES = st.integers(100, 9000)
MTUS = st.integers(68, 1500)
HEAD = {4: 20, 6: 48}


@given(size=SIZES, mtu=MTUS, family=st.sampled_from([4, 6]))
def test_pieces_fit_and_are_the_whole(size: int, mtu: int, family: int) -> None:
    pieces = cut([Piece(size_bytes=size)], mtu, family)
    if size <= mtu:
        assert pieces == (Piece(size_bytes=size),)
        return
    assert all(piece.size_bytes <= mtu for piece in pieces)
    data = size - {4: 20, 6: 40}[family]
    offset = 0
    for piece in pieces:
        assert piece.offset_bytes == offset
        assert offset % 8 == 0
        offset += piece.size_bytes - HEAD[family]
    assert offset == data


@given(size=SIZES, first=st.integers(600, 1500), second=st.integers(68, 599))
def test_what_was_cut_is_cut_again(size: int, first: int, second: int) -> None:
    twice = cut(cut([Piece(size_bytes=size)], first, 4), second, 4)
    assert all(piece.size_bytes <= second for piece in twice)
    assert sum(piece.size_bytes - 20 for piece in twice) == size - 20
    ends = [piece.offset_bytes + piece.size_bytes - 20 for piece in twice]
    assert [piece.offset_bytes for piece in twice[1:]] == ends[:-1]


def test_a_tunnel_takes_each_piece_as_a_packet_and_remembers_which() -> None:
    outer = carried(cut([Piece(size_bytes=2000)], 1500, 4), 28, nested=False)
    assert outer == (Piece(size_bytes=1528), Piece(size_bytes=548, inner_offset_bytes=1480))
    again = cut(outer, 1500, 4)
    assert [(one.inner_offset_bytes, one.offset_bytes) for one in again] == [(0, 0), (0, 1480), (1480, 0)]
    assert carried(again, 50, nested=True)[2].inner_offset_bytes == 1480


def test_without_df_the_way_goes_on_in_pieces_and_with_it_ends() -> None:
    sights = two_nodes().sights
    question = Question(netns="con1", destination="172.16.1.2", size_bytes=3000)
    assert explain(sights, question).request.drop.cause == "too-big"  # type: ignore[union-attr]
    may = Question(netns="con1", destination="172.16.1.2", size_bytes=3000, fixed_size=False)
    found = explain(sights, may)
    assert found.ok
    assert [piece.size_bytes for piece in found.request.hops[0].pieces_out] == [1500, 1500, 40]
    assert found.request.hops[0].room_bytes == 0
    assert len(found.reply.hops[0].pieces_out) == 3  # type: ignore[union-attr]


def test_in_a_tunnel_the_pieces_are_cut_for_its_device() -> None:
    sights = udp().sights
    may = Question(netns="con1", destination="172.16.1.2", size_bytes=1500, fixed_size=False)
    seen = sightings(explain(sights, may).request, "request")
    mtu = sights["node1"].link("tun0").mtu  # type: ignore[union-attr]
    expected = 1 if mtu >= 1500 else 2
    assert len([one for one in seen if (one.place, one.link, one.carried) == ("node1", "eth0", True)]) == expected
    assert len({one.key for one in seen}) == len(seen)
