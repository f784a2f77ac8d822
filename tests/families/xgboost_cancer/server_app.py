"""xgboost_cancer: the server."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedXgbBagging

from xgboost_cancer.task import from_array

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedXgbBagging(fraction_train=1.0, fraction_evaluate=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.frombuffer(b"", dtype=np.uint8)]),
        num_rounds=context.run_config["num-server-rounds"],
    )
    (array,) = result.arrays.to_numpy_ndarrays()
    from_array(array).save_model("final_model.json")
