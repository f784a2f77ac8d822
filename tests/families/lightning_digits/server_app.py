"""lightning_digits: the server."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from lightning_digits.task import LitNet, load_test_data, new_model, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = LitNet()
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = test(model, load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(fraction_train=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model(config["seed"], 0.0).state_dict()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
