"""One agent: an `SGDClassifier` that goes on from the neighbors' parameters."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dhb_sklearn.task import classifier, load, parameters, test_set
from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """One pass over the agent's own images."""
    x, labels = load(int(context.node_config["partition-id"]))
    model = classifier(message.content["arrays"], float(context.run_config["learning-rate"]))
    model.partial_fit(x, labels)
    content = {
        "arrays": ArrayRecord(parameters(model)),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the agent's own model by images of all digits."""
    x, labels = test_set()
    model = classifier(message.content["arrays"], 1.0)
    metrics = MetricRecord({"accuracy": float(model.score(x, labels)), "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
