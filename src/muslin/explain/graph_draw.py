"""A graph as a drawing for the terminal, as mermaid, and as SVG.

Theory of operation: all three follow the same order: segments, the hosts on each (routers, nodes), and on each host its
containers. The terminal has a tree; mermaid lays itself out; the SVG has a row for each of the three, with every host
above its containers. Names come from people, so they are escaped for each form. The SVG follows light and dark.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from muslin.explain.graph import Box, Cable, Graph, LinkBox

CELL_WIDTH, CELL_HEIGHT, ROW_GAP, MARGIN = 190, 30, 70, 20
STYLE = (
    "svg{font:13px system-ui,sans-serif;--ink:#1b1f24;--paper:#fff;--line:#6b7683;--go:#0b62c4}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6e9ed;--paper:#14171a;--line:#9aa4af;--go:#6cb2ff}}"
    "rect.paper{fill:var(--paper)}rect.box{fill:none;stroke:var(--line)}text{fill:var(--ink)}"
    "text.name{font-weight:600}line{stroke:var(--line);stroke-width:2}line.down{stroke-dasharray:3 5}"
    "path{fill:none;stroke:var(--go);stroke-width:2;stroke-dasharray:6 4}"
)


def draw_text(graph: Graph) -> str:
    """A tree: segments, their hosts, and on each its bridge, tunnels and containers."""
    segments = [box for box in graph.boxes if box.role == "segment"]
    lines: list[str] = []
    told: set[str] = set()
    for segment in segments:
        lines.append(f"{segment.name} (layer 2)")
        cables = graph.cables_of(segment.name)
        for number, cable in enumerate(cables):
            lines += _branch(_host_lines(graph, cable, told), number == len(cables) - 1)
    lonely = [box for box in graph.boxes if box.role in ("node", "router") and box.name not in told]
    for box in lonely:
        lines += [box.name, *_indented(_inside(graph, box, ""))]
    return "\n".join(lines)


def _host_lines(graph: Graph, cable: Cable, told: set[str]) -> list[str]:
    """A host on a segment: its link there, and what is in it, the first time that it is met."""
    box = graph.box(cable.far)
    link = next(one for one in box.links if one.name == cable.far_link)
    head = f"{box.name}  {_link_words(link, cable.up)}"
    if box.name in told:
        return [f"{head}  (see above)"]
    told.add(box.name)
    return [head, *_inside(graph, box, cable.far_link)]


def _inside(graph: Graph, box: Box, but: str) -> list[str]:
    """Links that lead to no segment, with the containers behind them; bridges ahead of their ports."""
    ends = {cable.near_link: cable for cable in graph.cables_of(box.name)}
    shown = [link for link in box.links if link.name != but and not link.master and not _to_segment(graph, ends, link)]
    lines: list[str] = []
    for number, link in enumerate(shown):
        ports = [one for one in box.links if one.master == link.name]
        block = [_end_words(graph, box, link, ends.get(link.name))]
        for place, port in enumerate(ports):
            block += _branch([_end_words(graph, box, port, ends.get(port.name))], place == len(ports) - 1)
        lines += _branch(block, number == len(shown) - 1)
    return lines


def _to_segment(graph: Graph, ends: dict[str, Cable], link: LinkBox) -> bool:
    cable = ends.get(link.name)
    return cable is not None and graph.box(cable.far).role == "segment"


def _end_words(graph: Graph, box: Box, link: LinkBox, cable: Cable | None) -> str:
    """A link, and what is at its other end."""
    words = _link_words(link, link.up)
    if cable is not None:
        far = next(one for one in graph.box(cable.far).links if one.name == cable.far_link)
        line = "━━" if cable.up else "╌╌"
        return f"{words} {line} {far.name} {cable.far} {', '.join(far.addresses)}".rstrip()
    peers = list(dict.fromkeys(one.far for one in graph.tunnels if (one.near, one.link) == (box.name, link.name)))
    kind = next((one.kind for one in graph.tunnels if (one.near, one.link) == (box.name, link.name)), "")
    return f"{words}  ⇢ {', '.join(peers)} ({kind})" if peers else words


def _link_words(link: LinkBox, up: bool) -> str:
    return f"{link.name}{' ' + ', '.join(link.addresses) if link.addresses else ''}{'' if up else ' DOWN'}"


def _branch(block: list[str], last: bool) -> list[str]:
    head, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
    return [f"{head if number == 0 else rest}{line}" for number, line in enumerate(block)]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def draw_mermaid(graph: Graph) -> str:
    """A flowchart for whatever renders mermaid, a forge's markdown for instance."""
    numbers = {box.name: f"n{number}" for number, box in enumerate(graph.boxes)}
    lines = ["flowchart TB"]
    for box in graph.boxes:
        addresses = [address for link in box.links for address in link.addresses]
        label = "<br/>".join(_mermaid_text(text) for text in (box.name, *addresses))
        shape = f'(["{label}"])' if box.role == "segment" else f'["{label}"]'
        lines.append(f"  {numbers[box.name]}{shape}")
    for cable in graph.cables:
        line = "---" if cable.up else "-.-"
        label = _mermaid_text(f"{cable.near_link} {cable.far_link}")
        lines.append(f'  {numbers[cable.near]} {line}|"{label}"| {numbers[cable.far]}')
    for near, far, kind in _tunnel_pairs(graph):
        lines.append(f'  {numbers[near]} <-.->|"{kind}"| {numbers[far]}')
    return "\n".join(lines)


