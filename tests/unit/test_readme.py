"""README.md and docs/run-config.md: their Python runs, and what they name exists."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, RecordDict
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import ConfigError, RunConfig, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.cli import main
from flower_dhb.runs.config import AUTO
from tests.reference import sections

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_CONFIG = (ROOT / "docs" / "run-config.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONFIG = PROJECT["tool"]["flwr"]["app"]["config"]


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


PYTHON = blocks("python")


def the_block_with(text):
    (block,) = [block for block in PYTHON if text in block]
    return block


# --- Python blocks ------------------------------------------------------------------------


def test_every_python_block_is_run_by_one_of_these_tests():
    assert len(PYTHON) == 5
    for text in (
        "good_enough",
        "quickstart",
        "collect_models=True",
        "def local_step",
        "from_edges",
    ):
        assert the_block_with(text)


@pytest.mark.parametrize("text", ["def local_step", "from_edges"])
def test_blocks_without_flower_run_in_a_fresh_python(text, tmp_path):
    program = the_block_with(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if text == "from_edges":
        assert "('hub', 'north', 'south')" in done.stdout
        assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    else:
        shape, error, distance = done.stdout.splitlines()
        assert shape == "(201, 16, 3)"
        assert float(error) < 1e-3  # "the average has arrived"
        assert 0.0 < float(distance) < 1.0


def executed(source, **names):
    """Names that a program leaves."""
    exec(source, names)  # noqa: S102
    return names


def train_on_a_grid(client_app, strategy, n):
    """Run an app for some rounds; its result and where it began."""
    initial, start = start_arrays(6)
    result = strategy.start(LocalGrid(client_app, n), initial, num_rounds=5)
    assert [record.missing for record in result.history] == [[]] * 5
    assert result.history[-1].consensus_distance > 0
    return result, start


def test_decentralize_wraps_the_app_as_shown(monkeypatch):
    package = types.ModuleType("quickstart")
    module = types.ModuleType("quickstart.client_app")
    module.app = numpy_app(8, 6)
    monkeypatch.setitem(sys.modules, "quickstart", package)
    monkeypatch.setitem(sys.modules, "quickstart.client_app", module)
    names = executed(the_block_with("quickstart"))
    train_on_a_grid(names["app"], ServerlessStrategy(Topology.ring(8)), 8)


def test_the_strategy_with_all_its_arguments_gives_what_it_says():
    strategy = executed(the_block_with("collect_models=True"))["strategy"]
    app = numpy_app(16, 6, mods=[consensus_mod])
    result, start = train_on_a_grid(app, strategy, 16)
    assert sorted(result.models) == list(range(16))
    assert isinstance(result.arrays, ArrayRecord)
    assert abs(flat(result.arrays) - start).max() > 0


def before_and_after():
    """The whole app, before and after: `(client_app, server_app)` each."""
    client, server = blocks("diff")

    def version(diff, mark):
        lines = [line for line in diff.splitlines() if not line.startswith(mark)]
        return "\n".join(line[1:] for line in lines)

    return [(version(client, mark), version(server, mark)) for mark in "+-"]


def test_two_lines_of_the_app_change_and_their_imports():
    changed = [line for d in blocks("diff") for line in d.splitlines() if line[:1] in ("+", "-")]
    imports = [line for line in changed if line[1:].startswith("from ")]
    assert [line for line in changed if line not in imports] == [
        "-app = ClientApp()",
        "+app = ClientApp(mods=[consensus_mod])",
        "-    strategy = FedAvg()",
        "+    strategy = ServerlessStrategy(Topology.ring(8))",
    ]
    assert len(imports) == 3


@pytest.mark.parametrize("version", [0, 1], ids=["before", "after"])
def test_the_whole_app_runs_and_saves_a_model_before_and_after(version, tmp_path, monkeypatch):
    client, server = (executed(source) for source in before_and_after()[version])
    monkeypatch.chdir(tmp_path)
    nodes = [{"partition-id": i, "num-partitions": 8} for i in range(8)]
    grid = LocalGrid(client["app"], 8, node_config=lambda i: nodes[i])
    context = Context(1, 1, {}, RecordDict(), {})
    server["app"](grid, context)
    w = np.load(tmp_path / "model.npy")
    whole = [client["load"](types.SimpleNamespace(node_config=node)) for node in nodes]
    right = [(x @ w > 0) == y for x, y in whole]
    assert np.mean(np.concatenate(right)) > 0.97  # 0.63 are of one class


def test_the_early_stop_ends_the_app_with_its_model(tmp_path, monkeypatch):
    """The app as shown, with the strategy as shown."""
    client, server = before_and_after()[1]
    strategy = executed(the_block_with("good_enough"))["strategy"]
    server = server.replace("ServerlessStrategy(Topology.ring(8))", "shown")
    client, server = executed(client), executed(server, shown=strategy)
    monkeypatch.chdir(tmp_path)
    nodes = [{"partition-id": i, "num-partitions": 8} for i in range(8)]
    grid = LocalGrid(client["app"], 8, node_config=lambda i: nodes[i])
    server["app"](grid, Context(1, 1, {}, RecordDict(), {}))
    history = strategy.result.history
    assert 1 < len(history) < 20
    worst = [record.evaluate_summary["accuracy"].worst for record in history]
    assert worst[-1] >= 0.95 > max(worst[:-1])
    assert np.load(tmp_path / "model.npy").shape == (30,)


def test_the_picture_of_the_runtimes_is_what_its_script_draws():
    images = ROOT / "docs" / "images"
    script = executed((images / "runtimes.py").read_text(encoding="utf-8"), __name__="runtimes")
    for scheme in ("light", "dark"):
        name = f"runtimes-{scheme}.svg"
        assert (images / name).read_text(encoding="utf-8") == script["picture"](scheme)
        assert f"docs/images/{name}" in README


def test_every_extra_is_explained():
    extras = {row[0].strip("`") for row in table_rows("## Extras")}
    assert extras == PROJECT["project"]["optional-dependencies"].keys() - {"families"}


# --- the table of the run config ----------------------------------------------------------


def table_rows(title):
    """Cells of the table below a heading."""
    section = RUN_CONFIG.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def documented_config():
    """`{key: (default, text of the allowed values)}`"""
    shared = next(s for s in sections() if s.title == "Run config")
    rows = [(f"`{key.name}`", key.default, key.allowed) for key in shared.keys]
    return {
        key.strip("`"): (tomllib.loads(f"x = {default.strip('`')}")["x"], allowed)
        for key, default, allowed in [*rows, *table_rows("## Run config")]
    }


def test_the_table_equals_the_apps_run_config():
    documented = {key: default for key, (default, _) in documented_config().items()}
    assert documented == CONFIG
    assert {k: type(v) for k, v in documented.items()} == {k: type(v) for k, v in CONFIG.items()}


def test_the_table_equals_the_defaults_of_the_library():
    documented, default = vars(RunConfig.of(CONFIG)).copy(), vars(RunConfig.of({})).copy()
    ours, theirs = documented.pop("topology"), default.pop("topology")
    assert documented == default
    assert ours.name == theirs.name
    assert (ours.mixing_matrix == theirs.mixing_matrix).all()


def test_the_table_equals_the_defaults_in_the_apps_own_code():
    source = "".join(
        (ROOT / path).read_text(encoding="utf-8")
        for path in ("clients/settings.py", "strategies/server_app.py")
    )
    found = re.findall(r'get_\w+\(\s*\w+, "([a-z-]+)", ("[^"]*"|[\d.]+|True|False)', source)
    assert {key for key, _ in found} >= {"learning-rate", "batch-size", "split", "runs-dir"}
    for key, default in found:
        assert CONFIG[key] == tomllib.loads(f"x = {default.lower()}")["x"], key


OWN = "package.module:Rule"
NAMES = ["topology", "weights", "algorithm", "form", "order", "payload", "workload"]
NAMES += ["normalization"]


def known_names(key):
    """The names that the code takes for a key."""
    from clients.networks import NORMALIZATIONS
    from clients.settings import WORKLOADS
    from flower_dhb.algorithms import method, relayed_methods
    from flower_dhb.topology.forms import FORMS, TURNS
    from flower_dhb.topology.weights import WEIGHTS

    directed = ("directed-one-peer", "one-peer-exponential")  # which no run config can name
    turns = {t for k, texts in TURNS.items() if k not in directed for t in texts.split(" or ")}
    return {
        "topology": {form.text for form in FORMS.values()} | turns,
        "weights": set(WEIGHTS),
        "algorithm": {name for name in relayed_methods() if _ours(method(name))} | {OWN},
        "form": {"displacement", "buffer", "tracking"},
        "order": {"adapt-then-combine", "combine-then-adapt"},
        "payload": {AUTO, "folded", "separate"},
        "workload": set(WORKLOADS),
        "normalization": set(NORMALIZATIONS),
    }[key]


def _ours(rule):
    """Other tests register rules of their own."""
    return type(rule).__module__.startswith("flower_dhb.")


@pytest.mark.parametrize("key", NAMES)
def test_the_table_names_what_the_code_takes(key):
    _, allowed = documented_config()[key]
    assert set(re.findall(r"`([^`]+)`", allowed)) == known_names(key)


@pytest.mark.parametrize("key", ["form", "order", "payload"])
def test_all_documented_names_of_the_rule_are_taken_and_no_others(key):
    for name in known_names(key):
        RunConfig.of({key: name})
    with pytest.raises(ConfigError):
        RunConfig.of({key: "another"})


# --- names of files and commands ------------------------------------------------------------


def test_every_make_target_exists_with_its_variables():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\bmake ([a-z]+)((?: [A-Z]+=\S+)*)", "\n".join([*blocks("sh"), *code()]))
    assert {target for target, _ in named} >= {"demo", "test", "check"}
    for target, variables in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for variable in re.findall(r"([A-Z]+)=", variables):
            assert re.search(rf"^{variable} \?= ", makefile, re.MULTILINE), variable


def commands(*pages):
    """Command lines of pages' blocks, as words, without their comments."""
    lines = "\n".join(b for page in pages for b in blocks("sh", page))
    return [shlex.split(line, comments=True) for line in lines.splitlines() if line.strip()]


