"""Nobody averages here: the strategy only carries payloads along the graph's edges."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dhb_numpy.task import initial_arrays
from flower_dhb import ServerlessStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train over the graph of the run config."""
    config = context.run_config
    strategy = ServerlessStrategy(str(config["topology"]), on_round=report)
    result = strategy.start(grid, initial_arrays(), num_rounds=int(config["rounds"]))
    result.require_all()


def report(record) -> None:
    """Print what the agents' own models are worth, the worst one among them."""
    found = record.evaluate_summary.get("accuracy")
    if found is not None:
        print(f"round {record.round}: accuracy {found.mean:.3f}, worst {found.worst:.3f}")
