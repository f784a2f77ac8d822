"""The log of a peer under a flood: what repeats is counted, what is foreign is escaped."""

import io
import json
import logging
import threading
import time

import pytest

from flower_dhb.peer import monitor as monitor_module
from flower_dhb.peer.monitor import LOGGER, Folding, Monitor, plain, set_up_logging


class Log:
    """A log whose clock is turned by the test."""

    def __init__(self, form="json"):
        self.now, self.stream = 1000.0, io.StringIO()
        loggers = [LOGGER, *(logging.getLogger(name) for name in ("flwr", "grpc"))]
        self._before = [(lg, lg.handlers[:], lg.level, lg.propagate) for lg in loggers]
        set_up_logging(form, self.stream)
        made = LOGGER.handlers[0]
        self.handler = Folding(self.stream, lambda: self.now)
        self.handler.setFormatter(made.formatter)
        for lg in loggers:
            lg.handlers[:] = [self.handler]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handler.close()
        for lg, handlers, level, propagate in self._before:
            lg.handlers[:], lg.level, lg.propagate = handlers, level, propagate

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def lines(self):
        return [json.loads(line) for line in self.text.splitlines()]

    def wait(self, seconds):
        self.now += seconds
        self.handler.write_counts(self.now)


def test_the_first_line_comes_at_once_and_the_others_as_a_count():
    monitor = Monitor(3)
    with Log() as log:
        for _ in range(3813):
            monitor.count("disconnected", 1)
            monitor.warning("disconnected", neighbor=1, why="refused by 10.0.0.7:4711")
        assert len(log.lines) == 1
        assert "more" not in log.lines[0]
        log.wait(9.9)
        assert len(log.lines) == 1
        log.wait(0.1)
        first, count = log.lines
        assert {k: v for k, v in count.items() if k != "time"} == {
            **{k: v for k, v in first.items() if k != "time"}, "more": 3812, "within_s": 10
        }  # fmt: skip
    assert monitor.counts()["disconnected", 1] == 3813


def test_in_text_form_too():
    with Log("text") as log:
        for _ in range(3813):
            Monitor(3).warning("disconnected", neighbor=1, why="nobody there")
        log.wait(60.0)
        first, count = log.text.splitlines()
        assert first.endswith("vertex 3: lost vertex 1: nobody there; dials it again")
        assert count.endswith("lost vertex 1: nobody there; dials it again … 3,812 more in 1 min")


def test_counts_come_ever_more_seldom_until_there_is_silence():
    monitor = Monitor(0)
    with Log() as log:
        for _ in range(1000):  # a dead neighbor, for well over an hour
            monitor.warning("disconnected", neighbor=1, why="gone")
            log.wait(5.0)
        spans = [line["within_s"] for line in log.lines[1:]]
        assert spans == [10, 20, 40, 80, 160, 320, 640, 1280]
        written = sum(line.get("more", 1) for line in log.lines)
        assert 500 < written < 1000  # what is left comes with the next count
        log.wait(2560.0)
        assert sum(line.get("more", 1) for line in log.lines) == 1000
        log.wait(600.0)
        n = len(log.lines)
        monitor.warning("disconnected", neighbor=1, why="gone")
        assert "more" not in log.lines[n]  # as the first one


def test_what_comes_again_after_something_else_is_news_and_is_not_held_back():
    monitor = Monitor(0)
    with Log() as log:
        for k in range(40):  # a device that is away again and again, and unreachable meanwhile
            for _ in range(20):
                monitor.warning("unreachable", neighbor=1, why="nothing listens there")
                log.wait(1.0)
            monitor.event("connected", neighbor=1, round=k, after_s=20.0)
            if k == 0:
                told = [(e["event"], e.get("more")) for e in log.lines]
                # What was counted is told before what ends it.
                assert told == [("unreachable", None), ("unreachable", 9), ("unreachable", 10),
                                ("connected", None)]  # fmt: skip
        first = [e for e in log.lines if e["event"] == "connected" and "more" not in e]
        assert [e["round"] for e in first[:5]] == [0, 1, 2, 3, 4]
        assert len(first) <= 7  # whoever comes and goes for ever is counted in the end
        n = sum(e.get("more", 1) for e in log.lines if e["event"] == "unreachable")
        log.handler.close()
        assert n <= 800 == sum(e.get("more", 1) for e in log.lines if e["event"] == "unreachable")


def test_a_second_rejoin_is_a_line_of_its_own_however_soon():
    with Log() as log:
        for k in (7, 30):
            Monitor(0).warning("rejoined", round=k, missed=20, neighbors=[1])
            Monitor(0).event("round", round=k + 1)
        assert [e["round"] for e in log.lines if e["event"] == "rejoined"] == [7, 30]


def test_a_dead_neighbor_costs_few_lines_however_long_each_attempt_takes():
    monitor = Monitor(0)
    with Log() as log:
        for _ in range(4 * 60 * 24):  # an attempt each 15 s for a day, longer than a first window
            monitor.warning("unreachable", neighbor=1, why="no answer")
            log.wait(15.0)
        assert len(log.lines) <= 15


