"""sklearn_digits: the server."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sklearn_digits.task import get_params, load_test_data, new_model, set_params, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = new_model(config["local-epochs"])

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_params(model, arrays.to_numpy_ndarrays())
        loss, accuracy = test(model, *load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_params(model)),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    set_params(model, result.arrays.to_numpy_ndarrays())
    np.savez("final_model.npz", coef=model.coef_, intercept=model.intercept_)
