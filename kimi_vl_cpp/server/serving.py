"""The life of a server: the socket, the model's loading beside it, signals, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ..errors import BadRequest
from ..model import KimiVL
from .app import create_app
from .engine import Engine
from .errors import MAX_HEADER_BYTES
from .logs import Log
from .metrics import Metrics
from .protocol import TimedH11
from .settings import Settings
from .state import State

_BACKLOG = 2048


def serve(settings: Settings, load: Callable[[], KimiVL], on_ready: Callable[[State, str], None] | None = None) -> None:
    """Serves until a signal ends it. load: opens the model; runs beside the open socket. on_ready: called with the
    address when requests are taken.

    Raises BadRequest (code "serve.*") when the address cannot be used, and what `load` raises.
    """
    settings.check()
    bound = open_socket(settings)
    try:
        asyncio.run(Serving(settings, load, on_ready).run(bound))
    finally:
        bound.close()
        if settings.unix_socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(settings.unix_socket)


def open_socket(settings: Settings) -> socket.socket:
    """The listening socket. Raises BadRequest with the reason when there can be none."""
    if settings.unix_socket is not None:
        return _unix_socket(settings.unix_socket)
    try:
        found = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadRequest(f"host {settings.host}: there is no such address: {error}", "serve.host") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise BadRequest(_why_not(settings, error), "serve.address") from None
    return bound


def _why_not(settings: Settings, error: OSError) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: another program listens there: choose another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: permission denied: choose a --port of 1024 or more"
    return f"{where}: {error.strerror or error}"


def _unix_socket(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise BadRequest(f"--unix-socket {path}: is there, and is not a socket", "serve.address")
            if _answers(path):
                raise BadRequest(f"--unix-socket {path}: another program listens there", "serve.address")
            os.unlink(path)
        before = os.umask(0o177)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise BadRequest(f"--unix-socket {path}: {error.strerror or error}", "serve.address") from None
    except BadRequest:
        bound.close()
        raise
    return bound


def _answers(path: str) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def address_of(settings: Settings, bound: socket.socket) -> str:
    """The URL of a server."""
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{bound.getsockname()[1]}{settings.root_path}"


class _InLog(logging.Handler):
    """Warnings of the libraries below, in the log of the server."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.event(record.getMessage()[:500])


class _Uvicorn(uvicorn.Server):
    """Without handlers of signals, as `Serving` has its own; ends at `end`, and otherwise wakes once a second for the
    Date of its responses, where uvicorn asks ten times a second whether it should exit."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Begins its shutdown. On the event loop."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Until `end`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """One server from its start to its end. `stop` may be called from the event loop; a second call ends at once."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], KimiVL],
        on_ready: Callable[[State, str], None] | None = None,
    ) -> None:
        self.state = State(settings, Log(settings.log_json), Metrics(settings.metrics_per_key))
        self._load = load
        self._on_ready = on_ready
        self._stopped = asyncio.Event()
        self._at_once = asyncio.Event()

    def stop(self) -> None:
        """Begins the graceful end; called again, ends what is still under way."""
        if self._stopped.is_set():
            self._at_once.set()
        self.state.draining = True
        self._stopped.set()

    async def run(self, bound: socket.socket, *, signals: bool = True) -> None:
        """Serves until `stop`."""
        server = _Uvicorn(self._config())
        loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
            loop.add_signal_handler(signal.SIGHUP, self._reload_keys)
        serving = asyncio.ensure_future(server.serve([bound]))
        loading = loop.run_in_executor(None, self._load)
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            watched: set[asyncio.Future[Any]] = {loading, serving, stopping}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                loading.add_done_callback(_close_late)
                return
            self._begin(loading.result(), bound)
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            server.end()
            await asyncio.wait({serving}, timeout=10)
            stopping.cancel()
            if self.state.engine is not None:
                await asyncio.to_thread(self.state.engine.close)

    def _config(self) -> uvicorn.Config:
        settings = self.state.settings
        for name in ("uvicorn.error", "asyncio"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [_InLog(self.state.log)], False
        return uvicorn.Config(
            create_app(self.state),
            http=TimedH11,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            root_path=settings.root_path,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )

    def _begin(self, model: KimiVL, bound: socket.socket) -> None:
        state = self.state
        engine = Engine(model, state.settings, state.metrics)
        model.cache.on_notice(lambda notice: state.log.event(notice.text, code=notice.code))
        engine.fingerprint  # noqa: B018 - read the file now
        state.engine = engine
        state.metrics.model = state.names[0] if not state.draining else "kimi-vl"
        engine.describe(state.metrics)
        if self._on_ready is not None and not state.draining:
            self._on_ready(state, address_of(state.settings, bound))

    async def _drain(self) -> None:
        """Lets answers end by themselves for the grace period, then ends them."""
        engine, settings = self.state.engine, self.state.settings
        assert engine is not None
        if not engine.idle:
            self.state.log.event("stopping", running=engine.n_running, waiting=engine.n_waiting)
        deadline = time.monotonic() + settings.grace
        while not engine.idle and time.monotonic() < deadline and not self._at_once.is_set():
            await asyncio.sleep(0.02)
        engine.end_all("shutdown")
        self.state.attachments.close()
        deadline = time.monotonic() + 10
        while engine.runs and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _reload_keys(self) -> None:
        keys = self.state.settings.keys
        try:
            keys.reload()
        except BadRequest as error:
            self.state.log.event(f"keys kept as they are: {error}")
        else:
            self.state.log.event("keys read again", n=len(keys.names))


def _close_late(loading: asyncio.Future[KimiVL]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()
