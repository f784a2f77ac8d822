"""jax_digits: the server."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from jax_digits.task import get_params, load_test_data, new_model, set_params, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        tree = set_params(arrays.to_numpy_ndarrays())
        loss, accuracy = test(tree, *load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_params(new_model(config["seed"]))),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
