"""pytorch_digits: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorch_digits.task import Net, load_data, load_test_data
from pytorch_digits.task import test as test_fn
from pytorch_digits.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    net = Net(context.run_config["batch-norm"])
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition = context.node_config["partition-id"]
    seed = context.run_config["seed"]
    data = load_data(partition, context.node_config["num-partitions"], seed)
    config = msg.content["config"]
    order = 1000 * config["server-round"] + partition
    loss = train_fn(net, data, context.run_config["local-epochs"], config["lr"], order)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    arrays = ArrayRecord(net.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net = Net(context.run_config["batch-norm"])
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    data = load_test_data(context.run_config["seed"])
    loss, accuracy = test_fn(net, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
