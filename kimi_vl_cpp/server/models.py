"""`/v1/models`, `/health`, `/ping`, `/v1/status`, `/metrics`: what the server serves and how it is."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..files.variants import REASONING
from ..version import __version__
from . import metrics
from .errors import Refused, unavailable
from .replies import json_reply
from .state import State, state_of


async def models(request: Request) -> Response:
    """The model under all of its names, and with each of its adapters."""
    state = state_of(request)
    return json_reply({"object": "list", "data": [_entry(state, name) for name in state.names]})


async def one_model(request: Request) -> Response:
    """The model under one of its names."""
    state = state_of(request)
    name = request.path_params["name"]
    if name not in state.names:
        message = f"there is no model {name[:100]!r} here, only {', '.join(state.names)}"
        raise Refused(404, message, "serve.unknown_model", param="model")
    return json_reply(_entry(state, name))


def _entry(state: State, name: str) -> dict[str, Any]:
    model = state.model
    path = model.files.text
    modalities = ["text", "image"] if model.has_vision else ["text"]
    return {
        "id": name,
        "object": "model",
        "created": int(path.stat().st_mtime) if path.exists() else int(state.started),
        "owned_by": "kimi-vl-cpp",
        "max_model_len": model.n_ctx,
        "experimental": ["tools"],
        "parent": state.names[0] if state.adapter_of(name) else None,
        "architecture": {"input_modalities": modalities, "output_modalities": ["text"]},
        "meta": {
            "n_ctx_train": model.context_length,
            "n_vocab": model.n_vocab,
            "n_embd": model.hidden_size,
            "size": path.stat().st_size if path.exists() else None,
            "variant": model.variant,
            "name": model.name,
            "reasons": REASONING[model.variant],
        },
    }


async def health(request: Request) -> Response:
    """200 when requests are taken; 503 while the model loads, the server ends, or nothing has moved for a minute."""
    engine = state_of(request).ready
    if engine.stuck:
        raise unavailable("answers are under way, but nothing has moved for a minute", "serve.stuck", 60)
    return json_reply({"status": "ok"})


async def ping(request: Request) -> Response:
    """200 as soon as the socket is open."""
    return json_reply({"status": "ok"})


async def status(request: Request) -> Response:
    """What is under way, in numbers."""
    state = state_of(request)
    engine, model = state.ready, state.model
    now = time.perf_counter()
    streams = [
        {
            "id": request_id,
            "index": run.index,
            "state": run.state,
            "prompt": None if run.stream is None else run.stream.n_prompt,
            "done": run.n_done,
            "rate": round(run.n_done / (now - run.first_token), 2) if run.first_token and now > run.first_token else 0,
            "age_s": round(now - run.arrived, 3),
        }
        for request_id, runs in engine.runs.items()
        for run in runs
        if run.state != "ended"
    ]
    return json_reply(
        {
            "version": __version__,
            "model": state.names[0],
            "fingerprint": engine.fingerprint,
            "uptime_s": round(time.time() - state.started, 1),
            "n_ctx": model.n_ctx,
            "running": engine.n_running,
            "waiting": engine.n_waiting,
            "max_running": state.settings.max_running,
            "max_queue": state.settings.max_queue,
            "image_cache_bytes": engine.image_cache_bytes,
            "streams": streams,
        }
    )


async def metrics_text(request: Request) -> Response:
    """The metrics, for Prometheus."""
    return Response(state_of(request).metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})
