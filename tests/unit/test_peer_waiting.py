"""What a peer says of a wait, and why a connection is not there, in words."""

import logging

import pytest

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.events import (
    Announced,
    Connected,
    Greeted,
    Journaled,
    Payload,
    Started,
    Trained,
)
from flower_dhb.peer.protocol.messages import Hello
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.peer.watch.vigil import Vigil, Wait, wait_of
from flower_dhb.peer.wire.causes import cause_of

ALL = "failed to connect to all addresses; last error: "


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            f"{ALL}UNKNOWN: ipv4:127.0.0.1:30039: Failed to connect to remote host: Connection "
            "refused",
            "nothing listens there: its peer is not running, or on another port",
        ),
        (
            f"{ALL}UNKNOWN: ipv4:10.9.0.7:9440: Failed to connect to remote host: connect: No "
            "route to host (113)",
            "no network leads there",
        ),
        (
            f"{ALL}UNAVAILABLE: ipv4:10.9.0.7:9440: Failed to connect to remote host: FD shutdown",
            "no answer: the device is off or away, or a firewall drops what is sent to it",
        ),
        (
            "DNS resolution failed for rover.local:9440: C-ares status is not ARES_SUCCESS "
            "qtype=A name=rover.local is_balancer=0: Domain name not found",
            "its host name is not known to the network's DNS",
        ),
        (
            f"{ALL}UNKNOWN: ipv4:127.0.0.1:9: Ssl handshake failed (TSI_PROTOCOL_FAILURE): "
            "SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
            "CERTIFICATE_VERIFY_FAILED: certificate has expired",
            "TLS failed: its certificate has expired, or this clock is wrong",
        ),
        (
            "Stream removed (Socket closed)",
            "the other end closed the connection: its peer has ended, or something between cut it",
        ),
        ("neighbor 3 opens connections too often", "neighbor 3 opens connections too often"),
        (f"{ALL}UNKNOWN: ipv4:10.0.0.7:1: A new thing", "UNKNOWN: A new thing"),
        ("", "no reason was given"),
    ],
)
def test_causes_in_words(details, words):
    assert cause_of(details) == words


def greet(agent, neighbor, now):
    agent.handle(Connected(neighbor, f"link-{neighbor}"), now)
    agent.handle(Greeted(neighbor, f"link-{neighbor}", Hello(0, 0, 0)), now)


def test_who_is_waited_for_and_why():
    monitor = Monitor(0, {1: "arm"})
    agent = Agent(Config(vertex=0, editions=(Edition(1, 1, 9, (1, 2)),)), 0.0)
    agent.handle(Started(), 0.0)
    monitor.warning("unreachable", neighbor=1, address="10.0.0.1:9", why="no answer")
    wait = wait_of(agent, 1.0, monitor)
    assert wait.what == "waits to begin, for neighbors that are not connected,"
    assert wait.neighbors == (1, 2)
    assert wait.why == "cannot reach vertex 1 (arm) at 10.0.0.1:9: no answer; 2 has not connected"
    greet(agent, 1, 2.0)
    greet(agent, 2, 2.0)
    training = Wait("is in the app, which trains round 1,", (Phase.TRAINING, 1))
    assert wait_of(agent, 3.0, monitor) == training
    agent.handle(Trained(), 4.0)
    monitor.warning("disk-failed", why="No space left", file="", what_now="it is tried again")
    wait = wait_of(agent, 4.0, monitor)
    assert (wait.what, wait.neighbors) == ("waits for its disk in round 1", ())
    assert wait.why == "the disk takes nothing: No space left; it is tried again"
    agent.handle(Journaled(Payload(7, b"")), 5.0)
    wait = wait_of(agent, 5.0, monitor)
    assert (wait.what, wait.neighbors) == ("waits in round 1 for neighbors' payloads", (1, 2))
    assert wait.why == "1 is connected, and in round 0; 2 is connected, and in round 0"


def test_a_line_for_each_minute_of_the_same_wait(caplog):
    caplog.set_level(logging.INFO, "flower_dhb.peer")
    now, waits = [0.0], [Wait("waits", ("a",), (1,), "it is away")]
    vigil = Vigil(lambda: waits[0], Monitor(0), clock=lambda: now[0])

    def look(begin, end):
        for second in range(begin, end, 3):
            now[0] = float(second)
            vigil.look()

    look(0, 190)
    assert [r.fields for r in caplog.records] == [
        {"vertex": 0, "what": "waits", "since_s": s, "neighbors": [1], "why": "it is away"}
        for s in (60, 120, 180)
    ]
    caplog.clear()
    for begin in range(190, 590, 50):  # each wait is shorter than a minute
        waits[0] = Wait("waits", (begin,))
        look(begin, begin + 50)
    waits[0] = None
    look(590, 900)
    assert not caplog.records


def test_nobody_waits_for_an_edge_that_a_later_edition_brings():
    """It comes while a round is open in which it has no part."""
    agent = Agent(Config(vertex=0, editions=(Edition(1, 1, 9, (1,)),)), 0.0)
    agent.handle(Started(), 0.0)
    greet(agent, 1, 0.0)
    agent.handle(Trained(), 1.0)
    agent.handle(Journaled(Payload(7, "own")), 1.0)
    before = agent.next_deadline()
    slower = Timing(ceiling_s=7.0)
    agent.handle(Announced(Edition(2, 5, 9, (1, 2)), slower), 1.0)
    greet(agent, 2, 1.0)
    assert not agent.edges[2].stage.open
    assert agent.near.wait_s(agent.edges[2], 1.0) == 0.0
    assert agent.near.wait_s(agent.edges[1], 1.0) > 0.0
    # And the time limits are those that came along, for edges that were there as well.
    assert agent.config.timing == agent.near.config.timing == slower
    assert {edge.patience.deadline_s for edge in agent.edges.values()} <= {3.0, 7.0}
    assert before is not None
