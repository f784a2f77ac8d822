"""The page of momentum on a ring: its formulas are the package's, and everybody can use it."""

import json
from pathlib import Path

import numpy as np
import pytest

from flower_dhb import HeavyBall, Topology, simulate
from flower_dhb.metrics import consensus_distance
from flower_dhb.topology.planning import rate, stability_limit

pytest.importorskip("fcntl")  # the pipes to the browser need it

from tests.support.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ring.html"
# β, ω and the step size.
POINTS = [(0.9, 0.5, 0.05), (0.0, 0.3, 1.2), (0.6, 0.0, 0.4), (0.95, 1.0, 0.02), (0.8, 0.5, 3.9)]


@pytest.fixture(scope="module")
def browser():
    with Browser(1000, 800) as found:
        found.open(PAGE)
        found.wait("document.readyState === 'complete'")
        yield found


@pytest.mark.parametrize(("momentum", "mixing", "step"), POINTS)
@pytest.mark.parametrize("n", [5, 16])
def test_its_formulas_are_the_package_s(browser, n, momentum, mixing, step):
    ring, rule = Topology.ring(n), HeavyBall(momentum=momentum, momentum_mixing=mixing)
    words = f"{n}, {momentum}, {mixing}"
    found = browser.run(
        f"({{minima: law.minima({n}), rate: law.rate({words}, {step}), limit: law.limit({words}),"
        f" all: law.simulate(law.minima({n}), {momentum}, {mixing}, {step}, 30)}})"
    )
    minima = np.array(found["minima"])[:, None]
    assert minima.mean() == pytest.approx(1.0)
    way = simulate(rule, ring, np.zeros(1), lambda x, _: x - step * (x - minima), 30)
    # Sums in another order: a few units in the last place, which a diverging run enlarges.
    np.testing.assert_allclose(np.array(found["all"]), way[:, :, 0], rtol=1e-9, atol=1e-9)
    assert found["rate"] == pytest.approx(rate(rule, ring.eigenvalues, step), rel=1e-7)
    assert found["limit"] == pytest.approx(stability_limit(rule, ring.eigenvalues), rel=1e-7)
    assert (found["rate"] < 1.0) == (step < found["limit"])
    last = browser.run(f"law.distance({json.dumps(found['all'][-1])})")
    assert last == pytest.approx(consensus_distance(list(way[-1])), rel=1e-6)


def test_sliders_move_the_pictures_by_keys_alone(browser):
    def said():
        return browser.run("find('said').textContent")

    def key(name, code):
        for kind in ("keyDown", "keyUp"):
            browser.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                        windowsVirtualKeyCode=code)  # fmt: skip

    browser.open(PAGE)
    browser.wait("document.readyState === 'complete'")
    assert "disagreement by 0.777" in said()
    before = browser.run("find('apart').innerHTML")
    browser.run("find('beta').focus()")
    key("Home", 36)
    assert browser.run("find('beta').value") == "0"
    assert browser.run("find('apart').innerHTML") != before
    key("Tab", 9)
    key("End", 35)
    assert browser.run("document.activeElement.id + find('omega').value") == "omega1"
    browser.run("document.querySelector('button').click()")
    assert browser.run("[find('beta').value, find('omega').value]") == ["0", "0.5"]
    browser.run("find('beta').value = 0.98; find('step').value = 2; find('omega').value = 1")
    browser.run("find('learn').click()")
    assert "stable" in said()
    browser.run("find('step').value = 0.5; find('beta').value = 0.9; show()")
    assert "error by 0.949" in said()  # the root of 0.9
    assert "NaN" not in browser.run("document.querySelector('main').innerHTML")
    assert [a for a in browser.asked if not a.startswith("file:")] == []
    assert browser.errors == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)])
def test_everybody_can_use_it(width, dark):
    axe = pytest.importorskip("axe_core_python")
    rules = Path(axe.__path__[0]) / "axe.min.js"
    with Browser(width, 900, dark=dark) as found:
        found.open(PAGE)
        found.wait("document.readyState === 'complete'")
        assert found.run("document.documentElement.scrollWidth") <= width
        found.run(rules.read_text(encoding="utf-8"))
        program = "axe.run().then(all => all.violations.map(v => [v.id, v.nodes[0].html]))"
        assert found.run(program) == []
