"""The commands of docs/deployment.md do what the page says, and Flower knows their options."""

import re
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args as parse_args_superexec
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from deploy.keys import write_certificates, write_key
from deploy.local import Deployment

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def block(program):
    """The block of the page that begins with a program."""
    return next(text for text in BLOCKS if text.startswith(program))


def words(program):
    return shlex.split(block(program).replace("\\\n", " "))[1:]


def shaken_hands(folder, name):
    """Whether a client that trusts `ca.pem` accepts a server with `link.pem` by this name."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "link.pem", folder / "link.key")
    ours, theirs = socket.socketpair()
    server = threading.Thread(
        target=lambda: context.wrap_socket(theirs, server_side=True).close(), daemon=True
    )
    server.start()
    client = ssl.create_default_context(cafile=folder / "ca.pem")
    with client.wrap_socket(ours, server_hostname=name) as link:
        found = link.getpeercert() is not None
    server.join(5)
    return found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_certificates_of_the_page_are_good_for_the_names_that_it_says(tmp_path):
    subprocess.run(
        ["bash", "-ec", block("openssl")], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    for name in ("link.example.org", "localhost", "127.0.0.1"):
        assert shaken_hands(tmp_path, name)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_key_of_the_page_is_one_that_flower_takes_as_is_that_of_the_demonstration(tmp_path):
    subprocess.run(
        ["bash", "-ec", block("ssh-keygen")], cwd=tmp_path, check=True, capture_output=True
    )
    write_key(tmp_path / "ours")
    from flwr.cli.supernode.register import try_load_public_key

    assert len(try_load_public_key(tmp_path / "node.pub")) > 0
    assert len(try_load_public_key(tmp_path / "ours.pub")) > 0
    assert (tmp_path / "ours").stat().st_mode & 0o077 == 0


def test_the_demonstrations_certificates_are_good_for_this_machine(tmp_path):
    write_certificates(tmp_path)
    assert shaken_hands(tmp_path, "127.0.0.1")
    assert (tmp_path / "link.key").stat().st_mode & 0o077 == 0


def test_flower_knows_the_options_of_the_page():
    link = _parse_args_run_superlink().parse_args(words("flower-superlink"))
    assert (link.port, link.enable_supernode_auth) == (8000, True)
    assert str(link.database) == "/var/lib/flower/link.db"
    executor = parse_args_superexec().parse_args(words("flower-superexec"))
    assert executor.runtime_api_address == f"127.0.0.1:{link.port}"
    node = _parse_args_run_supernode().parse_args(words("flower-supernode"))
    assert node.superlink == "link.example.org:8000"
    config = parse_config_args([node.node_config])
    assert config == {
        "vertex": 3,
        "state-dir": "/var/lib/agent",
        "mesh": "/etc/agent/vertex-3",
        "address": "10.0.0.3:9440",
    }
    table = re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert set(config) <= set(table)


def test_what_a_deployment_has_left_ends_even_if_its_owner_is_killed(tmp_path):
    """The owner's end of a pipe closes; whatever has the deployment's home is ended."""
    deployment = Deployment(tmp_path)
    home = deployment.flower.environment
    left = subprocess.Popen(["sleep", "60"], env=home, start_new_session=True)
    deployment._watchdog.stdin.close()
    assert left.wait(timeout=10) == -9
    assert deployment._watchdog.wait(timeout=10) == 0
