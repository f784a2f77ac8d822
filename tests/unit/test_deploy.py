"""What lies under deploy/ names commands, options and files that exist."""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from flower_dhb.cli import peer
from flower_dhb.peer.device.ending import FINAL, Ending

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
    assert "LogsDirectory=flower-dhb/%i" in UNIT.read_text()
    assert str(arguments.log_file) == "%L/flower-dhb/%i/peer.log"


def test_the_service_knows_the_exit_statuses():
    text = UNIT.read_text()
    final = " ".join(str(int(ending)) for ending in FINAL)
    assert f"\nRestart=on-failure\nRestartPreventExitStatus={final}\n" in text
    assert f"\nSuccessExitStatus={int(Ending.STOPPED)}\n" in text
    assert "\nStartLimitIntervalSec=0\n" in text  # 75 is tried for ever


def test_the_page_has_all_exit_statuses_and_what_systemd_makes_of_them():
    text = (DEPLOY.parent / "docs" / "peers.md").read_text()
    rows = re.findall(r"^\| `(\d+)` \| (\w+) \|.*\| (yes|no|pauses) \|$", text, re.MULTILINE)
    again = lambda e: "no" if e in (Ending.FINISHED, *FINAL) else "pauses"  # noqa: E731
    assert rows == [(str(int(e)), e.name.lower(), again(e)) for e in Ending]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's tools")
def test_the_service_is_locked_down(tmp_path):
    unit = tmp_path / UNIT.name.replace("@", "@vertex-3")
    shutil.copyfile(UNIT, unit)
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", found.stdout)
    if exposure is None:
        pytest.skip(f"this systemd-analyze looks at no files: {found.stderr}")
    assert float(exposure[1]) < 3.0


def test_the_user_and_the_files_of_the_service_are_those_of_the_other_files():
    user = re.search(r"^User=(.*)$", UNIT.read_text(), re.MULTILINE)[1]
    assert re.search(rf"^u {user} - ", (DEPLOY / "sysusers.conf").read_text(), re.MULTILINE)
    rules = (DEPLOY / "tmpfiles.conf").read_text()
    assert f"Z /etc/flower-dhb/* ~0700 {user} {user} -" in rules


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's tools")
def test_systemd_understands_every_line(tmp_path):
    unit = tmp_path / UNIT.name.replace("@", "@vertex-3")
    unit.write_text(UNIT.read_text().replace("/opt/flower-dhb/bin/flower-dhb", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60
    )
    steps = ("'RestartSteps'", "'RestartMaxDelaySec'")  # which systemd before 254 lacks
    said = [line for line in found.stderr.splitlines() if not any(key in line for key in steps)]
    assert unit.name not in "\n".join(said), found.stderr


def test_the_container_copies_what_exists_and_calls_the_command():
    text = (DEPLOY / "Containerfile").read_text()
    for sources in re.findall(r"^COPY ((?!--from).*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (DEPLOY.parent / source).exists(), source
    entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    command = re.search(r"^CMD (.*)$", text, re.MULTILINE)
    words = [*re.findall(r'"([^"]*)"', entry[1]), *re.findall(r'"([^"]*)"', command[1])]
    assert words[:2] == ["flower-dhb", "peer"]
    assert parsed(words[2:]).log == "json"
