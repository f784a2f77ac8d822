"""Where a peer is reached: `host:port`, read in one place."""

from __future__ import annotations

import re

from flower_dhb.errors import ConfigError

__all__ = ["parse_address"]

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_HOST = re.compile(r"[^\s/\[\]:]+")
_IPV6 = re.compile(r"\[[0-9a-fA-F:.]+(%[^\s/\[\]]+)?\]")


def parse_address(address: object, *, least_port: int = 1) -> tuple[str, int]:
    """Host, in lower case and an IPv6 one in its brackets, and port of an address.

    least_port: 0 where the system may choose a port. Raises ConfigError that says what is
    wrong with it.
    """
    if not isinstance(address, str):
        raise ConfigError(f"an address is a text such as '192.168.1.10:9440', got {address!r}")
    host, mark, port = address.rpartition(":")
    if address.count(":") > 1 and "/" not in address and not host.startswith("["):
        raise ConfigError(
            f"address '{address}': an IPv6 address stands in brackets, as in '[fd00::10]:9440'"
        )
    if not mark or address.endswith("]"):
        raise ConfigError(f"address '{address}' has no port, expected one as in '{address}:9440'")
    if not (_HOST.fullmatch(host) or _IPV6.fullmatch(host)):
        raise ConfigError(
            f"address '{address}': '{host}' is no host, expected an address as in "
            "'192.168.1.10:9440', 'robot-3.local:9440' or '[fd00::10]:9440'"
        )
    if not _PORT.fullmatch(port) or not least_port <= int(port) <= 65535:
        raise ConfigError(f"address '{address}': the port must be {least_port} … 65535")
    return host.lower(), int(port)
