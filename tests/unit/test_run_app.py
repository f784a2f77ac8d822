"""A Flower App's folder and its settings: what is refused before anything starts."""

import sys
from pathlib import Path

import pytest
from support.flower_app import write_app

from flower_dhb.cli.run_app import AppFolder
from flower_dhb.cli.values import read_settings
from flower_dhb.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return write_app(tmp_path / "app")


def server(folder, source):
    (folder / "demo" / "server_app.py").write_text(source)


def without(folder, *lines):
    text = (folder / "pyproject.toml").read_text()
    for line in lines:
        assert line in text
        text = text.replace(line, "")
    (folder / "pyproject.toml").write_text(text)


def settings(folder, agents=None, **overrides):
    named = {key.replace("_", "-"): value for key, value in overrides.items()}
    return AppFolder.read(folder).settings(named, agents)


def refused(folder, message, agents=None, **overrides):
    with pytest.raises(ConfigError) as error:
        settings(folder, agents, **overrides)
    assert message in str(error.value)


# --- the folder ------------------------------------------------------------------------------


def test_the_root_app_is_read():
    app = AppFolder.read(ROOT)
    assert app.config["topology"] == "ring:16"
    n_agents, handed = app.settings({"topology": "torus:3x4"}, None)
    assert n_agents == 12
    assert handed["runs-dir"] == str(ROOT / "runs")


