"""From a Flower log to what its user wants to see. The lines are as Flower and Ray print them."""

import pytest

from flower_dhb.cli.run_log import Failure, Line, Round, RunLog, without_colors

INFO = "\x1b[92mINFO \x1b[0m:      "
WARNING = "\x1b[93mWARNING \x1b[0m:   "
ERROR = "\x1b[91mERROR \x1b[0m:     "
ACTOR = "\x1b[36m(ClientAppActor pid=7647)\x1b[0m "
REPEATED = (
    "\x1b[32m [repeated 10x across cluster] (Ray deduplicates logs by default. Set "
    "RAY_DEDUP_LOGS=0 to disable log deduplication, or see https://docs.ray.io for more.)\x1b[0m"
)
TRACEBACK = """\
Traceback (most recent call last):
  File "/lib/flwr/serverapp/server_app.py", line 176, in __call__
    self._main(grid, context)
  File "/tmp/home/apps/tests.foreign.1.0.0.29582e47/foreign/server_app.py", line 27, in main
    result.arrays["weight"]
    ~~~~~~~~~~~~~^^^^^^^^^^
  File "/lib/flwr/app/message/typeddict.py", line 57, in __getitem__
    return self.__dict__["_data"][item]

KeyError: 'weight'
"""


def read(text):
    """All that a log says, and the log itself."""
    log = RunLog()
    events = [event for line in text.splitlines(keepends=True) for event in log.feed(line)]
    return [*events, *log.end()], log


def shown(text):
    return [event.text for event in read(text)[0]]


def test_what_flower_and_ray_say_of_themselves_is_left_out():
    text = f"""\
Using SuperLink: local-simulation (127.0.0.1:60021)
{INFO}Starting logstream for run_id `3077990083563077752`
{INFO}Start `flwr-serverapp` process
{INFO}Starting Flower Simulation
{WARNING}Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.
{INFO}Federation `@none/default` (4 simulated SuperNodes)
{INFO}To change federation size, use the following command:
{INFO}\tflwr federation simulation-config @none/default <superlink> --num-supernodes <N>
Successfully installed foreign to /tmp/home/apps/tests.foreign.1.0.0.29582e47.
{INFO}Starting ServerlessStrategy over 3 rounds:
{INFO}\t├──> Topology: Topology(ring:4: 4 agents, 4 edges, spectral gap 0.6667)
{INFO}\t└──> Relays only: no averaging, no global model
{ACTOR}{WARNING}Manually terminating ClientAppActor
{INFO}

"""
    assert read(text) == ([], read("")[1])


def test_what_the_app_prints_and_logs_is_kept():
    text = f"""\
the app begins
  indented: 1
{INFO}this run leaves its results in /runs/1
{ACTOR}client 1 trains
{ACTOR}client 3 trains{REPEATED}
{ACTOR}{INFO}loaded 5 files
{WARNING}round 2, agent 1: no answer to 'train' within 4 s
"""
    events, _ = read(text)
    assert [event.text for event in events] == [
        "the app begins",
        "  indented: 1",
        "this run leaves its results in /runs/1",
        "agents: client 1 trains",
        "agents: client 3 trains (10 more like it)",
        "agents: loaded 5 files",
        "round 2, agent 1: no answer to 'train' within 4 s",
    ]
    assert [event.kind for event in events] == ["said"] * 6 + ["trouble"]


def test_rounds_of_ours_are_told_in_words():
    (event,), _ = read(f"{INFO}round 1/3 | accuracy 0.5 (worst 0.4) | 0.13 s\n")
    assert event == Line(text="round 1/3 | accuracy 0.5 (worst 0.4) | 0.13 s", kind="round")


