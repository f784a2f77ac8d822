"""One round's mixing, dense and sparse; and problems that are given by their gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flower_dhb.engine.mixer import Mixer, prefers_sparse
from flower_dhb.engine.problem import Agents, Analytic
from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology

CPU = torch.device("cpu")


def banded(n: int, weights: int) -> np.ndarray:
    """An (n, n) matrix with so many nonzero entries."""
    matrix = np.zeros(n * n)
    matrix[:weights] = 1.0
    return matrix.reshape(n, n)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_numpys_whatever_the_kind(kind: str, dtype: torch.dtype) -> None:
    graph = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (3, 4)])
    mixer = Mixer(graph.mixing_matrix, dtype, CPU, kind)
    assert mixer.kind == kind
    vectors = torch.arange(15, dtype=dtype).reshape(5, 3) ** 2
    expected = graph.mixing_matrix @ vectors.double().numpy()
    found = mixer(vectors)
    assert found.dtype == dtype
    assert found.shape == (5, 3)
    # Sums of five products of numbers up to 196.
    atol = 1e-4 if dtype == torch.float32 else 1e-13
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)
    assert (mixer._weights.layout == torch.sparse_csr) == (kind == "sparse")


@pytest.mark.parametrize(
    ("n", "weights", "device", "sparse"),
    [
        (31, 31, "cpu", False),  # too few agents to gain anything
        (32, 32, "cpu", True),
        (40, 159, "cpu", True),  # a sparse weight costs as much as ten dense ones: 160 of 1600
        (40, 160, "cpu", False),
        (40, 99, "cuda", True),  # sixteen: 100 of 1600
        (40, 100, "cuda", False),
        (40, 100, "xpu", False),  # not measured: as on a GPU
        (40, 99, "xpu", True),
    ],
)
def test_sparse_is_chosen_where_it_was_measured_to_be_faster(
    n: int, weights: int, device: str, sparse: bool
) -> None:
    assert prefers_sparse(banded(n, weights), device) is sparse
    if device == "cpu":
        assert prefers_sparse(banded(n, weights)) is sparse
        expected = "sparse" if sparse else "dense"
        assert Mixer(banded(n, weights), torch.float64, CPU).kind == expected
        assert Mixer(banded(n, weights), torch.float64, CPU, "auto").kind == expected


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixing must be one of auto, dense, sparse; got 'csr'"):
        Mixer(np.eye(2), torch.float64, CPU, "csr")


# --- problems given by their gradient -----------------------------------------------------------


def gradient(x: np.ndarray, k: int) -> np.ndarray:
    return x.astype(np.float64) * k + np.arange(len(x))[:, None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_local_step_is_one_gradient_step_in_the_dtype_of_the_start(dtype: type) -> None:
    problem = Analytic(np.array([1.0, -2.0], dtype), gradient, n_agents=3)
    assert problem.n_agents == 3
    agents = problem.start(CPU)
    assert agents.parameters.tolist() == [[1.0, -2.0]] * 3
    assert agents.statistics.shape == (3, 0)
    assert agents.local == {}
    trained = torch.empty_like(agents.parameters)
    problem.adapt(agents, 2, 0.25, trained)
    # x - 0.25 (2 x + i)
    assert trained.tolist() == [[0.5, -1.0], [0.25, -1.25], [0.0, -1.5]]
    assert agents.parameters.tolist() == [[1.0, -2.0]] * 3
    assert trained.dtype == agents.parameters.dtype == torch.from_numpy(np.zeros(1, dtype)).dtype


def test_every_agent_may_have_a_start_of_its_own_and_starts_are_copied() -> None:
    rows = np.array([[1.0], [2.0], [3.0]])
    problem = Analytic(rows, gradient)
    assert problem.n_agents == 3
    agents = problem.start(CPU)
    agents.parameters.zero_()
    assert problem.start(CPU).parameters.tolist() == [[1.0], [2.0], [3.0]]
    assert rows.tolist() == [[1.0], [2.0], [3.0]]
    with pytest.raises(ConfigError, match="start has 3 rows, expected 1 or 4"):
        Analytic(rows, gradient, n_agents=4)


def test_a_run_may_diverge_without_a_warning() -> None:
    problem = Analytic(np.array([[1e308], [np.inf]]), lambda x, _k: -x * 10 - x * 0 * np.inf)
    agents = problem.start(CPU)
    trained = torch.empty_like(agents.parameters)
    problem.adapt(agents, 1, 1.0, trained)
    assert not torch.isfinite(trained).any()


def test_agents_without_local_arrays_do_not_share_them() -> None:
    first, second = (Agents(torch.ones(1, 1), torch.ones(1, 0)) for _ in range(2))
    first.local["count"] = torch.ones(1)
    assert second.local == {}
