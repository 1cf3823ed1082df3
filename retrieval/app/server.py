"""Serve the page, and guard it."""

import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import gradio as gr
import httpx
from gradio.exceptions import ServerFailedToStartError
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datamodules.errors import UserError, reason
from retrieval.app.page import CSS, THEME

MAX_BYTES = 20 << 20  # of a request
MAX_THREADS = 16  # requests that are worked on at the same time
MAX_SESSIONS = 200  # pages that are remembered: each keeps some 40 kB
MAX_REQUESTS = RateLimitItemPerSecond(1000, 10)  # POSTs of one address in ten seconds
MAX_LOGINS = RateLimitItemPerMinute(10)  # of one address: passwords can't be tried out
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)


class Guard:
    """Refuses what no page of ours asks for, before Gradio sees it.

    Requests of other sites (by ``Host``, which a rebound name gives away, and by ``Origin``), too many of one address,
    too large ones, and addresses where a file should be. Answers carry a content security policy, under which the
    browser loads nothing from elsewhere.

    Args:
        app: What is guarded.
        hosts: Names that it may be asked under; empty allows all.
        limit: POSTs that one address may make.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], limit: RateLimitItem) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._limit = limit
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # Gradio needs no web socket
        # Of a header that is given twice the first counts, as for those behind us.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        refusal = await self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if "/component_server" in scope["path"]:  # the sketchpad's drafts, which Gradio would keep for ever
            await PlainTextResponse("null", media_type="application/json")(scope, receive, send)
            return
        if scope["method"] == "POST" and not _is_upload(headers):
            body = await _read(receive)
            if len(body) > MAX_BYTES or not (_is_login(scope) or _harmless(body)):
                await PlainTextResponse("not a request of this page", 400)(scope, receive, send)
                return
            receive = _replay(body, receive)
        await self._app(scope, receive, _with_policy(send))

    async def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self._hosts and _split(f"//{host}").hostname not in self._hosts:
            return PlainTextResponse("unknown host", 421)
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            return PlainTextResponse("requests of other sites are refused", 403)
        if "://" in unquote(scope["path"]) or ":/" in scope["path"].partition("=")[2]:
            return PlainTextResponse("addresses are not fetched", 403)
        if _is_upload(headers) and "content-length" not in headers:
            return PlainTextResponse("a Content-Length is required", 411)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return PlainTextResponse(f"no more than {MAX_BYTES >> 20} MiB", 413)
        client = scope["client"][0] if scope["client"] else ""
        if scope["method"] != "POST":
            return None
        if not await self._limiter.hit(self._limit, client):
            return PlainTextResponse("too many requests: wait a moment", 429)
        if _is_login(scope) and not await self._limiter.hit(MAX_LOGINS, "login", client):
            return PlainTextResponse("too many attempts to log in: wait a minute", 429)
        return None


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_login(scope: Scope) -> bool:
    return bool(scope["path"].rstrip("/").endswith("/login"))


def _is_upload(headers: MutableMapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("multipart/")


async def _read(receive: Receive) -> bytes:
    """The body of a request, as far as it is not too large."""
    body = b""
    while len(body) <= MAX_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _harmless(body: bytes) -> bool:
    """Whether a request is JSON, of a sane depth, whose files are none elsewhere."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _with_policy(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = {
                b"content-security-policy": POLICY.encode(),
                b"x-content-type-options": b"nosniff",
                b"referrer-policy": b"no-referrer",
            }
            message["headers"] = [*message.get("headers", []), *extra.items()]
        await send(message)

    return sent


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int) -> None:
    """Find out whether a page can be served there, before there is one.

    Raises:
        UserError: The port or host is not available.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            if os.name == "posix":  # as the server does; elsewhere it would take a port that is in use
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except (OSError, UnicodeError) as error:  # the latter of what can't be a name
        raise _not_available(host, port) from error


def _not_available(host: str, port: int) -> UserError:
    return UserError(f"can't serve on {host}:{port}: the port is in use, or the host is not this machine's")


def read_users(path: Path) -> list[tuple[str, str]]:
    """The users of a file with a line ``USER:PASSWORD`` for each.

    Raises:
        UserError: It can't be read, or has another line.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {reason(error) if isinstance(error, OSError) else 'not a text file'}") from error
    users = [(user, password) for user, _, password in (line.partition(":") for line in lines)]
    if not users or not all(user and password for user, password in users):
        raise UserError(f"{path}: expected a line USER:PASSWORD for each user")
    return users


def serve(page: gr.Blocks, host: str, port: int, users: list[tuple[str, str]] | None, show: bool = False) -> str:
    """Start serving, in the background.

    Args:
        page: What to serve.
        host: Name or address of this machine that it can be reached under.
        port: And its port.
        users: Names and passwords of those who may use it; None lets anyone in.
        show: Open it in the browser.

    Returns:
        Its address.

    Raises:
        UserError: The port or host is not available, or a proxy stands between this machine and itself.
    """
    hosts = sorted({"localhost", "127.0.0.1", "::1", host}) if is_loopback(host) else []
    middleware = [Middleware(Guard, hosts=hosts, limit=MAX_REQUESTS)]
    page.queue(max_size=1000)
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # an IPv6 address, as in a URL
            server_port=port,
            auth=users,
            app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
            max_file_size=MAX_BYTES,
            max_threads=MAX_THREADS,
            state_session_capacity=MAX_SESSIONS,
            theme=THEME,
            css_paths=CSS,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            share=False,
            ssr_mode=False,
            show_error=True,
            quiet=True,
            inbrowser=show,
            prevent_thread_lock=True,
        )
    except (OSError, ServerFailedToStartError) as error:
        raise _not_available(host, port) from error
    except Exception as error:  # Gradio asks its own server, and raises a plain one where it gets another's answer
        if not isinstance(error, httpx.HTTPError) and "proxy settings" not in str(error):
            raise
        asked = "localhost" if host == "0.0.0.0" else host  # noqa: S104 - as Gradio does
        raise UserError(
            f"the page is not reached on {asked}, by way of the proxy that the environment names: "
            f"set the variable no_proxy={asked}"
        ) from error
    return str(address)
