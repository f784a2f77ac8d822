"""transformers_lora: the server."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from transformers_lora.task import get_params, load_test_data, new_model, set_params, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = new_model(config["seed"])

    def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_params(model, arrays.to_torch_state_dict())
        loss, accuracy = test(model, load_test_data(config["seed"]))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_params(model)),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    set_params(model, result.arrays.to_torch_state_dict())
    model.save_pretrained("final_adapter")
