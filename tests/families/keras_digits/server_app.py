"""keras_digits: the server."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from keras_digits.task import load_test_data, new_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = new_model(config["seed"], config["learning-rate"])

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.set_weights(arrays.to_numpy_ndarrays())
        x, y = load_test_data(config["seed"])
        loss, accuracy = model.evaluate(x, y, batch_size=len(x), verbose=0)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.get_weights()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    model.set_weights(result.arrays.to_numpy_ndarrays())
    model.save_weights("final_model.weights.h5")
