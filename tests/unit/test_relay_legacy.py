"""Apps with a `client_fn`, through `decentralize`: the numbers of the newer form, by value."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, RoundError, ServerlessStrategy, Topology, consensus_mod, decentralize
from flower_dhb.flower import legacy
from flower_dhb.peer.device.app import Agent

N, D, ROUNDS, RATE = 6, 4, 4, 0.05
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 0)])
CURVATURE, CENTER = quadratic(N, D)


class Client(NumPyClient):
    """The NumPy app of the other tests, as it was written before Flower had messages."""

    def __init__(self, vertex: int, asked: list[dict[str, object]], fewer: bool = False) -> None:
        self.vertex, self.asked, self.fewer = vertex, asked, fewer

    def fit(self, parameters, config):
        self.asked.append(config)
        head, tail = parameters
        x = np.concatenate([head.ravel(), tail.ravel()])
        z = quadratic_step(x, CURVATURE[self.vertex], CENTER[self.vertex], RATE)
        new = [z[:2].reshape(head.shape), z[2:]]
        said = {"train_loss": np.float64(x @ x), "good": True, "host": "a", "raw": b"b"}
        return new[:1] if self.fewer else new, self.vertex + 1, said

    def evaluate(self, parameters, config):
        self.asked.append(config)
        head, tail = parameters
        return float(np.sum(head**2) + np.sum(tail**2)), self.vertex + 1, {"vertex": self.vertex}


def app_of(asked: list | None = None, mods: list | None = None, **options: bool) -> ClientApp:
    seen = [] if asked is None else asked

    def client_fn(context: Context):
        return Client(int(context.node_config["partition-id"]), seen, **options).to_client()

    return ClientApp(client_fn, mods=mods)


def run(app: ClientApp, rounds: int = ROUNDS, every: int = 1):
    strategy = ServerlessStrategy(GRAPH, DSGD(), collect_models=True, share_every=every)
    config = ConfigRecord({"lr": 0.5})
    return strategy.start(LocalGrid(app, N), start_arrays(D)[0], rounds, train_config=config)


@pytest.mark.parametrize("every", [1, 3])
def test_a_client_fn_gives_the_numbers_and_metrics_of_the_newer_form(every: int) -> None:
    asked: list[dict[str, object]] = []
    old = run(decentralize(app_of(asked)), every=every)
    new = run(numpy_app(N, D, rate=RATE, mods=[consensus_mod]), every=every)
    assert all(r.missing == [] and r.events == [] for r in old.history)
    for vertex in range(N):
        assert list(old.models[vertex]) == list(new.models[vertex])
        np.testing.assert_array_equal(flat(old.models[vertex]), flat(new.models[vertex]))
    assert asked[0] == {"lr": 0.5, "server-round": 1}
    train, evaluate = old.history[-1].train[3], old.history[-1].evaluate[3]
    assert set(train) == {"train_loss", "good", "num-examples"}, "numbers alone"
    assert (train["good"], train["num-examples"]) == (1, 4)
    assert evaluate == {"loss": new.history[-1].evaluate[3]["norm"], "vertex": 3, "num-examples": 4}
    assert old.evaluate_metrics_clientapp[ROUNDS]["vertex"] == pytest.approx(70 / 21)


def test_mods_of_the_older_app_see_what_they_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(message, context, call_next):
        seen.append(sorted(message.content))
        return call_next(message, context)

    monkeypatch.setattr(legacy, "_told", set())
    run(decentralize(app_of(mods=[look])), rounds=1)
    assert seen[0] == ["fitins.config", "fitins.parameters"]
    assert seen[-1] == ["evaluateins.config", "evaluateins.parameters"]
    assert legacy._told == {"host", "raw"}, "said once"


def test_a_client_fn_that_returns_other_arrays_is_told_so() -> None:
    with pytest.raises(RoundError, match=r"fit returned 1 arrays, expected 2: those that it was"):
        run(decentralize(app_of(fewer=True)))


def test_a_client_without_fit_says_so() -> None:
    app = ClientApp(lambda context: NumPyClient().to_client())
    with pytest.raises(
        RoundError, match=r"the client answered with status 3: 'Client does not implement `fit`'"
    ):
        run(decentralize(app))


def test_the_mod_in_an_app_with_a_client_fn_names_the_remedy() -> None:
    with pytest.raises(RoundError, match=r"the app has a client_fn, .*app = decentralize\(app\)"):
        run(app_of(mods=[consensus_mod]))


def test_a_peer_runs_an_app_with_a_client_fn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = Agent.of_device(
            app_of(),
            vertex=0,
            run="r",
            algorithm=DSGD(),
            weights={0: 0.5, 1: 0.5},
            arrays={"0": np.ones((1, 2)), "1": np.ones(2)},
            node_config={},
            run_config={},
        )
        outcome = agent.train(1)
    assert outcome.metrics["num-examples"] == 1
    assert outcome.frame is not None
    z = quadratic_step(np.ones(4), CURVATURE[0], CENTER[0], RATE)
    assert outcome.frame.endswith(z.tobytes())
