"""pytorch_digits: the server."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from pytorch_digits.task import Net, load_test_data, new_model, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    net = new_model(config["seed"], config["batch-norm"])

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = Net(config["batch-norm"])
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = test(model, load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(fraction_evaluate=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
