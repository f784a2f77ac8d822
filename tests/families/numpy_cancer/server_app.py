"""numpy_cancer: the server."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from numpy_cancer.task import load_test_data, new_model, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        (weights,) = arrays.to_numpy_ndarrays()
        loss, accuracy = test(weights, *load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([new_model()]),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    (weights,) = result.arrays.to_numpy_ndarrays()
    np.savez("final_model.npz", weights=weights)
