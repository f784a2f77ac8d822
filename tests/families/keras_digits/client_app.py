"""keras_digits: the client."""

import keras
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from keras_digits.task import load_data, load_test_data, new_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    run, node = context.run_config, context.node_config
    model = new_model(0, run["learning-rate"])
    model.set_weights(msg.content["arrays"].to_numpy_ndarrays())
    x, y = load_data(node["partition-id"], node["num-partitions"], run["seed"])
    keras.utils.set_random_seed(1000 * msg.content["config"]["server-round"] + node["partition-id"])
    history = model.fit(x, y, epochs=run["local-epochs"], batch_size=16, verbose=0)
    loss = history.history["loss"][-1]
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
    arrays = ArrayRecord(model.get_weights())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model = new_model(0, 0.0)
    model.set_weights(msg.content["arrays"].to_numpy_ndarrays())
    x, y = load_test_data(context.run_config["seed"])
    loss, accuracy = model.evaluate(x, y, batch_size=len(x), verbose=0)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