def test_every_command_is_one_and_takes_its_words(capsys):
    report = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    found = [
        words[1:] for words in commands(README, RUN_CONFIG, report) if words[0] == "flower-dhb"
    ]
    assert {words[0] for words in found} >= {"run", "report", "dashboard"}
    for name, *words in found:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"flower_dhb.cli.{name}").configure(parser)
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"flower-dhb {name} {words}: {capsys.readouterr().err}")


def test_every_installation_names_extras_that_exist():
    found = [words[-1] for words in commands(README, RUN_CONFIG) if words[:2] == ["pip", "install"]]
    named = {each for word in found for each in re.findall(r"[\w-]+", word.partition("[")[2])}
    assert named >= {"peer", "app", "report"}
    assert named <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_report_of_a_run_is_made_as_shown(tmp_path, monkeypatch):
    (words,) = [words for words in commands(README) if words[1] == "report"]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / words[2]
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text('{"round": 1, "accuracy_mean": 0.5}\n')
    assert main(words[1:]) == 0
    assert (tmp_path / "report.html").stat().st_size > 500_000


def code():
    """All inline code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))


def paths():
    """Files of this repository that README names: links, pictures, commands, inline code."""
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    words = "\n".join([*blocks("sh"), *code()])
    folders = r"(?<![\w/.-])(?:strategies|clients|docs|tests|benchmarks|flower_dhb)/[\w./-]*"
    return sorted({t for t in targets if "://" not in t} | set(re.findall(folders, words)))


def test_readme_names_files():
    assert {"LICENSE", "docs/algorithm.md", "strategies/cdmsgd.toml"} <= set(paths())


@pytest.mark.parametrize("path", paths())
def test_every_file_that_it_names_exists(path):
    assert (ROOT / path).exists()


def test_all_presets_are_listed_and_set_known_keys_only():
    listed = {row[0].strip("`") for row in table_rows("## Presets")}
    presets = sorted((ROOT / "strategies").glob("*.toml"))
    assert {f"strategies/{path.name}" for path in presets} <= listed
    for path in presets:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        assert values.keys() <= CONFIG.keys(), path
        RunConfig.of(CONFIG | values)


@pytest.mark.parametrize(
    "command", [c for t in (README, RUN_CONFIG) for b in blocks("sh", t) for c in b.splitlines()]
)
def test_run_config_keys_in_commands_exist(command):
    from flwr.common.config import parse_config_args

    for quoted in re.findall(r"(?:-c|--run-config) '([^']+)'", command):
        values = parse_config_args([quoted])
        assert values
        assert values.keys() <= CONFIG.keys()
        RunConfig.of(CONFIG | values)


@pytest.mark.parametrize("picture", ["convergence.png", "topology.png"])
def test_pictures_are_small(picture):
    data = (ROOT / "docs" / "images" / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 10_000 < len(data) < 200_000
