"""The engine: all agents of a network on one machine, vectorized.

problem = Supervised(make_model("mlp", seed=0), x, y, parts)
engine = Engine(problem, Topology.ring(16), HeavyBall(), learning_rate=0.1)
engine.run(100)
"""

from __future__ import annotations

from flower_dhb.engine.batched import Batched, Looped, cross_entropy
from flower_dhb.engine.engine import Engine, mixing_matrix_of, random_failures
from flower_dhb.engine.mixer import Mixer
from flower_dhb.engine.problem import Agents, Analytic, Problem
from flower_dhb.engine.supervised import Supervised

__all__ = [
    "Agents",
    "Analytic",
    "Batched",
    "Engine",
    "Looped",
    "Mixer",
    "Problem",
    "Supervised",
    "cross_entropy",
    "mixing_matrix_of",
    "random_failures",
]