def test_rounds_of_flowers_strategies_come_with_their_metrics_when_they_are_over():
    text = f"""\
{INFO}Starting FedAvg strategy:
{INFO}\t├── Number of rounds: 2
{INFO}[ROUND 1/2]
{INFO}configure_train: Sampled 4 nodes (out of 4)
{INFO}aggregate_train: Received 4 results and 0 failures
{INFO}\t└──> Aggregated MetricRecord: {{'train_loss': nan}}
{INFO}\t└──> Aggregated MetricRecord: {{'eval_loss': 0.75, 'eval_acc': 0.5, 'per': [1, 2]}}
between
{INFO}[ROUND 2/2]
{INFO}\t└──> Aggregated MetricRecord: {{'eval_acc': 0.75}}
{INFO}Strategy execution finished in 12.45s
{INFO}Final results:
{INFO}\tGlobal Arrays:
{INFO}\t{{ 1: {{'train_loss': '1.5000e+00'}},
the app ends
"""
    assert read(text)[0] == [
        Line(text="between"),
        Round(number=1, total=2, metrics={"eval_loss": 0.75, "eval_acc": 0.5}),
        Round(number=2, total=2, metrics={"eval_acc": 0.75}),
        Line(text="the app ends"),
    ]


def test_a_round_that_is_open_at_the_end_is_told():
    assert read(f"{INFO}[ROUND 7]\n")[0] == [Round(number=7, total=0)]


def test_the_servers_traceback_becomes_one_error_with_its_place():
    text = f"""\
{ERROR}Simulation raised an exception
{TRACEBACK}{ERROR}Exit Code: 700

An unhandled exception occurred when running the simulation.

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/700.html>
"""
    events, log = read(text)
    assert events == []
    assert log.failure == Failure(
        error="KeyError: 'weight'", where="foreign/server_app.py, line 27, in main"
    )
    assert str(log.failure) == "KeyError: 'weight' (foreign/server_app.py, line 27, in main)"


def test_the_cause_is_told_and_not_what_flower_wraps_around_it():
    text = f"""\
{ERROR}An exception occurred !! no memory
{ERROR}Traceback (most recent call last):
  File "/lib/x.py", line 1, in f
MemoryError: no memory

{TRACEBACK.replace("KeyError: 'weight'", "MemoryError: no memory")}
The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/lib/x.py", line 2, in g
RuntimeError: An error was encountered. Ending simulation.
"""
    _, log = read(text)
    assert log.failure.error == "MemoryError: no memory"


def test_tracebacks_of_agents_are_one_line_each_and_do_not_mix():
    one, two = ACTOR, ACTOR.replace("7647", "9")
    frame = '  File "/tmp/home/apps/a.b.1.0.0.29582e47/b/client_app.py", line 19, in train'
    text = f"""\
{one}{ERROR}agent 1, round 1: ValueError: no data
{one}{ERROR}Traceback (most recent call last):
{one}{frame}
{two}Traceback (most recent call last):{REPEATED}
{two}{frame}{REPEATED}
{one}    raise ValueError("no data")
{one}ValueError: no data
{two}KeyError: 3{REPEATED}
{one}
"""
    events, log = read(text)
    where = "(b/client_app.py, line 19, in train)"
    assert events == [
        Line(text=f"agents: ValueError: no data {where}", kind="trouble"),
        Line(text=f"agents: KeyError: 3 {where}", kind="trouble"),
    ]
    assert log.failure is None


def test_what_comes_again_and_again_is_shown_three_times_and_counted():
    lines = [f"{WARNING}round {k}, agent {k}: ValueError: no data for {k}\n" for k in range(10)]
    text = shown("".join(lines) + f"{WARNING}something else\n")
    assert text == [
        *(f"round {k}, agent {k}: ValueError: no data for {k}" for k in range(3)),
        "something else",
        "7 more lines like those above: --verbose",
    ]


@pytest.mark.parametrize("line", ["a b \x1b[1mbold\x1b[0m \n", "a b bold\n"])
def test_lines_lose_their_colors(line):
    assert without_colors(line) == "a b bold"
