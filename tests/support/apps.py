"""Apps as users write them, which know nothing of this package, and quadratics to train."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray


def quadratic(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curvatures `(n, d, d)` and centers `(n, d)` of n different quadratics."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n, d, d))
    return np.einsum("nij,nkj->nik", roots, roots) / d, rng.normal(size=(n, d))


def quadratic_step(
    x: NDArray[np.float64], curvature: NDArray[np.float64], center: NDArray[np.float64], rate: float
) -> NDArray[np.float64]:
    return x - rate * np.einsum("...ij,...j->...i", curvature, x - center)


def numpy_app(n: int, d: int, *, rate: float = 0.05, mods: list[object] | None = None) -> ClientApp:
    """A plain NumPy app: one gradient step on the agent's own quadratic, arrays split in two."""
    curvature, center = quadratic(n, d)
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        head, tail = message.content["arrays"].to_numpy_ndarrays()
        x = np.concatenate([head.ravel(), tail.ravel()])
        z = quadratic_step(x, curvature[i], center[i], rate)
        loss = 0.5 * float((x - center[i]) @ curvature[i] @ (x - center[i]))
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord([z[:2].reshape(head.shape), z[2:]]),
                    "metrics": MetricRecord({"train_loss": loss, "num-examples": i + 1}),
                }
            ),
            reply_to=message,
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        head, tail = message.content["arrays"].to_numpy_ndarrays()
        norm = float(np.sum(head**2) + np.sum(tail**2))
        metrics = MetricRecord({"norm": norm, "vertex": float(i), "num-examples": i + 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start_arrays(d: int) -> tuple[ArrayRecord, NDArray[np.float64]]:
    x = np.random.default_rng(5).normal(size=d)
    return ArrayRecord([x[:2].reshape(1, 2), x[2:]]), x


def flat(record: ArrayRecord) -> NDArray[np.float64]:
    return np.concatenate([array.ravel() for array in record.to_numpy_ndarrays()])
