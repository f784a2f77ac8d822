"""A Flower App's folder that is read, and never run."""

from pathlib import Path

PYPROJECT = """
[project]
name = "demo"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "demo.server_app:app"
clientapp = "demo.client_app:app"
[tool.flwr.app.config]
topology = "ring:5"
rounds = 10
learning-rate = 0.5
runs-dir = "runs"
data-dir = "data"
[tool.flwr.app.config.nested]
key = 1
"""
USES_OURS = "from flower_dhb import RunConfig\nconfig = RunConfig.of({})\napp = None\n"


def write_app(path: Path) -> Path:
    """Write the app; its ServerApp reads our run config."""
    (path / "demo").mkdir(parents=True)
    (path / "pyproject.toml").write_text(PYPROJECT)
    (path / "demo" / "server_app.py").write_text(USES_OURS)
    (path / "demo" / "client_app.py").write_text("app = None\n")
    return path
