"""Trajectories worked out by hand: small enough to check with a pencil."""

import numpy as np
import pytest

from flower_dhb import DSGD, HeavyBall, Topology, simulate

# Path 0 - 1 - 2 with weights 1/2. With momentum 1/2 and momentum mixing 1/2:
#
#     W = | 1/2 1/2  0  |     beta Pt = beta (I + W) / 2 = | 3/8 1/8  0  |
#         | 1/2  0  1/2 |                                  | 1/8 1/4 1/8 |
#         |  0  1/2 1/2 |                                  |  0  1/8 3/8 |
#
# All numbers below are exact in binary, so the trajectories must be met exactly.
PATH = Topology.path(3, weights=np.array([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]))
START = [64, 0, 0]
STEPS = {1: [0, 64, 0], 2: [0, 0, 64], 3: [0, 0, 0]}

HALVES = {"momentum": 0.5, "momentum_mixing": 0.5}
ADAPT_FIRST, COMBINE_FIRST = "adapt-then-combine", "combine-then-adapt"

TRAJECTORIES = [
    pytest.param(
        # 1: z = (64,64,0), Wz = (64,32,32), d was 0                 -> d = (0,32,32)
        # 2: z = (64,32,96), Wz = (48,80,64), b Pt d = (4,12,16)     -> d = (-12,60,48)
        # 3: z = x, Wz = (72,66,86), b Pt d = (3,19.5,25.5)
        [HeavyBall(**HALVES), HeavyBall(**HALVES, payload="separate")],
        [[64, 32, 32], [52, 92, 80], [75, 85.5, 111.5]],
        id="displacement, adapt-then-combine",
    ),
    pytest.param(
        # 1: Wx = (32,32,0), s = (0,64,0), d was 0                   -> d = (-32,96,0)
        # 2: Wx = (64,16,48), s = (0,0,64), b Pt d = (0,20,12)       -> d = (32,-60,124)
        # 3: Wx = (50,94,80), s = 0, b Pt d = (4.5,4.5,39)
        [
            HeavyBall(**HALVES, order=COMBINE_FIRST),
            HeavyBall(**HALVES, order=COMBINE_FIRST, payload="separate"),
        ],
        [[32, 96, 0], [64, 36, 124], [54.5, 98.5, 119]],
        id="displacement, combine-then-adapt",
    ),
    pytest.param(
        # 1: v = s = (0,64,0), Wx = (32,32,0)
        # 2: v = (8,16,8) + (0,0,64) = (8,16,72), Wx = (64,16,48)
        # 3: v = (5,14,29), Wx = (52,96,76)
        [HeavyBall(**HALVES, form="buffer", order=COMBINE_FIRST)],
        [[32, 96, 0], [72, 32, 120], [57, 110, 105]],
        id="buffer, combine-then-adapt",
    ),
    pytest.param(
        # 1: v = s = (0,64,0), x + v = (64,64,0)
        # 2: v = (8,16,8) + (0,0,64) = (8,16,72), x + v = (72,48,104)
        # 3: v = (5,14,29), x + v = (65,102,105)
        [HeavyBall(**HALVES, form="buffer", order=ADAPT_FIRST)],
        [[64, 32, 32], [60, 88, 76], [83.5, 85, 103.5]],
        id="buffer, adapt-then-combine",
    ),
    pytest.param(
        # 1: y = s = (0,64,0), W(x + y) = (64,32,32)                 -> d = (0,32,32)
        # 2: y = Wy + s - s_prev = (32,0,32) + (0,-64,64) = (32,-64,96),
        #    W(x + y) = W(96,-32,128) = (32,112,48), b Pt d = (4,12,16) -> d = (-28,92,32)
        # 3: y = (-16,64,16) + (0,0,-64) = (-16,64,-48),
        #    W(x + y) = W(20,188,16) = (104,18,102), b Pt d = (1,23.5,23.5)
        [
            HeavyBall(**HALVES, form="tracking"),
            HeavyBall(**HALVES, form="tracking", payload="separate"),
        ],
        [[64, 32, 32], [36, 124, 64], [105, 41.5, 125.5]],
        id="tracking",
    ),
    pytest.param(
        # z = (64,64,0), (64,32,96), (48,80,64)
        [DSGD()],
        [[64, 32, 32], [48, 80, 64], [64, 56, 72]],
        id="dsgd, adapt-then-combine",
    ),
    pytest.param(
        # Wx = (32,32,0), (64,16,48), (40,88,64); s as above
        [DSGD(order=COMBINE_FIRST)],
        [[32, 96, 0], [64, 16, 112], [40, 88, 64]],
        id="dsgd, combine-then-adapt",
    ),
]


@pytest.mark.parametrize(("algorithms", "expected"), TRAJECTORIES)
def test_three_rounds_on_a_path(algorithms, expected):
    for algorithm in algorithms:
        trajectory = simulate(
            algorithm,
            PATH,
            np.array(START, float)[:, None],
            lambda x, k: x + np.array(STEPS[k], float)[:, None],
            rounds=3,
        )
        np.testing.assert_array_equal(trajectory[:, :, 0], [START, *expected], str(algorithm))


def test_own_and_mixed_momentum_are_not_mistaken_for_each_other():
    """Two rounds on a star of four with momentum 1/2 and momentum mixing 1/4.

    Metropolis gives each edge 1/4, the hub 1/4 and a leaf 3/4. Each agent's local step
    goes half the way to its own target (0, 64, 0, 0).

    1: z = (0,32,0,0), Wz = (8,24,0,0) = x = d
    2: z = (4,44,0,0), Wz = (12,34,1,1), Wd = (8,20,2,2),
       Pt d = 3/4 d + 1/4 Wd = (8,23,1/2,1/2), half of it (4,11.5,1/4,1/4)
    """
    target = np.array([[0.0], [64], [0], [0]])
    trajectory = simulate(
        HeavyBall(momentum=0.5, momentum_mixing=0.25),
        Topology.star(4),
        np.zeros(1),
        lambda x, _: (x + target) / 2,
        rounds=2,
    )
    np.testing.assert_array_equal(
        trajectory[:, :, 0], [[0, 0, 0, 0], [8, 24, 0, 0], [16, 45.5, 1.25, 1.25]]
    )


@pytest.mark.parametrize(
    ("algorithm", "second"),
    [
        # x(1) = d = (8,24,0,0) as above; no training in round 2, so z = x.
        # Wx = (8,20,2,2), Pt d = (d + Wd) / 2 = (8,22,1,1), 9/10 of it is (7.2,19.8,0.9,0.9).
        (HeavyBall(), [15.2, 39.8, 2.9, 2.9]),
        # v(1) = (0,32,0,0), and the default mixes it fully: v = 9/10 Wv = (7.2,21.6,0,0);
        # x + v = (15.2,45.6,0,0), W of it is (15.2,38,3.8,3.8).
        (HeavyBall(form="buffer"), [15.2, 38.0, 3.8, 3.8]),
    ],
    ids=["displacement", "buffer"],
)
def test_defaults_are_momentum_nine_tenths_and_the_forms_own_mixing(algorithm, second):
    first_step = np.array([[0.0], [32], [0], [0]])
    trajectory = simulate(
        algorithm, Topology.star(4), np.zeros(1), lambda x, k: x + (first_step if k == 1 else 0), 2
    )
    # 0.9 is not exact in binary: a few units in the last place of numbers up to 64.
    np.testing.assert_allclose(trajectory[2, :, 0], second, rtol=1e-14)
