"""xgboost_cancer: the client, which adds one tree a round."""

import xgboost as xgb
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from xgboost_cancer.task import PARAMS, accuracy, from_array, load_data, load_test_data, to_array

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    node, seed = context.node_config, context.run_config["seed"]
    data = load_data(node["partition-id"], node["num-partitions"], seed)
    (array,) = msg.content["arrays"].to_numpy_ndarrays()
    if msg.content["config"]["server-round"] == 1:
        new = xgb.train(PARAMS, data, num_boost_round=1)
    else:
        booster = from_array(array)
        booster.update(data, booster.num_boosted_rounds())
        new = booster[booster.num_boosted_rounds() - 1 : booster.num_boosted_rounds()]
    metrics = MetricRecord({"num-examples": int(data.num_row())})
    arrays = ArrayRecord([to_array(new)])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    (array,) = msg.content["arrays"].to_numpy_ndarrays()
    data = load_test_data(context.run_config["seed"])
    right = accuracy(from_array(array), data)
    metrics = MetricRecord({"accuracy": right, "num-examples": int(data.num_row())})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
