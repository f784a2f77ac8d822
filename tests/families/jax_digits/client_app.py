"""jax_digits: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from jax_digits.task import get_params, load_data, load_test_data, set_params
from jax_digits.task import test as test_fn
from jax_digits.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    tree = set_params(msg.content["arrays"].to_numpy_ndarrays())
    run, node = context.run_config, context.node_config
    x, y = load_data(node["partition-id"], node["num-partitions"], run["seed"])
    tree, loss = train_fn(tree, x, y, run["local-steps"], run["learning-rate"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
    arrays = ArrayRecord(get_params(tree))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    tree = set_params(msg.content["arrays"].to_numpy_ndarrays())
    x, y = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(tree, x, y)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