def _mermaid_text(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "#lt;")


def _tunnel_pairs(graph: Graph) -> list[tuple[str, str, str]]:
    """Each pair of tunnel ends once."""
    pairs = {(min(one.near, one.far), max(one.near, one.far), one.kind) for one in graph.tunnels}
    return sorted(pairs)


def draw_svg(graph: Graph) -> str:
    """A picture in three rows."""
    places = _layout(graph)
    width = max((x for x, _ in places.values()), default=0) + CELL_WIDTH + MARGIN
    height = max((y + _height(graph.box(name)) for name, (_, y) in places.items()), default=0) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="the lab">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *(_svg_cable(graph, places, cable) for cable in graph.cables if {cable.near, cable.far} <= set(places)),
        *(_svg_tunnel(places, near, far, kind) for near, far, kind in _tunnel_pairs(graph)),
        *(_svg_box(graph.box(name), x, y) for name, (x, y) in places.items()),
        "</svg>",
    ]
    return "\n".join(parts)


def _rows(graph: Graph) -> Iterator[list[str]]:
    yield [box.name for box in graph.boxes if box.role == "segment"]
    yield [box.name for box in graph.boxes if box.role in ("router", "node", "store")]


def _layout(graph: Graph) -> dict[str, tuple[int, int]]:
    """The upper left corner of each box: hosts stand above their containers."""
    places: dict[str, tuple[int, int]] = {}
    segments, hosts = _rows(graph)
    host_y = MARGIN + (max((_height(graph.box(name)) for name in segments), default=0) + ROW_GAP if segments else 0)
    below_y = host_y + max((_height(graph.box(name)) for name in hosts), default=0) + ROW_GAP
    x = MARGIN
    for host in hosts:
        members = [one.far for one in graph.cables_of(host) if graph.box(one.far).role == "container"]
        for place, member in enumerate(members):
            places[member] = (x + place * (CELL_WIDTH + MARGIN), below_y)
        span = max(1, len(members)) * (CELL_WIDTH + MARGIN)
        places[host] = (x + (span - MARGIN - CELL_WIDTH) // 2, host_y)
        x += span
    for number, segment in enumerate(segments):
        step = max(CELL_WIDTH + MARGIN, (x - MARGIN) // max(1, len(segments)))
        places[segment] = (MARGIN + number * step + max(0, (step - CELL_WIDTH - MARGIN) // 2), MARGIN)
    return places


def _height(box: Box) -> int:
    return CELL_HEIGHT + 18 * len(_box_lines(box))


def _box_lines(box: Box) -> list[str]:
    return [f"{link.name} {address}" for link in box.links for address in link.addresses]


def _svg_box(box: Box, x: int, y: int) -> str:
    lines = [f'<rect class="paper" x="{x}" y="{y}" width="{CELL_WIDTH}" height="{_height(box)}" rx="8"/>']
    lines.append(f'<rect class="box" x="{x}" y="{y}" width="{CELL_WIDTH}" height="{_height(box)}" rx="8"/>')
    lines.append(f'<text class="name" x="{x + 10}" y="{y + 20}">{escape(box.name)}</text>')
    for number, text in enumerate(_box_lines(box)):
        lines.append(f'<text x="{x + 10}" y="{y + 38 + 18 * number}">{escape(text)}</text>')
    return "\n".join(lines)


def _svg_cable(graph: Graph, places: dict[str, tuple[int, int]], cable: Cable) -> str:
    """From the lower edge of the upper box to the upper edge of the lower one."""
    upper, lower = sorted((cable.near, cable.far), key=lambda name: places[name][1])
    x1, y1 = places[upper][0] + CELL_WIDTH // 2, places[upper][1] + _height(graph.box(upper))
    x2, y2 = places[lower][0] + CELL_WIDTH // 2, places[lower][1]
    title = escape(f"{cable.near} {cable.near_link} - {cable.far_link} {cable.far}")
    state = "" if cable.up else ' class="down"'
    return f'<line{state} x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"><title>{title}</title></line>'


def _svg_tunnel(places: dict[str, tuple[int, int]], near: str, far: str, kind: str) -> str:
    """A dashed arc above two hosts."""
    x1, y1 = places[near][0] + CELL_WIDTH // 2, places[near][1]
    x2, y2 = places[far][0] + CELL_WIDTH // 2, places[far][1]
    title = escape(f"{kind} tunnel between {near} and {far}")
    return f'<path d="M{x1} {y1}Q{(x1 + x2) // 2} {min(y1, y2) - 50} {x2} {y2}"><title>{title}</title></path>'
