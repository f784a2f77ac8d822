"""Pages in a real browser: drawn, without a complaint, from the file alone, usable by everybody."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from flower_dhb import RunFolder, Topology
from flower_dhb.dashboard.sources import source_of
from flower_dhb.metrics import RoundRecord
from flower_dhb.pages.reading import read_run
from flower_dhb.pages.report import library, report
from tests.support.browser import CHROMIUM, Browser, BrowserError
from tests.support.dashboards import serving
from tests.support.peers import Mesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed, which shows the pages"),
]

AXE = importlib.util.find_spec("axe_core_python")
EVIL = "</script><img src=http://127.0.0.1:9/x onerror=document.title='broken'>"
DRAWN = "document.documentElement?.dataset.drawn === 'yes'"
SCREENS = [(390, "light"), (1440, "dark")]


def a_run(parent, name, n=5, rounds=12):
    """A run in which somebody is missing, something fails, and a name is a trap."""
    topology = Topology.star(n)
    folder = RunFolder(parent, name, topology, {"rounds": rounds, "topology": f"star:{n}"})
    folder.draw_split(np.arange(n) % 3, [np.array([v]) for v in range(n)])
    for k in range(1, rounds + 1):
        scores = {v: {"accuracy": 1 - 0.8 / k - 0.02 * v, "loss": 2.0 / k} for v in range(n)}
        folder.append(
            RoundRecord(
                round=k,
                evaluate=scores,
                consensus_distance=1.0 / k,
                missing=[2] if k % 3 == 0 else [],
                rejoined=[2] if k % 3 == 1 and k > 1 else [],
                bytes_by_agent=dict.fromkeys(range(n), 200),
                bytes_sent=200 * n,
                seconds=0.5,
                events=[(2, EVIL)] if k == 3 else [],
                warnings=[EVIL] if k == 4 else [],
            )
        )
    return read_run(folder.path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One run, and three with long names beside each other."""
    home = tmp_path_factory.mktemp("pages")
    one = a_run(home, "one")
    more = [a_run(home, f"a-name-that-is-as-long-as-people-make-them-{i}") for i in range(3)]
    found = []
    for name, runs in (("one", [one]), ("several", more)):
        path = home / f"{name}.html"
        path.write_text(report(runs, library()), encoding="utf-8")
        found.append(path)
    return found


@pytest.fixture(scope="module", params=SCREENS, ids=[f"{w}-{s}" for w, s in SCREENS])
def browser(request):
    width, scheme = request.param
    with Browser(width, 900, dark=scheme == "dark") as found:
        found.width = width
        yield found


def leave(browser):
    """What the page before complains of at its end is not of the next."""
    browser.open("about:blank")
    browser.wait("location.href === 'about:blank'")
    browser.errors.clear()
    browser.asked.clear()


def shown(browser, page):
    leave(browser)
    browser.open(page)
    browser.wait(f"location.href === {json.dumps(page.as_uri())} && {DRAWN}")


def test_all_is_drawn_without_a_complaint_and_nothing_is_fetched(browser, pages):
    for page in pages:
        shown(browser, page)
        assert browser.errors == []
        assert browser.asked == [page.as_uri()]
        counts = browser.run(
            "[document.querySelectorAll('figure').length,"
            " document.querySelectorAll('figure[data-drawn=yes] .chart svg').length,"
            " document.title]"
        )
        assert counts[0] == counts[1] >= 6
        assert counts[2].startswith("Report of")
        # Nothing sticks out to the right, and no label lies upon another.
        assert browser.run("document.documentElement.scrollWidth") <= browser.width
        assert browser.run(OVERLAPS) == []


# Texts of an axis that lie upon each other, by figure.
OVERLAPS = """[...document.querySelectorAll('figure')].flatMap(figure =>
  [...figure.querySelectorAll('.role-axis-label')].flatMap(axis => {
    const boxes = [...axis.querySelectorAll('text')].filter(t => t.textContent
      && t.getAttribute('opacity') !== '0').map(t => t.getBoundingClientRect());
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
      Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(() => figure.id
        + figure.dataset.picture));
  }))"""


def test_a_slider_reads_and_an_axis_changes(browser, pages):
    shown(browser, pages[1])
    said = browser.run(
        "(() => { const slider = document.querySelector('input[type=range]'); slider.value = 3;"
        " slider.dispatchEvent(new Event('input'));"
        " return slider.getAttribute('aria-valuetext'); })()"
    )
    assert said.startswith("Round 4: ")
    browser.run("document.documentElement.dataset.drawn = ''; "
                "document.querySelector('input[value=s]').click()")  # fmt: skip
    browser.wait(DRAWN)
    assert "Seconds" in browser.run("document.querySelector('.chart svg').textContent")
    assert browser.errors == []


