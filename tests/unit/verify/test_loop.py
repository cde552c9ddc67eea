"""Timers in their order, sockets when they are ready."""

from __future__ import annotations

import os

from muslin.verify.loop import Loop


def test_timers_fire_in_the_order_of_their_deadlines() -> None:
    fired: list[str] = []
    with Loop() as loop:
        loop.call_later(0.002, lambda: fired.append("second"))
        loop.call_later(0.001, lambda: fired.append("first"))
        loop.call_later(0.0015, lambda: fired.append("never")).cancel()
        loop.run(lambda: len(fired) == 2)
    assert fired == ["first", "second"]


def test_a_forgotten_descriptor_is_not_reported() -> None:
    reader, writer = os.pipe()
    told: list[int] = []
    try:
        with Loop() as loop:
            loop.watch(reader, told.append)
            os.write(writer, b"x")
            loop.run(lambda: bool(told))
            loop.forget(reader)
            loop.forget(reader)
            done: list[bool] = []
            loop.call_later(0.001, lambda: done.append(True))
            loop.run(lambda: bool(done))
    finally:
        os.close(reader)
        os.close(writer)
    assert len(told) == 1
