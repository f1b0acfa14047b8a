"""The OpenAPI document says what the server does: its paths, its fields, their limits."""

from __future__ import annotations

import pytest
from server_support import HI, RunningServer
from starlette.routing import Route

from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.openai.options import read_options
from kimi_vl_cpp.openai.text_completions import read_text_request
from kimi_vl_cpp.server import app, openapi, pages
from kimi_vl_cpp.server.logs import Log
from kimi_vl_cpp.server.metrics import Metrics
from kimi_vl_cpp.server.settings import Settings
from kimi_vl_cpp.server.state import State

DOCUMENT = openapi.document()


def test_every_path_is_described_with_its_method():
    state = State(Settings(), Log(False), Metrics(False))
    own = {"/metrics", "/openapi.json", *(route.path for route in pages.routes())}
    routes = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in app._routes(state)
        if isinstance(route, Route) and route.path not in own
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described <= routes
    missing = {path for path, _ in routes - described}
    assert {f"/v1{path}" for path in missing} <= {path for path, _ in described}  # the names without /v1


def fields_of(schema):
    return {
        name: one["anyOf"][0] if "anyOf" in one and len(one) == 1 else one for name, one in schema["properties"].items()
    }


CHAT = fields_of(DOCUMENT["components"]["schemas"]["ChatRequest"])
TEXT = fields_of(DOCUMENT["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("name", sorted({*CHAT} - {"messages"}))
def test_fields_are_known_and_null_is_nothing(name):
    assert read_options({name: None}).unknown == []


@pytest.mark.parametrize(
    ("name", "schema", "read"),
    [
        *((name, one, lambda fields: read_options({"logprobs": True, **fields})) for name, one in CHAT.items()),
        *((name, one, lambda fields: read_text_request({"prompt": "x", **fields})) for name, one in TEXT.items()),
    ],
)
def test_the_limits_are_those_that_are_enforced(name, schema, read):
    if "minimum" not in schema:
        assert "maximum" not in schema
        return
    for inside in (schema["minimum"], schema["maximum"]):
        read({name: inside})
    if name != "seed":  # a negative one is drawn
        with pytest.raises(KimiVLError):
            read({name: schema["minimum"] - 1})
    with pytest.raises(KimiVLError):
        read({name: schema["maximum"] + 1})


def test_the_document_is_served():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=512)) as server, server.client() as client:
        assert client.get("/openapi.json").json() == DOCUMENT
        assert server.ask(HI, max_tokens=1)["object"] == "chat.completion"
