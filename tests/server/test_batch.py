"""`kimi-vl batch`: every line once, whatever stopped it, with the answers of one by one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import HI

from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server.batch import finished_ids, run_batch


@pytest.fixture(scope="module")
def model():
    with KimiVL.builtin(n_ctx=1024) as loaded:
        yield loaded


def body(seed: int) -> dict:
    return {"messages": HI, "seed": seed, "temperature": 1.2, "max_tokens": 5 + seed}


def request(seed: int, **more: object) -> bytes:
    row = {"custom_id": f"r{seed}", "method": "POST", "url": "/v1/chat/completions", "body": body(seed), **more}
    return json.dumps(row).encode() + b"\n"


def rows(path) -> dict:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def test_every_line_is_answered_as_by_itself(model, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"".join(request(seed) for seed in range(12)))
    counts = run_batch(model, source, target)
    assert (counts.answered, counts.refused, counts.before) == (12, 0, 0)
    for seed in range(12):
        row = rows(target)[f"r{seed}"]
        ours = model.create_chat_completion(**body(seed))
        assert row["error"] is None and row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"] == ours["choices"]


def test_what_was_cut_off_anywhere_is_taken_up_again(model, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"".join(request(seed) for seed in range(6)))
    run_batch(model, source, target)
    whole = {name: row["response"]["body"]["choices"] for name, row in rows(target).items()}
    data = target.read_bytes()
    for cut in (0, 1, len(data) // 3, data.index(b"\n"), data.index(b"\n") + 1, len(data) - 1):
        target.write_bytes(data[:cut])
        counts = run_batch(model, source, target)
        assert counts.before + counts.answered == 6
        assert {name: row["response"]["body"]["choices"] for name, row in rows(target).items()} == whole


def test_bad_lines_become_error_lines_and_the_others_are_answered(model, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    bad = [
        b"not json\n",
        b"[]\n",
        b"{}\n",
        request(1, url="/v1/embeddings"),
        request(2, method="GET"),
        request(3, body=5),
    ]
    source.write_bytes(b"".join([*bad, request(7), request(7), request(8, body={"messages": HI, "n": 99}), b"\n"]))
    counts = run_batch(model, source, target)
    assert counts.answered == 1
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["error"] is None for line in lines if line["custom_id"] == "r7"].count(True) == 1
    assert rows_by(lines, "r8")["response"]["status_code"] == 400
    assert rows_by(lines, "r1")["error"]["code"] == "batch.line"


def rows_by(lines: list, custom_id: str) -> dict:
    return next(line for line in lines if line["custom_id"] == custom_id)


def test_the_output_of_something_else_is_not_written_to(model, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(request(1))
    target.write_text("precious\n")
    with pytest.raises(BadRequest, match="name another file"):
        run_batch(model, source, target)
    assert target.read_text() == "precious\n"
    with pytest.raises(BadRequest, match="input too"):
        run_batch(model, source, source)


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=4), st.integers(0, 200))
def test_whole_lines_are_kept_and_a_torn_one_is_cut(tmp_path, ids, cut):
    target = tmp_path / "out"
    lines = [json.dumps({"custom_id": name, "response": {}}).encode() + b"\n" for name in ids]
    data = b"".join(lines)[:cut]
    target.write_bytes(data)
    n_whole = data.count(b"\n")
    assert finished_ids(target) == set(ids[:n_whole])
    assert target.read_bytes() == b"".join(lines[:n_whole])


def test_the_command_answers_a_file(tmp_path):
    (tmp_path / "in").write_bytes(request(1) + request(2))
    command = [sys.executable, "-m", "kimi_vl_cpp", "batch", "in", "out"]
    for expected in ("2 answered, 0 refused, 0 were there before", "0 answered, 0 refused, 2 were there before"):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
        assert expected in result.stderr
    assert len(rows(tmp_path / "out")) == 2