def test_a_rule_of_the_apps_own_is_found_in_its_folder(folder, monkeypatch):
    """And what is wrong with it is said before anything starts."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = (ROOT / "tests" / "support" / "peer_app" / "own_rules.py").read_text()
    (folder / "rules_of_demo.py").write_text(source)
    document = (folder / "pyproject.toml").read_text()
    named = document.replace("rounds = 10", 'rounds = 10\nalgorithm = "rules_of_demo:Warming"')
    (folder / "pyproject.toml").write_text(named)
    assert settings(folder)[0] == 5
    refused(folder, "warmup", algorithm="rules_of_demo:Warming:warmpu=2")
    refused(folder, "has no 'Cooling'", algorithm="rules_of_demo:Cooling")
    refused(folder, "no module 'no_rules'", algorithm="no_rules:Warming")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it has no pyproject.toml"),
        ("not toml", "pyproject.toml: Expected '=' after a key"),
        ("\xff", "pyproject.toml: 'utf-8' codec can't decode"),
        ("[project]\nname = 'x'\nversion = '1'\n", "lacks [\"'publisher' in [tool.flwr.app]\""),
        ("[project]\nname = 3\n[tool]\nflwr = 1\n", "'name' in [project]"),
    ],
)
def test_a_folder_that_is_no_flower_app_says_why(tmp_path, content, why):
    if content is not None:
        (tmp_path / "pyproject.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        AppFolder.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} is not a Flower App: ")
    assert why in str(error.value)


def test_an_absent_folder_and_a_file_are_told_apart(tmp_path):
    (tmp_path / "file").write_text("")
    for name, what in (("absent", "does not exist"), ("file", "is a file")):
        with pytest.raises(ConfigError, match=f"it {what}; give the app's folder"):
            AppFolder.read(tmp_path / name)


@pytest.mark.parametrize("line", ['publisher = "tests"', 'version = "1.0.0"'])
def test_what_flower_needs_is_named_if_it_is_missing(folder, line):
    without(folder, line)
    refused(folder, f"'{line.split()[0]}' in [")


def test_a_component_that_is_not_there_is_named(folder):
    (folder / "demo" / "client_app.py").unlink()
    refused(folder, "clientapp = 'demo.client_app:app', but there is no demo/client_app.py")
    without(folder, ":app")
    refused(folder, "serverapp = 'demo.server_app' must be MODULE:NAME")


def test_a_component_may_be_installed_elsewhere(folder):
    text = (folder / "pyproject.toml").read_text()
    text = text.replace("demo.server_app", "elsewhere.server_app")
    (folder / "pyproject.toml").write_text(text)
    assert settings(folder)[0] == 5


def test_a_package_may_be_a_component(folder):
    (folder / "demo" / "client_app.py").unlink()
    (folder / "demo" / "client_app").mkdir()
    (folder / "demo" / "client_app" / "__init__.py").write_text("app = None\n")
    assert settings(folder)[0] == 5


def test_a_syntax_error_is_told_with_its_line(folder):
    (folder / "demo" / "client_app.py").write_text("app = None\ndef train(:\n")
    refused(folder, "client_app.py, line 2: invalid syntax")


def test_a_run_config_that_flower_cannot_hand_down(folder):
    text = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(text + "list = [1, 2]\n")
    refused(folder, "[tool.flwr.app.config]: 'nested.list' must be a text, a number")


# --- settings --------------------------------------------------------------------------------


def test_settings_are_flat_and_later_ones_win(tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('rounds = 20\nname = "preset"\n[nested]\nkey = true\n')
    found = read_settings(["rounds=30 nested.key=5", str(preset), "name=\"a b\" rounds=40 x='y'"])
    assert found == {"rounds": 40, "nested.key": True, "name": "a b", "x": "y"}


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("rounds", "'rounds' is neither KEY=VALUE nor a .toml file"),
        ("rounds=5 and more", "'and more' is neither KEY=VALUE nor a .toml file"),
        ("rounds=five", "five is no TOML value; a text needs quotes: 'rounds=\"…\"'"),
        ("rounds=[1]", "'rounds' must be a text, a number or a boolean, got [1]"),
        ("absent.toml", "No such file or directory"),
        ("/dev/null/x.toml", "Not a directory"),
    ],
)
def test_a_bad_setting_says_what_is_expected(setting, why):
    with pytest.raises(ConfigError) as error:
        read_settings([setting])
    assert str(error.value) == f"--run-config {setting!r}: {why}"


def test_a_key_that_the_app_lacks_is_refused_with_the_nearest(folder):
    refused(
        folder,
        "unknown run-config key 'learnig-rate', did you mean 'learning-rate'",
        learnig_rate=1,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rounds": 0}, "run config: 'rounds' must be at least 1, got 0"),
        ({"rounds": "5"}, "'rounds' must be an integer, got '5'"),
        ({"topology": "rign:5"}, "unknown topology 'rign', did you mean 'ring'?"),
        ({"topology": "ring:2"}, "ring"),
    ],
)
def test_an_app_that_reads_our_run_config_has_it_checked(folder, overrides, message):
    refused(folder, message, **overrides)


def test_an_app_with_keys_of_the_same_names_is_left_alone(folder):
    """`rounds = 0` and `topology` may mean anything there."""
    server(folder, "app = None\n")
    values = {"rounds": 0, "topology": "resnet", "runs-dir": "s3://bucket", "data-dir": "data"}
    n_agents, handed = AppFolder.read(folder).settings(values, 3)
    assert (n_agents, handed) == (3, values)


def test_folders_are_the_apps_and_absolute_ones_stay(folder, tmp_path):
    _, handed = settings(folder, runs_dir="out", data_dir=str(tmp_path))
    assert handed == {"runs-dir": str(folder / "out"), "data-dir": str(tmp_path)}


def test_an_app_with_our_run_folder_alone_has_its_folders_too(folder):
    server(folder, "import flower_dhb\nflower_dhb.RunFolder('runs', 'x', None, {})\napp = None\n")
    assert settings(folder)[1]["runs-dir"] == str(folder / "runs")


def test_a_graph_file_is_the_apps_too(folder):
    (folder / "roads.edges").write_text("0 1\n1 2\n2 3\n")
    n_agents, handed = settings(folder, topology="roads.edges")
    assert (n_agents, handed["topology"]) == (4, str(folder / "roads.edges"))


def test_results_that_could_not_be_written_are_refused(folder, monkeypatch):
    (folder / "runs").write_text("")
    refused(
        folder,
        f"runs-dir = '{folder / 'runs' / 'x'}': {folder / 'runs'} is a file",
        runs_dir="runs/x",
    )
    (folder / "runs").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)
    refused(folder, f"runs-dir = '{folder / 'runs'}': {folder} cannot be written")


# --- the number of agents --------------------------------------------------------------------


@pytest.mark.parametrize("agents", [0, -2])
def test_a_run_needs_an_agent(folder, agents):
    refused(folder, f"--agents must be at least 1, got {agents}", agents)


def test_a_number_that_contradicts_the_run_config_is_refused(folder):
    assert settings(folder, 5)[0] == 5
    refused(folder, "--agents 4, but the topology 'ring:5' has 5 vertices", 4)


@pytest.mark.parametrize(
    ("source", "n_agents"),
    [
        ("strategy = ServerlessStrategy(Topology.ring(8))", 8),
        ("t = flower_dhb.Topology.torus(3, columns=4, weights=lazy('metropolis'))", 12),
        ("t = Topology.parse('star:6')\nu = Topology.ring(n=6)", 6),
        ("s = ServerlessStrategy('path:7', 'dsgd')", 7),
        ("s = strategy.ServerlessStrategy('path:7')", 7),
    ],
)
def test_a_graph_that_is_written_out_in_the_app_is_counted(folder, source, n_agents):
    without(folder, 'topology = "ring:5"')
    server(folder, source + "\napp = None\n")
    assert settings(folder)[0] == n_agents
    assert settings(folder, 3)[0] == 3  # what the user says is believed


@pytest.mark.parametrize(
    "source",
    [
        "strategy = FedAvg()",
        "t = Topology.ring(n)",
        "t = Topology.ring(2)",
        "t = Topology.fly(2)",
        "t, u = Topology.ring(8), Topology.ring(9)",
        "t = Topology.parse('/dev/null/x.edges')",
        "t = Topology.ring(*sizes)\ns = ServerlessStrategy()",
    ],
)
def test_without_a_graph_the_number_has_to_be_said(folder, source):
    without(folder, 'topology = "ring:5"')
    server(folder, source + "\napp = None\n")
    refused(folder, "the app's run config names no topology; say how many agents: --agents N")
    assert settings(folder, 4)[0] == 4


def test_a_topology_key_that_names_no_graph_is_explained(folder):
    server(folder, "app = None\n")
    refused(folder, "has topology = 'rign:5', but: unknown topology 'rign'", topology="rign:5")


def test_an_older_template_names_the_number_of_nodes(folder):
    without(folder, 'topology = "ring:5"')
    server(folder, "app = None\n")
    with (folder / "pyproject.toml").open("a") as file:
        file.write('[tool.flwr.federations]\ndefault = "here"\n')
        file.write("[tool.flwr.federations.here]\noptions.num-supernodes = 9\n")
    assert settings(folder)[0] == 9
