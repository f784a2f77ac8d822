"""More than a million events on two processes, and all that can happen does."""

import pytest

from .campaign import campaign
from .coverage import never_seen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_KINDS = (
    "a third at once",
    "alone at the end",
    "crash",
    "differences",
    "differences that no promise covers",
    "disk lost",
    "double start",
    "edition announced",
    "edition learned late",
    "finished agent started again",
    "goes on after its end",
    "late return",
    "late start",
    "liar",
    "link: blocked",
    "link: both",
    "link: crossing",
    "link: late",
    "link: one way",
    "mesh: add edge",
    "mesh: drop edge",
    "mesh: fewer",
    "mesh: join",
    "mesh: leave",
    "mesh: more",
    "mesh: weights",
    "never returns",
    "old disk",
    "pause",
    "payload breaks off",
    "rejoin",
    "stale events",
    "stop",
    "training fails",
)


def test_thousands_of_schedules_with_every_fault() -> None:
    report = campaign(1_200_000, first=200_000, jobs=2, schedules=2000)
    print(report.text())
    assert not report.broken, report.text()
    assert report.events >= 1_200_000
    assert report.schedules >= 2000
    assert not never_seen(report.transitions)
    assert [kind for kind in _KINDS if not report.counts[kind]] == []


def test_a_report_does_not_depend_on_the_number_of_processes() -> None:
    one, two = (campaign(15_000, jobs=jobs, profile="crashes") for jobs in (1, 2))
    one.seconds = two.seconds = 0.0
    assert one == two
    assert one.events >= 15_000
