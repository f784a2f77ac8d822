"""A real browser that shows a page: Chromium without a window, spoken to over two pipes.

Its DevTools protocol needs no library: messages of JSON with a zero byte between them.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

__all__ = ["CHROMIUM", "Browser", "BrowserError"]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--disable-dev-shm-usage", "--mute-audio",
    "--remote-debugging-pipe",
)  # fmt: skip


_BECOME = """
import os, sys
for end, number in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(end), number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(Exception):
    """The page's program, or the browser, says that something is wrong."""


class Browser:
    """One page. errors: what its console and its programs complained of. asked: all addresses
    that it wanted to load, its own first.
    """

    def __init__(self, width: int = 1440, height: int = 900, *, dark: bool = False) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._ids, self._rest, self._session = 0, b"", ""
        self._home = tempfile.mkdtemp(prefix="browser-")
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        # Above those that they become in the browser, which reads from 3 and writes to 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (there, back)]
        words = [str(CHROMIUM), *_QUIET, f"--user-data-dir={self._home}"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME, *map(str, ends), *words],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (there, back, *ends):
            os.close(end)
        try:
            self._begin(width, height, dark)
        except BaseException:
            self.close()
            raise

    def _begin(self, width: int, height: int, dark: bool) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        # Its renderers and helpers are of the session that was made for it.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._home, ignore_errors=True)

    def resize(self, width: int, height: int) -> None:
        """Make the page so large, also smaller than a window could be."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._ids += 1
        number = self._ids
        message = {"id": number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(time.monotonic() + 30.0)
            if found.get("id") == number:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(until - time.monotonic(), 0.0))
            if not ready:
                raise BrowserError("the browser does not answer")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise BrowserError("the browser has ended")
            self._rest += piece
        raw, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        self._note(found.get("method", ""), found.get("params", {}))
        return found

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"])[:1000])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(json.dumps(about["args"])[:1000])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(about["entry"])[:1000])
        elif method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])

    def open(self, address: str | Path) -> None:
        """Load a page, or a file."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        self.ask("Page.navigate", url=url)

    def run(self, program: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.ask(
            "Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait(self, program: str, timeout_s: float = 30.0) -> Any:
        """Until an expression is true: its value."""
        return self.until(lambda: self.run(program), program, timeout_s)

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
        """Until something holds: its value. The browser is heard meanwhile."""
        until = time.monotonic() + timeout_s
        while not (value := holds()):
            if time.monotonic() > until:
                raise BrowserError(f"in vain waited for {what}; {self.errors}")
            time.sleep(0.02)
        return value

    def picture(self, path: Path) -> None:
        """All of the page as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
