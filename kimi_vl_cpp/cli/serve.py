"""The command line of `kimi-vl serve`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from . import opening, options
from .exits import UsageError
from .failures import needs_server
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..model import KimiVL
    from ..server.settings import Settings
    from ..server.state import State

SUMMARY = "Serve a model over HTTP, in the shapes of OpenAI's API."
BUILTIN_NAME = "kimi-vl-demo"
KEY_VARIABLE = "KIMI_VL_API_KEY"


@partial(options.grouped, conversation=True, serves=True)
def command(
    *,
    files: opening.Opening,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port; 0 takes a free one.")] = 8000,
    unix_socket: Annotated[
        str | None, typer.Option("--unix-socket", metavar="FILE", help="Listen on this Unix socket instead.")
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias", metavar="NAME", help="Name of the model. May be given several times: the first is shown."
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", metavar="KEY", help="An accepted key, or NAME:KEY. Safer: --api-key-file."),
    ] = None,
    api_key_file: Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", help="A file of keys, one per line; reread on SIGHUP."),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Listen beyond this computer without a key.")] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", metavar="NAME", help="A host name that clients use. May be given several times."
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="URL",
            help="Origin of a page that may use the server, such as https://chat.example.",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help="TLS certificate (PEM), for https.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help="Private key of the certificate.")
    ] = None,
    root_path: Annotated[
        str, typer.Option("--root-path", metavar="PATH", help="Path prefix behind a reverse proxy.")
    ] = "",
    max_running: Annotated[int, typer.Option("--max-running", metavar="N", help="Answers computed concurrently.")] = 16,
    max_queue: Annotated[int, typer.Option("--max-queue", metavar="N", help="Requests that may wait.")] = 256,
    max_queue_s: Annotated[
        float, typer.Option("--max-queue-s", metavar="S", help="Seconds that a request may wait; 0: no limit.")
    ] = 600,
    max_per_key: Annotated[
        int, typer.Option("--max-per-key", metavar="N", help="Concurrent requests of one key; 0: no limit.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", help="Seconds that a request may take in all; 0: no limit.")
    ] = 0,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="S", help="Seconds that running answers may take after SIGTERM or Ctrl-C."),
    ] = 30,
    slow_client: Annotated[
        float,
        typer.Option(
            "--slow-client", metavar="S", help="Seconds after which a client that reads nothing is disconnected."
        ),
    ] = 60,
    max_body: Annotated[
        str, typer.Option("--max-body", metavar="SIZE", help="Largest request body, such as 64MiB.")
    ] = "64MiB",
    max_images: Annotated[int, typer.Option("--max-images", metavar="N", help="Pictures per request.")] = 64,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            "--image-host",
            metavar="NAME",
            help="A host that pictures are fetched from, *.NAME for its subdomains. Without one nothing is fetched.",
        ),
    ] = None,
    image_dir: Annotated[
        list[str] | None,
        typer.Option("--image-dir", metavar="DIR", help="A folder of pictures that file: URLs may name."),
    ] = None,
    thinking_budget: options.ThinkingBudget = None,
    answer_reserve: options.AnswerReserve = None,
    thinking_close: options.ThinkingClose = None,
    ping: Annotated[
        float, typer.Option("--ping", metavar="S", help="Seconds of silence in a stream before a comment is sent.")
    ] = 15,
    strict: Annotated[bool, typer.Option("--strict", help="Reject unknown fields and model names.")] = False,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="Serve the page.", show_default=False)] = True,
    metrics: Annotated[bool, typer.Option("--metrics/--no-metrics", help="Serve /metrics.", show_default=False)] = True,
    metrics_per_key: Annotated[
        bool, typer.Option("--metrics-per-key", help="Label the counters with key names.")
    ] = False,
    log_format: Annotated[str, typer.Option("--log-format", metavar="FORMAT", help="text or json.")] = "text",
    reasoning_field: Annotated[
        str, typer.Option("--reasoning-field", metavar="NAME", help="Message field that holds the reasoning.")
    ] = "reasoning_content",
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write where the time of every answer went.")
    ] = None,
) -> options.Job:
    """Serve a model over HTTP: OpenAI's API, for this computer unless --host says otherwise.

    kimi-vl serve -m kimi.gguf --port 8000
    """
    arguments: dict[str, Any] = dict(
        host=host,
        port=port,
        unix_socket=unix_socket,
        aliases=tuple(alias or ()),
        no_auth=no_auth,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        root_path=root_path,
        max_running=max_running,
        max_queue=max_queue,
        max_queue_s=max_queue_s,
        max_per_key=max_per_key,
        timeout=timeout,
        grace=grace,
        slow_client=slow_client,
        max_images=max_images,
        image_hosts=tuple(image_host or ()),
        image_dirs=tuple(image_dir or ()),
        thinking_budget=thinking_budget,
        answer_reserve=answer_reserve,
        thinking_close=thinking_close or "",
        ping=ping,
        strict=strict,
        ui=ui,
        metrics=metrics,
        metrics_per_key=metrics_per_key,
        reasoning_field=reasoning_field,
        trace=trace,
    )

    def job(terminal: Terminal) -> int:
        chosen = opening.choose_model(files)
        arguments["max_body"] = opening.read_size("--max-body", max_body)
        arguments["log_json"] = read_format(log_format)
        return run(chosen, arguments, (api_key or [], api_key_file), terminal)

    return job


def run(
    files: opening.Opening, arguments: dict[str, Any], keys: tuple[list[str], str | None], terminal: Terminal
) -> int:
    """Serves until a signal ends it."""
    if files.builtin and not arguments["aliases"]:
        arguments["aliases"] = (BUILTIN_NAME,)
    settings, serve = _with_extra(arguments, keys)

    def load() -> KimiVL:
        model = opening.open_model(files, Progress(terminal))
        own = {*settings.aliases, model.files.text.stem}
        for name in own.intersection(model.adapters):
            raise UsageError(f"--lora {name}=…: the model itself has that name: give the adapter another one")
        opening.introduce(model, files, terminal)
        return model

    def on_ready(state: State, address: str) -> None:
        model, n_keys = state.model, len(settings.keys.names)
        terminal.say(
            f"ready: {address} · model {', '.join(state.names)} ({model.variant}) · context {model.n_ctx} · "
            f"{settings.max_running} at once, {settings.max_queue} waiting · {n_keys or 'no'} API keys"
        )

    serve(settings, load, on_ready)
    return errors.EXIT_OK


def _with_extra(arguments: dict[str, Any], keys: tuple[list[str], str | None]) -> tuple[Settings, Any]:
    """The settings and the function that serves. Raises Unsupported where the extra is not installed."""
    with needs_server("serve"):
        from ..server.keys import Keys
        from ..server.serving import serve
        from ..server.settings import Settings
    given, file = keys
    variable = os.environ.get(KEY_VARIABLE)
    found = Keys([*given, *([variable] if variable else [])], None if file is None else Path(file))
    settings = Settings(**arguments, keys=found)
    settings.check()
    return settings, serve


def read_format(text: str) -> bool:
    """Whether --log-format is json. Raises UsageError."""
    if text not in ("text", "json"):
        raise UsageError(f"--log-format {text}: expected text or json")
    return text == "json"
