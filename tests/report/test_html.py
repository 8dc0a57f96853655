"""The page of a run: what is in it, and how it looks in a browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.loadgen.record import Record
from llmbench.metrics.summary import summarise
from llmbench.report import html
from llmbench.report._charts import Scale, label, nice
from llmbench.report.view import View
from tests.report.conftest import START_NS, load, view

EVIL = "</script><script>problems.push('ran')</script><img src=x onerror=problems.push('ran')> & \"quoted\" 'it'"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

CASES: dict[str, Any] = {
    "small": lambda: view(load(20), start_ns=START_NS),
    "large": lambda: view(load(1500, num_tokens=100), start_ns=START_NS, observed=True),
    "invalid": lambda: view(load(300, lost=0.1, reason=EVIL), prompt=EVIL, start_ns=START_NS, observed=True),
    "all failed": lambda: view(load(40, lost=1.1, reason=EVIL), start_ns=START_NS),
    "not streamed": lambda: view(load(200, streamed=False), start_ns=START_NS),
    "one request": lambda: view(load(1), start_ns=START_NS),
    "never sent": lambda: view([Record(index=n, due_ns=START_NS + n) for n in range(3)], start_ns=START_NS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_run_has_a_page(case: str) -> None:
    page = html.page(CASES[case]())
    assert page.startswith("<!doctype html>")
    assert page.count("<main>") == page.count("</main>") == 1
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).lower().replace("finance", "")


def test_nothing_in_a_run_is_taken_for_markup() -> None:
    shown = view(load(50, lost=0.5, reason=EVIL), prompt=EVIL, start_ns=START_NS)
    shown = msgspec.structs.replace(shown, title=EVIL, load=EVIL, target=EVIL, environment={EVIL: EVIL})
    page = html.page(shown)
    assert "<img" not in page
    assert page.count("<script") == 2
    assert "&lt;img src=x onerror=" in page


def test_the_page_asks_the_network_for_nothing() -> None:
    page = html.page(CASES["large"]())
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href|action)=["'](?!data:)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_only_the_pages_own_script_may_run() -> None:
    page = html.page(CASES["small"]())
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    allowed = re.findall(r"script-src ([^;]*);", page)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert (len(scripts), allowed) == (1, [f"'sha256-{digest}'"])


def test_a_page_of_1500_requests_takes_less_than_a_second() -> None:
    shown = CASES["large"]()
    html.page(shown)
    start = time.process_time()
    html.page(shown)
    assert time.process_time() - start < 1


def test_a_page_of_10000_requests_of_200_tokens_is_small() -> None:
    assert len(html.page(view(load(10_000, rate=50, num_tokens=200), start_ns=START_NS))) < 2_000_000


def test_the_page_tells_the_verdict_the_numbers_and_where_they_come_from() -> None:
    page = unescape(html.page(CASES["invalid"]()))
    assert '<span class="verdict invalid">INVALID</span>' in page
    assert "0123456789abcdef" * 4 in page
    assert "95 % bounds" in page
    assert "(last token - first token) / (tokens - 1)" in page
    assert "requests_running" in page
    assert "tokens_total per second" in page
    assert ">always<" not in page  # a counter that never changes


def test_a_foreign_run_is_not_judged_on_its_page() -> None:
    shown = View(title="x", numbers=summarise([]), not_judged="the file has no instants")
    page = html.page(shown)
    assert "NOT JUDGED" in page
    assert "the file has no instants" in page


@pytest.mark.parametrize(("width", "step"), [(0.9, 1), (1.0, 1), (1.1, 2), (3, 5), (7, 10), (0.0012, 0.002)])
def test_ticks_are_round(width: float, step: float) -> None:
    assert nice(width) == pytest.approx(step)


def test_an_axis_has_its_ticks_within_it() -> None:
    assert [label(tick) for tick in Scale(low=0.05, high=0.32).ticks(5)] == ["0.1", "0.2", "0.3"]
    assert Scale(low=0, high=104).ticks(4) == [0, 50, 100]


BEFORE = (Path(__file__).parent / "before.js").read_text(encoding="utf-8")
LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")


def browse(page: str, folder: Path, width: int) -> dict[str, Any]:
    """Open the page with a script before and one behind its own; what the latter has found."""
    assert BROWSER is not None
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()}'" for js in (BEFORE, LOOK)
    )
    page = page.replace("script-src ", f"script-src {hashes} ", 1)
    page = page.replace("<style>", f"<script>{BEFORE}</script><style>", 1)
    page = page.replace("</body>", f"<script>{LOOK}</script></body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    quiet = "disable-background-networking disable-component-update disable-sync no-first-run disable-quic disable-gpu"
    flags = [
        "--headless",
        "--no-sandbox",
        *(f"--{flag}" for flag in quiet.split()),
        f"--user-data-dir={folder / 'user'}",
    ]
    sizes = [f"--window-size={width},1000", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *flags, *sizes, f"file://{folder / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1300, 500])
@pytest.mark.parametrize("case", CASES)
def test_a_browser_shows_every_chart_without_errors_requests_or_overlaps(tmp_path: Path, case: str, width: int) -> None:
    found = browse(html.page(CASES[case]()), tmp_path, width)
    assert found["problems"] == []
    assert found["resources"] == []
    for looked in (found["whole"], found["zoomed"]):
        assert looked["overlaps"] == []
        assert looked["unlabelled"] == 0
        assert looked["wide"] <= 0
    assert found["whole"]["empty"] == []
    if case != "never sent":
        assert found["charts"] >= 3
        assert "request" in found["tip"]
        assert found["first"] > 20
    if case == "large":
        assert found["second"] != found["first"]
        assert "in the part of time that is shown" in found["shown"]
    assert len(set(found["dark"])) == 2  # the button changes the colours


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_the_look_at_a_page_sees_what_is_planted_in_it(tmp_path: Path) -> None:
    page = html.page(CASES["small"]())
    over = '<p style="position: absolute; top: 10px">a text that lies on another</p>'
    planted = page.replace("</header>", f'</header><img src="http://localhost:9/">{over}')
    planted = re.sub(r'class="(?:dots a|lost bad)" d="[^"]*"', 'class="dots a" d=""', planted)
    found = browse(planted, tmp_path, 1300)
    assert found["whole"]["overlaps"]
    assert "TTFT by the instant at which the request was due, ms" in found["whole"]["empty"]
    assert found["problems"] == ["img-src http://localhost:9/"]
