"""sklearn_digits: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sklearn_digits.task import get_params, load_data, load_test_data, new_model, set_params
from sklearn_digits.task import test as test_fn
from sklearn_digits.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = new_model(context.run_config["local-epochs"])
    set_params(model, msg.content["arrays"].to_numpy_ndarrays())
    node = context.node_config
    x, y = load_data(node["partition-id"], node["num-partitions"], context.run_config["seed"])
    loss = train_fn(model, x, y)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
    arrays = ArrayRecord(get_params(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model = new_model(context.run_config["local-epochs"])
    set_params(model, msg.content["arrays"].to_numpy_ndarrays())
    x, y = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(model, x, y)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
