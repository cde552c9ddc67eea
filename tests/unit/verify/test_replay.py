"""A trace replayed: as text, and as a page, which headless Chromium runs where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.errors import UsageError
from muslin.explain.taps import Line
from muslin.verify.replay import frames, html_page, parse_trace
from muslin.verify.trace import Trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def line(place: str, link: str, direction: Any, leg: Any = "request", **more: Any) -> Line:
    fields = {"ttl": 64, "size_bytes": 84, "source": "172.16.0.2", "destination": "172.16.1.2", **more}
    return Line(leg=leg, place=place, link=link, direction=direction, predicted=True, seen=True, **fields)


def walk(**more: Any) -> Trace:
    lines = (
        line("con1", "veth11", "out", mac_source="02:00:00:00:00:01", mac_destination="02:00:00:00:00:02"),
        line("node1", "tun0", "out", ttl=63, changes=("TTL 64 → 63",)),
        line("node1", "eth0", "out", ttl=63, outer_source="10.0.0.10", outer_destination="10.0.0.20", carried=True),
        line("con2", "veth11", "in", ttl=62, differs="TTL 61 predicted, 62 seen"),
        line("con2", "veth11", "out", leg="answer"),
    )
    fields: dict[str, Any] = {
        "lab": "lab", "source": "172.16.0.2", "destination": "172.16.1.2", "protocol": "icmp", "size_bytes": 84,
        "ttl": 64, "ok": False, "arrived": True, "answered": True, "lines": lines,
    }  # fmt: skip
    return Trace(**{**fields, **more})


def test_a_picture_for_each_sighting() -> None:
    pictures = list(frames(walk()))
    assert pictures[0].splitlines()[0] == "[con1 veth11]   node1    con2 "
    assert "2/5  request, out by tun0 of node1: 172.16.0.2 > 172.16.1.2, TTL 63  (TTL 64 → 63)" in pictures[1]
    assert "10.0.0.10 > 10.0.0.20 carries 172.16.0.2 > 172.16.1.2" in pictures[2]
    assert pictures[3].endswith("≠ TTL 61 predicted, 62 seen")


def test_a_trace_survives_its_file_and_nothing_else_is_one() -> None:
    assert parse_trace("f", msgspec.json.encode(walk())) == walk()
    for data in (b"{}", b"nonsense", b'{"schema": "muslin.trace/v9"}'):
        with pytest.raises(UsageError, match="f is no trace that this version understands"):
            parse_trace("f", data)


def test_the_page_stands_alone_and_nothing_in_a_trace_can_end_its_script() -> None:
    page = html_page(walk(cause="</script><script>alert(1)</script>"))
    assert page.count("<script>") == 1
    assert page.count("</script>") == 1
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=|@import|url\(|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", page)


def render(page: str, tmp_path: Path, fragment: str = "", more: str = "") -> str:
    """The document as Chromium has it once the script has run."""
    if CHROMIUM is None:
        pytest.skip("needs chromium to run the page")
    file = tmp_path / "walk.html"
    file.write_text(page.replace("</body>", f"{more}</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{file}{fragment}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def said(dom: str) -> str:
    found = re.search(r'<p id="now"[^>]*>(.*?)</p>', dom, re.DOTALL)
    assert found, dom[:500]
    return found[1]


def test_chromium_draws_tells_and_moves_it(tmp_path: Path) -> None:
    page = html_page(walk())
    dom = render(page, tmp_path)
    assert said(dom) == "1 of 5: request, out by veth11 of con1, TTL 64"
    assert dom.count('class="place"') == 3
    assert (dom.count('class="packet request"'), dom.count('class="wrap"')) == (1, 0)
    assert dom.count('class="end"') == 5
    dom = render(page, tmp_path, "#3")
    assert said(dom).startswith("3 of 5: request, out by eth0 of node1, TTL 63")
    assert dom.count('class="wrap"') == 1, "a packet in a packet has a ring"
    assert '<td class="changed">10.0.0.10 &gt; 10.0.0.20</td>' in dom


def test_keys_move_it_and_a_difference_is_told(tmp_path: Path) -> None:
    keys = "".join(
        f'document.dispatchEvent(new KeyboardEvent("keydown", {{key: "{key}"}}));' for key in ("End", "ArrowLeft")
    )
    dom = render(html_page(walk()), tmp_path, more=f"<script>{keys}</script>")
    assert said(dom).endswith("TTL 62 — TTL 61 predicted, 62 seen")
    assert '<p id="now" aria-live="polite" class="differs">' in dom


def test_a_lost_packet_is_crossed_out_where_it_was_last_and_the_kernel_is_quoted(tmp_path: Path) -> None:
    cut = line("con2", "veth11", "in", ttl=62, fragment="fragment, bytes 0 to 1480")
    lost = walk(
        lines=(*walk().lines[:3], cut), arrived=True, answered=False, cause="it <is> lost", proof="node1 counted it",
        contradiction="or not", mend="node1: sysctl -w x=1",
    )  # fmt: skip
    dom = render(html_page(lost), tmp_path, "#4")
    assert "The packet gets there, and is dropped; not as predicted." in dom
    for words in ("✗ it &lt;is&gt; lost", "✓ node1 counted it", "≠ or not", "mend it in node1: sysctl -w x=1"):
        assert f">{words}</p>" in dom
    assert dom.count('class="lost"') == 1
    assert ">fragment, bytes 0 to 1480</td>" in dom
    assert 'class="lost"' not in render(html_page(lost), tmp_path, "#2")
