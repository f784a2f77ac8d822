"""numpy_cancer: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from numpy_cancer.task import load_data, load_test_data
from numpy_cancer.task import test as test_fn
from numpy_cancer.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    (weights,) = msg.content["arrays"].to_numpy_ndarrays()
    run, node = context.run_config, context.node_config
    x, y = load_data(node["partition-id"], node["num-partitions"], run["seed"])
    order = 1000 * msg.content["config"]["server-round"] + node["partition-id"]
    weights = train_fn(weights, x, y, run["local-epochs"], run["learning-rate"], order)
    loss, _ = test_fn(weights, x, y)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
    arrays = ArrayRecord([weights])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    (weights,) = msg.content["arrays"].to_numpy_ndarrays()
    x, y = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(weights, x, y)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
