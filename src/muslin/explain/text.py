"""The way of a packet for people: one line a hop, and below it what else there is to say.

Theory of operation: a line has the hop's number, its namespace, the links, the TTL, and the route that matched with its
type in capitals and why it won. Hops of an outer packet are numbered below the hop that wrapped it: 2.1, 2.2. ``wide``
adds a line for everything that was asked on the way: neighbours, settings, packet filter.
"""

from __future__ import annotations

from collections.abc import Iterator

from muslin.explain.path import Drop, Explanation, Hop, Path, drop_of


def draw(explanation: Explanation, wide: bool = False) -> str:
    """Both directions as text."""
    lines = list(_draw_path("request", explanation.request, wide))
    if explanation.reply is not None:
        lines += ["", *_draw_path("answer", explanation.reply, wide)]
    lines += ["", *(f"≠ {words}" for words in explanation.differs)] if explanation.differs else []
    lines += ["", explanation.why_not] if explanation.why_not else []
    if explanation.unseen:
        what = " and ".join(explanation.unseen)
        lines += ["", f"not seen, and so not reckoned with: {what}; as root, the same command sees all"]
    return "\n".join(lines)


def _draw_path(what: str, path: Path, wide: bool) -> Iterator[str]:
    protocol = path.protocol.upper()
    yield f"{what}: {path.source or '?'} → {path.destination}, {protocol}, {path.size_bytes} bytes"
    yield from _draw_hops(path.hops, "", wide)
    yield outcome(path)


def outcome(path: Path) -> str:
    """The last line of a way: what became of the packet."""
    if path.outcome == "arrives":
        return f"  arrives with TTL {path.ttl}"
    if path.outcome == "leaves":
        last = path.hops[-1]
        return f"  leaves by {last.left or last.netns}: what lies behind was not looked at"
    drop = path.drop
    return f"  ✗ {sentence(drop)}" if drop else "  ✗ is lost"


def sentence(drop: Drop) -> str:
    """Cause and mending in one sentence, and what the sender hears."""
    told = f"; the sender hears {drop.told}" if drop.told else ""
    mend = f"\n    mend it in {drop.netns}: {drop.mend}" if drop.mend else ""
    return f"{drop.sentence}{told}{mend}"


def _draw_hops(hops: tuple[Hop, ...], prefix: str, wide: bool) -> Iterator[str]:
    width = max((len(hop.netns) for hop in hops), default=0)
    for number, hop in enumerate(hops, start=1):
        mark = f"{prefix}{number}"
        indent = " " * (2 + 2 * len(prefix))
        yield f"{indent}{mark} {hop.netns.ljust(width)}  {line(hop)}".rstrip()
        inner = indent + " " * (len(mark) + 1)
        if wide:
            yield from (f"{inner}  · {words}" for words in details(hop))
        if hop.carried:
            yield f"{inner}  {carriage_words(hop)}"
            yield from _draw_hops(hop.carried.hops, f"{mark}.", wide)


def line(hop: Hop) -> str:
    """One hop: links, TTL, route and reason."""
    parts = [ways(hop), ttl_words(hop)]
    if hop.act == "switches":
        parts.append(f"switched: {hop.neighbour}")
    elif hop.route:
        parts.append(f"{hop.route.text} = {hop.route.type.upper()} ({hop.route.why})")
    if drop_of(hop) and hop.drop:
        parts.append(f"✗ {hop.drop.cause.replace('-', ' ')}")
    return "  ".join(part for part in parts if part)


def ways(hop: Hop) -> str:
    """``in br0 (port veth10) out eth0``; the ports alone for what a bridge switches."""
    if hop.act == "switches":
        return f"{hop.entered}: in {hop.port_in or 'itself'} out {hop.port_out}"
    entered = f"in {hop.entered}{_port(hop.port_in)}" if hop.entered else ""
    left = f"out {hop.left}{_port(hop.port_out)}" if hop.left else ""
    if hop.act == "takes":
        left = "for itself"
    return " ".join(part for part in (entered, left) if part)


def _port(port: str) -> str:
    return f" (port {port})" if port else ""


def ttl_words(hop: Hop) -> str:
    """``ttl 64 → 63``."""
    if hop.ttl_in is None or hop.ttl_out is None or hop.ttl_in == hop.ttl_out:
        return f"ttl {hop.ttl_in if hop.ttl_in is not None else hop.ttl_out}"
    return f"ttl {hop.ttl_in} → {hop.ttl_out}"


def carriage_words(hop: Hop) -> str:
    """``into vxlan 1, UDP 10.0.0.10 > 10.0.0.20:8472, +50 bytes (fdb: ...)``."""
    carried = hop.carried
    assert carried is not None
    what = f"vxlan {carried.vni}, " if carried.kind == "vxlan" else ""
    return (
        f"↳ into {what}UDP {carried.source} > {carried.destination} port {carried.port},"
        f" +{carried.overhead_bytes} bytes ({carried.how})"
    )


def details(hop: Hop) -> Iterator[str]:
    """Everything else that was asked at a hop."""
    if hop.neighbour and hop.act != "switches":
        yield hop.neighbour
    if hop.mtu is not None:
        yield f"MTU {hop.mtu}, {hop.room_bytes} bytes left"
    yield from hop.checks
    yield from hop.notes
