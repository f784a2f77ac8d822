"""pytorch_personal: the client, which keeps its head in the context's state."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorch_personal.task import Net, load_data, new_model
from pytorch_personal.task import test as test_fn
from pytorch_personal.task import train as train_fn

app = ClientApp()


def _model(msg: Message, context: Context) -> Net:
    net = new_model(context.run_config["seed"])
    net.body.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    if "head" in context.state:
        net.head.load_state_dict(context.state["head"].to_torch_state_dict())
    return net


@app.train()
def train(msg: Message, context: Context) -> Message:
    net = _model(msg, context)
    partition, seed = context.node_config["partition-id"], context.run_config["seed"]
    x, y = load_data(partition, seed, test=False)
    config = msg.content["config"]
    lr = config["lr"] * config["lr-decay"] ** (config["server-round"] - 1)
    loss = train_fn(net, x, y, lr, 1000 * config["server-round"] + partition)
    context.state["head"] = ArrayRecord(net.head.state_dict())
    metrics = MetricRecord({"train_loss": loss, "lr": lr, "num-examples": len(x)})
    arrays = ArrayRecord(net.body.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net = _model(msg, context)
    partition, seed = context.node_config["partition-id"], context.run_config["seed"]
    x, y = load_data(partition, seed, test=True)
    metrics = MetricRecord({"accuracy": test_fn(net, x, y), "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
