"""Streams that run together give the bits that each gives alone."""

from __future__ import annotations

import concurrent.futures
import os
import random
from typing import Any

import pytest
from server_support import RunningServer, text_of, with_picture

from kimi_vl_cpp.model import KimiVL

pytest.importorskip("llguidance", reason="needs the extra [server]")
N_STREAMS = int(os.environ.get("KIMI_VL_TEST_STREAMS", "12"))
"""How many run together; the bar is 64 (docs/server.md)."""
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def request(index: int) -> dict[str, Any]:
    """Pictures, lengths, seeds, schemas, several choices, log probabilities, calls, in all combinations."""
    draw = random.Random(index)
    messages = with_picture(index % 3) if index % 2 else [{"role": "user", "content": "Tell me of " + "tea " * index}]
    fields: dict[str, Any] = {"messages": messages, "seed": index, "temperature": draw.choice([0, 0.7, 1.5])}
    fields |= {
        "max_tokens": draw.randrange(1, 40),
        "logprobs": True,
        "top_logprobs": index % 4,
        "return_token_ids": True,
    }
    kind = index % 5
    if kind == 1:
        fields |= {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
    elif kind == 2:
        fields |= {"n": 3}
    elif kind == 3:
        fields |= {"tools": [TOOL], "tool_choice": "required"}
    elif kind == 4:
        fields |= {"frequency_penalty": 1.0, "stop": ["e"]}
    return fields


def said(chunks: list[Any]) -> dict[int, tuple[Any, ...]]:
    """Of every choice: token ids, log probabilities, text, calls, reason."""
    choices: dict[int, list[Any]] = {}
    assert chunks[-1] == "[DONE]"
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            choices.setdefault(choice["index"], []).append(choice)
    result = {}
    for index, pieces in choices.items():
        ids = [token for piece in pieces for token in piece.get("token_ids", ())]
        logprobs = [one for piece in pieces if piece["logprobs"] for one in piece["logprobs"]["content"]]
        calls = [one["function"] for piece in pieces for one in piece["delta"].get("tool_calls", ())]
        called = "".join(one["arguments"] for one in calls)
        result[index] = (ids, logprobs, text_of(chunks, index), called, pieces[-1]["finish_reason"])
    return result


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), max_running=16) as running:
        yield running


def test_streams_together_have_the_bits_of_streams_alone(server):
    requests = [request(index) for index in range(N_STREAMS - 2)]
    requests += [requests[1], requests[1]]  # twins
    alone = [said(server.stream(**fields)) for fields in requests]
    assert any(len(ids) > 5 for one in alone for ids, *_ in one.values())
    for turn in range(2):
        order = random.Random(turn).sample(range(len(requests)), len(requests))
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            running = {index: pool.submit(server.stream, **requests[index]) for index in order}
            together = [said(running[index].result()) for index in range(len(requests))]
        assert together == alone
    whole = server.ask(**{**requests[0], "stream": False})["choices"][0]
    ids, logprobs, text, _, reason = alone[0][0]
    assert (whole["token_ids"], whole["logprobs"]["content"]) == (ids, logprobs)
    assert (whole["message"]["content"], whole["finish_reason"]) == (text, reason)
