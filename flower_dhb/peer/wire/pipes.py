"""Pipes of the kernel: bytes go through them from one socket to another and are not copied.

Only Linux has that (`splice`). Elsewhere no pipe is lent, and whoever asked for one copies.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

__all__ = ["PIPES", "Pipe", "Pipes"]

PIPES = 8  # at most, two descriptors each
_PIPE_BYTES = 1024 * 1024  # what the kernel grants to anybody


class Pipe:
    """What was taken from one socket and waits for another one. held: how many bytes that are.

    Raises OSError where there is no pipe to be had.
    """

    def __init__(self) -> None:
        self.held = 0
        self._out, self._into = os.pipe()
        if sys.platform == "linux":
            import fcntl

            # A user who has many pipes gets smaller ones.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def take(self, source: socket.socket) -> int:
        """Fill the empty pipe. Returns the number of bytes, 0 where the source has ended.

        Raises BlockingIOError if nothing has come, and whatever else `recv` would.
        """
        self.held = _splice(source.fileno(), self._into, _PIPE_BYTES)
        return self.held

    def give(self, sink: socket.socket) -> None:
        """Pass on as much as the sink takes. Raises what `send` would, if that is no wait."""
        with contextlib.suppress(BlockingIOError):
            self.held -= _splice(self._out, sink.fileno(), self.held)

    def close(self) -> None:
        """Give the descriptors back; what is held is lost."""
        os.close(self._out)
        os.close(self._into)


class Pipes:
    """A few pipes for many connections: each has one only while bytes of it wait.

    most: how many there are at a time.
    """

    def __init__(self, most: int = PIPES) -> None:
        self._left = most if _works() else 0
        self._free: list[Pipe] = []

    def lend(self) -> Pipe | None:
        """An empty pipe, or None if there is none to be had now."""
        if self._free:
            return self._free.pop()
        if self._left == 0:
            return None
        try:
            pipe = Pipe()
        except OSError:  # no descriptor
            return None
        self._left -= 1
        return pipe

    def back(self, pipe: Pipe) -> None:
        """Take a pipe back. One in which something is left is not used again."""
        if pipe.held:
            pipe.close()
            self._left += 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close those that are not lent."""
        while self._free:
            self._free.pop().close()
            self._left += 1


def _splice(source: int, sink: int, n_bytes: int) -> int:
    if sys.platform == "linux":
        return os.splice(source, sink, n_bytes, flags=os.SPLICE_F_NONBLOCK)
    raise OSError("this system has no splice")


def _works() -> bool:
    """Try it: containers forbid some calls, and what imitates Linux lacks some."""
    near, far = socket.socketpair()
    with near, far:
        try:
            pipe = Pipe()
        except OSError:
            return False
        try:
            near.send(b"!")
            pipe.take(far)
            pipe.give(far)
            return near.recv(1) == b"!"
        except OSError:
            return False
        finally:
            pipe.close()
