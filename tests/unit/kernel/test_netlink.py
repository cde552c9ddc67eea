"""The conversation with rtnetlink over a socket that plays the kernel: no privilege, and every bad turn on demand."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from muslin.kernel import netlink as door
from muslin.kernel.netlink import DUMP_ATTEMPTS, MESSAGES_PER_SEND, Answer, NetlinkSocket
from muslin.wire import netlink as wire
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import Request

QUESTION = Request(22, 0, b"")
THING = 20

Turn = Callable[[list[Message]], list[bytes]]
"""What the kernel answers to one send: datagrams."""


class Kernel:
    """Plays the socket: each send takes the next turn."""

    def __init__(self, *turns: Turn) -> None:
        self.turns = list(turns)
        self.sent: list[list[Message]] = []
        self.waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        messages = list(wire.iter_messages(data))
        self.sent.append(messages)
        self.waiting += self.turns.pop(0)(messages)

    def recv_into(self, buffer: memoryview) -> int:
        assert self.waiting, "a real socket would block for ever here"
        data = self.waiting.pop(0)
        buffer[: len(data)] = data
        return len(data)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[NetlinkSocket, Kernel]]:
    def make(*turns: Turn) -> tuple[NetlinkSocket, Kernel]:
        kernel = Kernel(*turns)
        monkeypatch.setattr(door, "open_socket", lambda *_: kernel)
        return NetlinkSocket("n1"), kernel

    return make


Connect = Callable[..., tuple[NetlinkSocket, Kernel]]


def thing(sequence: int, text: bytes, flags: int = 0) -> bytes:
    return wire.encode_message(THING, wire.NLM_F_MULTI | flags, sequence, text)


def done(sequence: int, flags: int = 0) -> bytes:
    return wire.encode_message(wire.NLMSG_DONE, wire.NLM_F_MULTI | flags, sequence, struct.pack("=i", 0))


def ack(sequence: int, number: int = 0) -> bytes:
    header = struct.pack("=IHHII", 16, 16, 0, sequence, 0)
    return wire.encode_message(wire.NLMSG_ERROR, wire.NLM_F_CAPPED, sequence, struct.pack("=i", -number) + header)


def table(*texts: bytes, flags: int = 0, at: int = 0) -> Turn:
    """A dump, one datagram a thing; ``flags`` on the message number ``at``, counting the final one."""

    def turn(messages: list[Message]) -> list[bytes]:
        sequence = messages[0].sequence
        parts = [thing(sequence, text, flags if index == at else 0) for index, text in enumerate(texts)]
        return [*parts, done(sequence, flags if at >= len(texts) else 0)]

    return turn


def acks(**numbers: int) -> Turn:
    """Acknowledge each message; ``m3=17`` refuses the third with errno 17."""
    return lambda messages: [
        ack(message.sequence, numbers.get(f"m{index}", 0)) for index, message in enumerate(messages, start=1)
    ]


# ---- dumps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_dump_is_asked_again_and_never_returned(connect: Connect, at: int) -> None:
    torn = table(b"old1", b"old2", flags=wire.NLM_F_DUMP_INTR, at=at)
    opened, kernel = connect(torn, torn, table(b"new1", b"new2"))
    assert [message.payload for message in opened.dump(QUESTION)] == [b"new1", b"new2"]
    assert len(kernel.sent) == 3
    assert len({sent[0].sequence for sent in kernel.sent}) == 3


def test_a_table_that_never_rests_is_an_error_and_not_half_a_table(connect: Connect) -> None:
    opened, kernel = connect(*[table(b"part", flags=wire.NLM_F_DUMP_INTR)] * DUMP_ATTEMPTS)
    with pytest.raises(OSError, match="changed during each") as caught:
        opened.dump(QUESTION)
    assert caught.value.errno == errno.EAGAIN
    assert kernel.turns == []


def test_a_dump_that_the_kernel_breaks_off_is_an_error(connect: Connect) -> None:
    def turn(messages: list[Message]) -> list[bytes]:
        return [thing(messages[0].sequence, b"part"), ack(messages[0].sequence, errno.ENOBUFS)]

    with pytest.raises(OSError, match=r"n1") as caught:
        connect(turn)[0].dump(QUESTION)
    assert caught.value.errno == errno.ENOBUFS


def test_answers_to_an_earlier_question_do_not_count(connect: Connect) -> None:
    def late(messages: list[Message]) -> list[bytes]:
        before = messages[0].sequence - 1
        torn = thing(before, b"stale", wire.NLM_F_DUMP_INTR) + done(before)
        return [torn, *table(b"fresh")(messages)]

    opened, kernel = connect(late)
    assert [message.payload for message in opened.dump(QUESTION)] == [b"fresh"]
    assert len(kernel.sent) == 1


def test_an_empty_table_is_no_messages(connect: Connect) -> None:
    assert connect(table())[0].dump(QUESTION) == []


def test_one_question_has_its_answer_or_an_error(connect: Connect) -> None:
    def found(messages: list[Message]) -> list[bytes]:
        return [thing(messages[0].sequence, b"it"), ack(messages[0].sequence)]

    opened, _ = connect(found, acks(m1=errno.ENODEV))
    assert [message.payload for message in opened.ask(QUESTION)] == [b"it"]
    with pytest.raises(OSError, match=r".") as caught:
        opened.ask(QUESTION)
    assert caught.value.errno == errno.ENODEV


# ---- packages --------------------------------------------------------------------------------------------


def test_each_message_of_a_package_has_its_own_answer_in_order(connect: Connect) -> None:
    opened, kernel = connect(acks(m2=errno.EEXIST))
    answers = opened.request([QUESTION] * 3)
    assert answers == [Answer(0), Answer(errno.EEXIST), Answer(0)]
    (sent,) = kernel.sent
    assert [message.sequence for message in sent] == [1, 2, 3]
    assert all(message.flags & wire.NLM_F_ACK and message.flags & wire.NLM_F_REQUEST for message in sent)


def test_answers_that_come_out_of_order_are_put_in_order(connect: Connect) -> None:
    opened, _ = connect(lambda messages: acks(m1=errno.EPERM)(messages)[::-1])
    assert [answer.errno for answer in opened.request([QUESTION] * 3)] == [errno.EPERM, 0, 0]


def test_many_messages_go_in_several_sends_and_none_is_lost(connect: Connect) -> None:
    count = 2 * MESSAGES_PER_SEND + 5
    opened, kernel = connect(acks(), acks(m1=errno.EBUSY), acks())
    answers = opened.request([QUESTION] * count)
    assert [len(sent) for sent in kernel.sent] == [MESSAGES_PER_SEND, MESSAGES_PER_SEND, 5]
    assert [index for index, answer in enumerate(answers) if answer.errno] == [MESSAGES_PER_SEND]
    assert len(answers) == count


def test_nothing_is_sent_for_nothing(connect: Connect) -> None:
    opened, kernel = connect()
    assert opened.request([]) == []
    assert kernel.sent == []


def test_many_questions_have_an_answer_each_in_order_and_none_where_one_is_refused(connect: Connect) -> None:
    def turn(messages: list[Message]) -> list[bytes]:
        first, second, third = (message.sequence for message in messages)
        return [thing(third, b"c"), ack(second, errno.EINVAL), thing(first - 1, b"late"), thing(first, b"a")]

    opened, kernel = connect(turn)
    answers = opened.ask_each([QUESTION, QUESTION, QUESTION])
    assert [answer and answer.payload for answer in answers] == [b"a", None, b"c"]
    assert all(not message.flags & wire.NLM_F_ACK for message in kernel.sent[0])
