"""transformers_lora: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from transformers_lora.task import (
    cosine_annealing,
    get_params,
    load_data,
    load_test_data,
    new_model,
    set_params,
)
from transformers_lora.task import test as test_fn
from transformers_lora.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    run, node = context.run_config, context.node_config
    model = new_model(run["seed"])
    set_params(model, msg.content["arrays"].to_torch_state_dict())
    data = load_data(node["partition-id"], node["num-partitions"], run["seed"])
    config = msg.content["config"]
    lr = cosine_annealing(
        config["server-round"], run["num-server-rounds"], run["lr-max"], run["lr-min"]
    )
    order = 1000 * config["server-round"] + node["partition-id"]
    loss = train_fn(model, data, run["local-epochs"], lr, order)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    arrays = ArrayRecord(get_params(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model = new_model(context.run_config["seed"])
    set_params(model, msg.content["arrays"].to_torch_state_dict())
    data = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(model, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
