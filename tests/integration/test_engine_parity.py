"""The engine and real runs of the digits app end with the same parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.flower_runs import DIGITS, OWN_RULES, RATE, ROUNDS, RULES, SEED, TOPOLOGY, models

from flower_dhb import Topology
from flower_dhb.algorithms import method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import split

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("superlink")]


@pytest.mark.parametrize("name", RULES)
def test_engine_is_flwr_run(
    rules: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(OWN_RULES.parent)
    module, data = make_model("mlp", SEED), load_digits()
    parts = split(data.train_y.numpy(), 7, DIGITS["split"], SEED)
    problem = Supervised(module, data.train_x, data.train_y, parts, seed=SEED)
    engine = Engine(
        problem,
        Topology.parse(TOPOLOGY),
        method(RULES[name].get("algorithm", name)),
        learning_rate=RATE,
    )
    engine.run(ROUNDS)
    # float32, five rounds: gradients batched over agents or not, sums in another
    # order. A round's step is a thousand times larger.
    np.testing.assert_allclose(models(rules[name], 7), engine.parameters.numpy(), rtol=0, atol=1e-5)


def test_clipping_has_clipped(rules: dict[str, Path]) -> None:
    """Else its run would show no more than the others."""
    apart = models(rules["clipped"], 7) - models(rules["dmsgd"], 7)
    assert np.abs(apart).max() > 0.1