def findings_of_axe(browser):
    program = (Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    browser.run(f"{program};0")
    return browser.run(
        "axe.run().then(all => all.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)]))"
    )


@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed, which has the rules")
def test_axe_finds_nothing_to_mend(browser, pages):
    for page in pages:
        shown(browser, page)
        browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert findings_of_axe(browser) == []


# --- the dashboard --------------------------------------------------------------------------


def watched(browser, server):
    leave(browser)
    browser.open(server.url)
    browser.wait(f"location.href === {json.dumps(server.url)} && {DRAWN}")


def sentence(browser):
    return browser.run("document.querySelector('.sentence').textContent")


def test_the_dashboard_follows_a_run_that_grows(browser, tmp_path):
    config = {"rounds": 9, "topology": "torus:10x10"}
    folder = RunFolder(tmp_path, EVIL.replace("/", ""), Topology.torus(10, 10), config)

    def add(k, missing=()):
        scores = {v: {"accuracy": 1 - 0.5 / k - 0.001 * v} for v in range(100)}
        lost = {"missing": [*missing], "warnings": [EVIL] if missing else []}
        folder.append(RoundRecord(round=k, evaluate=scores, seconds=0.1, **lost))

    add(1)
    with serving(source_of(folder.path)) as server:
        watched(browser, server)
        assert sentence(browser).startswith("round 1 of 9; 100 agents")
        browser.run(
            "window.slow = []; new PerformanceObserver(list => {"
            " slow.push(...list.getEntries().map(entry => entry.duration)); })"
            ".observe({type: 'longtask'})"
        )
        add(2, missing=[7])
        browser.until(lambda: sentence(browser).startswith("round 2 of 9; 1 of 100"), "round 2")
        counts = browser.run(
            "[document.querySelectorAll('.lines line').length,"
            " document.querySelectorAll('.lines .down').length,"
            " document.querySelectorAll('.dots .ill').length,"
            " document.querySelector('tr.ill').textContent,"
            " document.querySelectorAll('tbody tr').length,"
            " document.querySelector('.line').getAttribute('points').split(' ').length]"
        )
        assert counts == [200, 4, 1, "(0, 7)1missing", 100, 2]
        assert "onerror" in browser.run("document.querySelector('.warnings').textContent")
        for k in range(3, 10):
            add(k)
        browser.until(lambda: "finished" in sentence(browser), "the end")
        assert browser.run("document.querySelectorAll('.dots .ill').length") == 0
        assert browser.run("document.documentElement.scrollWidth") <= browser.width
        assert browser.errors == []
        assert {*browser.asked} == {server.url, f"{server.url}events"}
        # With a hundred agents a page is drawn within a frame or two, however busy the machine.
        assert max(browser.run("slow"), default=0) < 500
        if AXE is not None:
            assert findings_of_axe(browser) == []
    browser.wait("document.getElementById('connection').textContent.includes('does not answer')")


def test_the_dashboard_follows_a_mesh(browser, mesh):
    with serving(source_of(mesh.out)) as server:
        watched(browser, server)
        browser.until(lambda: "4 of 4 devices answer; round" in sentence(browser), "all to answer")
        browser.until(lambda: "loss" in sentence(browser), "a score")
        assert browser.run("document.querySelectorAll('.lines .up').length") == 4
        rows = "[...document.querySelectorAll('tbody tr')].map(row => +row.children[1].textContent)"
        before = browser.run(rows)
        browser.until(lambda: min(browser.run(rows)) > max(before), "a later round")
        mesh.kill(2)
        browser.until(lambda: "3 of 4 devices answer" in sentence(browser), "the missing one")
        browser.until(
            lambda: browser.run("document.querySelectorAll('.lines .down').length") == 2, "edges"
        )
        assert browser.run("document.querySelector('tr.ill').firstChild.textContent") == "2"
        assert "vertex 2" in browser.run("document.querySelector('.warnings').textContent")
        mesh.start(2)
        browser.until(lambda: "4 of 4 devices answer" in sentence(browser), "it to be back")
        assert browser.errors == []


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """Four peers on a ring that train for as long as a test needs."""
    home = tmp_path_factory.mktemp("mesh") / "m"
    limits = {"hello-s": 1.0, "heartbeat-s": 0.3, "dead-after-s": 1.5}
    with Mesh(home, n=4, topology="ring:4", rounds=100_000, step_s=0.05, evaluate_every=1,
              peer={"limits": limits}) as found:  # fmt: skip
        found.start()
        found.wait_round(0, 2)
        yield found


def test_the_browser_of_these_tests_sees_what_is_wrong(tmp_path):
    page = tmp_path / "wrong.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('said'); throw new Error('thrown')</script>"
    )
    with Browser() as browser:
        browser.open(page)
        browser.until(lambda: browser.run("1") and len(browser.errors) >= 3, "three complaints")
        assert any("127.0.0.1:9" in address for address in browser.asked)
        with pytest.raises(BrowserError, match="nothing"):
            browser.run("nothing.here")