def test_why_a_neighbor_is_not_there_is_remembered_until_it_is():
    monitor = Monitor(0, {1: "arm"})
    assert monitor.trouble(1) is None
    monitor.warning("cut-off", neighbor=1, why="silent")
    monitor.warning("unreachable", neighbor=1, why="nothing listens there")
    monitor.warning("slow-link", neighbor=1)  # no reason why it is not there
    trouble = monitor.trouble(1)
    assert trouble.event == "unreachable"
    assert trouble.text == "cannot reach vertex 1 (arm): nothing listens there"
    monitor.warning("unreachable", neighbor=1, why="no answer")
    assert monitor.trouble(1).since == trouble.since
    monitor.event("connected", neighbor=1, round=3)
    assert monitor.trouble(1) is None


def test_counts_come_without_another_line(monkeypatch):
    """Real time: nothing follows, and still it is said how many there were."""
    monkeypatch.setattr(monitor_module, "_WINDOW_S", 0.1)
    with Log() as log:
        log.handler._clock = time.monotonic
        for _ in range(5):
            Monitor(0).warning("cut-off", neighbor=1, why="x")
        end = time.monotonic() + 10.0
        while len(log.lines) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert log.lines[1]["more"] == 4
    assert not [t for t in threading.enumerate() if t.name == "log" and not t.daemon]


def test_what_is_not_yet_told_is_told_at_the_end():
    with Log() as log:
        for _ in range(5):
            Monitor(0).warning("cut-off", neighbor=1, why="x")
        log.handler.close()
        assert [line.get("more") for line in log.lines] == [None, 4]


def test_rounds_are_all_written():
    with Log() as log:
        for k in range(50):
            Monitor(0).event("round", round=k)
        assert [line["round"] for line in log.lines] == list(range(50))


def test_other_neighbors_reasons_and_texts_have_lines_of_their_own():
    monitor = Monitor(0)
    with Log() as log:
        for _ in range(2):
            for neighbor in (1, 2):
                for reason in ("stale", "size"):
                    for why in ("round 3", "round 4", "another thing"):  # numbers aside
                        monitor.warning("refused", neighbor=neighbor, reason=reason, why=why)
        assert len(log.lines) == 8


def test_whoever_says_something_else_each_time_gains_nothing():
    monitor = Monitor(0)
    with Log() as log:
        for i in range(5000):
            monitor.event("goodbye", neighbor=1, why="x" * (i % 400) + chr(97 + i % 26))
        assert len(log.lines) <= 9  # eight that are told apart, and the others as one
        log.wait(10.0)
        assert sum(line.get("more", 1) for line in log.lines) == 5000


HOSTILE = ["\n", "\r\n", "\x1b[2J", "\u2028", "\u202e", "\x00", "\ud800", "😀" * 400, "é" * 900]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.thorough
def test_an_hour_of_any_flood_costs_less_than_a_megabyte(form):
    """Every event of every neighbor, ever new texts, long and of any characters."""
    monitor = Monitor(0)
    names = ["turned-away", "refused", "refused-there", "goodbye", "cut-off", "disconnected"]
    with Log(form) as log:
        n = 0
        for _ in range(360):
            log.wait(10.0)
            for i in range(30):
                n += 1
                monitor.warning(
                    names[n % len(names)], neighbor=n % 16, reason=f"reason-{n % 11}",
                    why=chr(97 + n % 26) * (n % 13) + HOSTILE[i % len(HOSTILE)] * (n % 50),
                )  # fmt: skip
        assert 100_000 < len(log.text.encode()) < 1_000_000
        assert len(log.handler._folds) <= 512 + len(names)


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("foreign", HOSTILE)
def test_foreign_text_forges_no_line_and_moves_no_cursor(form, foreign):
    forged = f"x{foreign}2026-01-01T00:00:00.000+00:00 info    vertex 3: round round=9"
    with Log(form) as log:
        Monitor(3).event("goodbye", neighbor=1, why=forged)
        logging.getLogger("grpc").warning("said %s", forged)
        lines = log.text.splitlines()
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines)
        if form == "json":
            assert json.loads(lines[0])["why"].isprintable()
            assert len(json.loads(lines[0])["why"]) <= 500


def test_foreign_text_forges_no_field():
    with Log("text") as log:
        Monitor(3).event("goodbye", neighbor=1, done=False, why='x" round=9')
        assert log.text.endswith(
            'vertex 3: vertex 1 says goodbye (its run is not over): "x\\" round=9"\n'
        )


def test_plain_text_stays_as_it_is():
    assert plain("Zürich, 5 € – 日本") == "Zürich, 5 € – 日本"
    assert plain("a\nb\x1b") == "a\\nb\\x1b"
    assert plain("x" * 500) == "x" * 500
    assert plain("x" * 501) == "x" * 499 + "…"
    assert len(plain("\x00" * 500)) == 500


def test_lines_of_grpc_are_folded_by_their_form():
    logger = logging.getLogger("grpc._server")
    with Log() as log:
        for i in range(100):
            logger.error("Exception %s: %d", "x" * (i % 7), i)
        assert len(log.lines) == 1
