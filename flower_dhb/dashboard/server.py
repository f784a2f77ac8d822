"""A page of what happens now, served on loopback to whoever knows its address.

Whoever can send a request from this machine, another user or a page in a browser, is a stranger:
the address has a token, `Host` and `Origin` must be this server's own, and nothing can be changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flower_dhb.dashboard.sources import Source
from flower_dhb.errors import FlowerDhbError
from flower_dhb.pages.html import csp_hash

__all__ = ["Hub", "Server", "application"]

_HEADERS_BYTES, _PATH_BYTES = 16 * 1024, 1024
_CONNECTIONS = 64
_ALIVE_S = 10.0  # between signs of life to a page of which nothing has changed

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Hub:
    """Looks at a source in a thread of its own, and wakes those who listen when it has changed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pause = threading.Condition()
        self._newest = ("", 0)
        self._listeners: set[Callable[[], object]] = set()
        self._thread = threading.Thread(target=self._look, name="dashboard", daemon=True)
        self.over = False

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more, and let those who listen go. It may be called again."""
        with self._pause:
            self.over = True
            self._pause.notify_all()
        self._wake()

    def close(self) -> None:
        """Wait for the last look, and let go of the source."""
        self.end()
        self._thread.join()
        self._source.close()

    def _look(self) -> None:
        while not self.over:
            try:
                views = [view.to_json() for view in self._source.look()]
                text = json.dumps({"views": views}, allow_nan=False)
            except (FlowerDhbError, OSError) as error:
                text = json.dumps({"views": [], "error": str(error)})
            if text != self._newest[0]:
                self._newest = (text, self._newest[1] + 1)
                self._wake()
            with self._pause:
                self._pause.wait_for(lambda: self.over, self._source.pause_s)

    def _wake(self) -> None:
        for wake in [*self._listeners]:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                wake()

    @contextlib.contextmanager
    def listening(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called, from another thread, when something is new."""
        self._listeners.add(wake)
        try:
            yield
        finally:
            self._listeners.discard(wake)

    def newest(self) -> tuple[str, int]:
        """What was seen last, and its number: 0 before the first look."""
        return self._newest


class Guard:
    """Lets a request in if it is a reading one, for this server by name, from its own page."""

    def __init__(self, app: Any, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer strangers in few words, and pass others on."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: _Scope) -> Response | None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        if size > _PATH_BYTES:
            return _refused("too long", 414)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADERS_BYTES:
            return _refused("too large", 431)
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.lower(), []).append(value)
        if scope["method"] not in ("GET", "HEAD"):
            return _refused("only reading", 405, Allow="GET, HEAD")
        hosts = [value.decode("latin-1") for value in found.get(b"host", [])]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return _refused("another host", 421)
        origins = [value.decode("latin-1") for value in found.get(b"origin", [])]
        site = [value.decode("latin-1") for value in found.get(b"sec-fetch-site", [])]
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return _refused("another origin", 403)
        if any(each not in ("same-origin", "none") for each in site):
            return _refused("another site", 403)
        return None


def _refused(why: str, status: int, **headers: str) -> Response:
    return PlainTextResponse(why, status, {"Connection": "close", **headers})


def application(hub: Hub, token: str, hosts: frozenset[str]) -> Any:
    """The ASGI application. hosts: what `Host` may say."""
    page, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    def known(request: Request) -> bool:
        said = request.path_params["token"].encode("utf-8", "replace")
        return hmac.compare_digest(said, token.encode())

    async def show(request: Request) -> Response:
        if not known(request):
            return PlainTextResponse("not found", 404)
        return HTMLResponse(page, headers=headers)

    async def events(request: Request) -> Response:
        if not known(request):
            return PlainTextResponse("not found", 404)
        return StreamingResponse(_events(hub), media_type="text/event-stream", headers=headers)

    routes = [Route("/{token}/", show), Route("/{token}/events", events)]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, hosts)


async def _events(hub: Hub) -> AsyncIterator[str]:
    loop, woken, known = asyncio.get_running_loop(), asyncio.Event(), 0
    with hub.listening(lambda: loop.call_soon_threadsafe(woken.set)):
        while not hub.over:
            woken.clear()
            text, number = hub.newest()
            if number != known:
                yield f"data: {text}\n\n"
                known = number
                continue
            try:
                await asyncio.wait_for(woken.wait(), _ALIVE_S)
            except TimeoutError:
                yield ": nothing new\n\n"


def _page() -> tuple[str, str]:
    """The page, and the policy that lets it run its own script and talk to its own server alone."""
    room = files("flower_dhb.dashboard")
    body, script, style = (
        (room / n).read_text("utf-8") for n in ("page.html", "page.js", "page.css")
    )
    colors = (files("flower_dhb.pages") / "page.css").read_text("utf-8").partition("* {")[0]
    style = colors + style
    page = body.replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        f"default-src 'none'; script-src {csp_hash(script)}; style-src {csp_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


class _Uvicorn(uvicorn.Server):
    """A server that ends its streams of events before it waits for its connections."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.end()
        await super().shutdown(sockets)


class Server:
    """A server on a loopback port. port: 0 for a free one. url: what to open in a browser."""

    def __init__(self, source: Source, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(32)
        self.url = f"http://127.0.0.1:{self.port}/{self.token}/"
        self._hub = Hub(source)
        hosts = frozenset(f"{name}:{self.port}" for name in ("127.0.0.1", "localhost"))
        config = uvicorn.Config(
            application(self._hub, self.token, hosts),
            log_level="warning",
            access_log=False,  # it would write the token
            server_header=False,
            http="h11",
            ws="none",
            lifespan="off",
            h11_max_incomplete_event_size=_HEADERS_BYTES,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = _Uvicorn(config, self._hub)

    def run(self) -> None:
        """Serve until interrupted."""
        self._hub.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._hub.close()
            self._socket.close()

    def stop(self) -> None:
        """Have `run` return."""
        self._server.should_exit = True
