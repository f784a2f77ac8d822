"""lightning_digits: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lightning_digits.task import LitNet, load_data, load_test_data
from lightning_digits.task import test as test_fn
from lightning_digits.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = LitNet(context.run_config["learning-rate"])
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    run, node = context.run_config, context.node_config
    data = load_data(node["partition-id"], node["num-partitions"], run["seed"])
    order = 1000 * msg.content["config"]["server-round"] + node["partition-id"]
    loss = train_fn(model, data, run["max-epochs"], order)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model = LitNet()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    data = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(model, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
