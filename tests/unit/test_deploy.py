"""What lies under deploy/ names commands, options and files that exist."""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from flower_dhb.cli import peer

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "flower-dhb-peer@.service"


def parsed(words):
    parser = argparse.ArgumentParser()
    peer.configure(parser)
    return parser.parse_args(words)


def test_the_service_calls_the_command_as_it_is():
    line = next(x for x in UNIT.read_text().splitlines() if x.startswith("ExecStart="))
    program, command, *words = shlex.split(line.removeprefix("ExecStart="))
    assert (Path(program).name, command) == ("flower-dhb", "peer")
    arguments = parsed(words)
    assert str(arguments.settings) == "/etc/flower-dhb/%i/peer.toml"
    assert "StateDirectory=flower-dhb/%i" in UNIT.read_text()
    assert str(arguments.state_dir) == "%S/flower-dhb/%i"


def test_the_service_knows_the_exit_statuses():
    text = UNIT.read_text()
    assert f"RestartPreventExitStatus=2 {peer.ALONE}\n" in text
    assert f"SuccessExitStatus={peer.STOPPED}\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's tools")
def test_systemd_understands_every_line(tmp_path):
    unit = tmp_path / UNIT.name.replace("@", "@vertex-3")
    unit.write_text(UNIT.read_text().replace("/opt/flower-dhb/bin/flower-dhb", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert unit.name not in found.stderr, found.stderr


def test_the_container_copies_what_exists_and_calls_the_command():
    text = (DEPLOY / "Containerfile").read_text()
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (DEPLOY.parent / source).exists(), source
    entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    command = re.search(r"^CMD (.*)$", text, re.MULTILINE)
    words = [*re.findall(r'"([^"]*)"', entry[1]), *re.findall(r'"([^"]*)"', command[1])]
    assert words[:2] == ["flower-dhb", "peer"]
    assert parsed(words[2:]).log == "json"
