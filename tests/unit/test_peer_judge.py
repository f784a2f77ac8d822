"""A device looks at what neighbors sent before it acknowledges: both ends give the edge up."""

import dataclasses

import numpy as np
import pytest

from flower_dhb import DSGD
from flower_dhb.agent import codec
from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import Node, Snapshot
from flower_dhb.peer.device.daemon import Peer
from flower_dhb.peer.device.judge import Judge
from flower_dhb.peer.protocol.events import Acknowledged, Completed, Connected, Greeted, Offered
from flower_dhb.peer.protocol.events import Payload as Held
from flower_dhb.peer.protocol.messages import Ack, Hello, Offer, Release
from flower_dhb.peer.protocol.settings import Timing
from flower_dhb.types import Layout, State
from tests.support.events import Events
from tests.support.peers import Mesh

X = np.arange(1.0, 5.0)


def frame(k, vector, vertex=1, name="parameters", run="r"):
    return codec.encode({name: vector}, run=run, round=k, vertex=vertex)


def judge(rule=None):
    told = []
    made = Judge(rule or DSGD(), lambda *begun: told.append(begun))
    state = Snapshot(0, State(X, {}), np.zeros(0), {})

    def shares(k):
        made.shares(k, frame(k, X - 0.1, vertex=0), state)

    return made, shares, told


def test_what_is_absurd_is_said_and_a_third_time_begins_a_quarantine():
    made, shares, told = judge()
    for k in (1, 2, 3):
        shares(k)
        assert made.look(2, k, frame(k, X)) == (False, "")
        absurd, why = made.look(1, k, frame(k, X * 1e30))
        assert absurd
        assert why.startswith(f"round {k}, neighbor 1: its payload is 5.48e+30 away from")
    assert told == [(1, 11)]
    shares(4)
    assert made.look(1, 4, frame(4, X)) == (
        False,
        "round 4, neighbor 1: in quarantine, looked at again in round 12",
    )
    shares(12)
    assert made.look(1, 12, frame(12, X)) == (False, "")
    shares(13)
    assert made.look(1, 13, frame(13, X * 99))[0]
    assert told == [(1, 11)]  # it was forgiven


def test_a_payload_that_is_early_is_looked_at_once_there_is_an_own_one():
    made, shares, _ = judge()
    assert made.look(1, 1, frame(1, X * 1e30)) == (False, "")
    shares(1)
    assert made.look(1, 2, frame(2, X * 1e30)) == (False, "")
    shares(2)
    assert made.look(1, 2, frame(2, X * 1e30))[0]


def test_a_rule_that_does_not_screen_believes():
    made, shares, _ = judge(DSGD(screening="off"))
    shares(1)
    assert made.look(1, 1, frame(1, X * 1e30)) == (False, "")


@pytest.mark.parametrize("text", ["int4", "topk:0.1", "randk:0.1"])
def test_public_payloads_are_judged_as_the_agent_itself_would_judge_them(text):
    """Where payloads are compressed, the agent's own is what its neighbors make of it, too."""
    start, kind = {"x": np.linspace(1.0, 5.0, 200)}, Compression.parse(text)
    layout, verdicts = Layout.of(start), []
    for factor in (1.0, 1.5, 3.0, 10.0, 30.0, 100.0):
        node = Node.start(0, DSGD(), {0: 0.5, 1: 0.5}, layout, start, kind)
        before = node.snapshot
        own = node.adapt(1, {"x": start["x"] * 0.99})
        made = Judge(DSGD(), lambda *begun: None)
        made.shares(1, codec.encode(own, run="r", round=1, vertex=0), node.snapshot)
        assert before.state.parameters is node.snapshot.state.parameters
        theirs = {name: vector * factor for name, vector in own.items()}
        absurd, _ = made.look(1, 1, codec.encode(theirs, run="r", round=1, vertex=1))
        node.offer(1, 1, theirs)
        node.combine(screen=True)
        assert absurd == bool(node.screened)
        verdicts.append(absurd)
    assert verdicts[0] is False
    assert verdicts[-1] is True


# --- in the daemon ------------------------------------------------------------------------


class Liar:
    """Neighbor 1 of a peer, without a socket. early: it sends before it hears anything.

    Its first payload of two rounds is a lie. got: what came, by kind.
    """

    def __init__(self, peer, early):
        self.peer, self.early = peer, early
        self.got, self.refused = [], []
        peer.transport.start = lambda: peer.deliver(Connected(1, self))
        peer.transport.stop = lambda: None

    def _payload(self, k):
        start = np.random.default_rng([0, 7]).standard_normal(4)
        vector = start * (1e30 if k == 1 else 1.0)
        made = frame(k, vector, name="folded", run=self.peer.settings.run)
        digest = codec.read_checksum(made)
        offer = Offer(k, digest, closed=k - 1)
        self.peer.deliver(Offered(1, self, offer))
        self.peer.deliver(Completed(1, self, offer, Held(digest, made)))

    def send(self, message):
        self.got.append(message)
        if isinstance(message, Hello):
            self.peer.deliver(Greeted(1, self, Hello()))
            if self.early:
                self._payload(1)
        if message == Release(1):
            self._payload(2)

    def send_payload(self, offer, payload):
        if not self.early or offer.round > 1:
            self._payload(offer.round) if offer.round == 1 else None
        self.peer.deliver(Acknowledged(1, self, offer.round, payload.digest))

    def reserve(self, offer):
        pass

    def refuse(self, error):
        self.refused.append((error.kind, error.round))

    def close(self, text):
        pass

    def abort(self):
        pass


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.thorough
def test_a_lie_is_refused_and_released_and_the_next_round_counts(early, tmp_path):
    mesh = Mesh(tmp_path / "m", n=2, plaintext=True, topology="path:2", rounds=2, size=4)
    patient = Timing(ceiling_s=60.0, least_s=60.0, reconnect_s=60.0, resume_s=60.0)
    settings = dataclasses.replace(mesh.settings(0), timing=patient, linger_s=0.0)
    with Events():
        peer = Peer(settings)
        liar = Liar(peer, early)
        assert peer.run().done
    assert liar.refused == [("screened", 1)]
    votes = [m.round for m in liar.got if isinstance(m, Ack)]
    assert Release(1) in liar.got
    assert 1 not in votes
    lines = mesh.history(0)
    assert [line["missing"] for line in lines] == [[1], []]
    assert np.abs(mesh.model(0)["x"]).max() < 10.0
