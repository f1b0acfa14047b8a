"""Chat completions over a real socket, from the built-in model: shapes, streams, and the bits of the library."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_support import HI, RunningServer, text_of, with_picture

from kimi_vl_cpp.generation.several import answer_seed
from kimi_vl_cpp.model import KimiVL


@pytest.fixture(scope="module")
def library():
    with KimiVL.builtin(n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=2048), aliases=("kimi", "other")) as running:
        yield running


def test_an_answer_has_every_field(server):
    answer = server.ask(max_tokens=8)
    assert answer["object"] == "chat.completion" and answer["model"] == "kimi"
    assert answer["id"].startswith("chatcmpl-") and answer["system_fingerprint"].startswith("kvl-")
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal"}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(answer["kimi"]) == {"seed", "notices", "images", "stop_reason", "stop_string"}
    assert answer["timings"]["predicted_n"] == usage["completion_tokens"]


def test_the_answer_is_the_library_s_to_the_last_token(server, library):
    for seed in (1, 2):
        options = {"seed": seed, "temperature": 1.2, "max_tokens": 30}
        theirs = server.ask(return_token_ids=True, logprobs=True, top_logprobs=5, **options)
        ours = library.create_chat_completion(HI, return_token_ids=True, logprobs=True, top_logprobs=5, **options)
        assert theirs["choices"] == ours["choices"]


def test_eight_streams_at_once_give_the_bits_of_one_by_one(server, library):
    cases = [
        (with_picture(seed % 3) if seed % 2 else HI, {"seed": seed, "temperature": 1.3, "max_tokens": 40})
        for seed in range(8)
    ]
    serial = [
        library.create_chat_completion(messages, return_token_ids=True, logprobs=True, **options)["choices"][0]
        for messages, options in cases
    ]
    with ThreadPoolExecutor(8) as pool:
        streams = pool.map(lambda case: server.stream(case[0], return_token_ids=True, logprobs=True, **case[1]), cases)
        for chunks, alone in zip(streams, serial, strict=True):
            assert chunks[-1] == "[DONE]"
            assert text_of(chunks) == alone["message"]["content"]
            choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
            said = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
            assert said == alone["logprobs"]["content"]
            assert list(itertools.chain(*(choice.get("token_ids", ()) for choice in choices))) == alone["token_ids"]


def test_a_stream_is_role_then_contents_then_the_end_with_one_id(server):
    chunks = server.stream(max_tokens=12, seed=3)
    whole = server.ask(max_tokens=12, seed=3)
    assert chunks[-1] == "[DONE]"
    chunks = chunks[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert "timings" in chunks[-1] and chunks[-1]["kimi"]["seed"] == 3
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]


def test_usage_is_a_chunk_of_its_own_when_asked_for_and_null_before(server):
    chunks = server.stream(max_tokens=5, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert chunks[-2]["choices"] == [] and chunks[-2]["usage"]["completion_tokens"] <= 5


def test_the_stream_says_what_it_is_and_is_not_kept(server):
    with server.client() as client:
        response = client.post("/v1/chat/completions", json={"messages": HI, "stream": True, "max_tokens": 2})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store" and response.headers["x-accel-buffering"] == "no"


def test_n_answers_each_with_a_seed_of_its_own(server, library):
    options = {"seed": 9, "temperature": 1.3, "max_tokens": 16}
    many = server.ask(n=3, **options)
    n_tokens = 0
    for index, choice in enumerate(many["choices"]):
        alone = library.create_chat_completion(HI, **{**options, "seed": answer_seed(9, index)})
        assert choice["index"] == index and choice["message"] == alone["choices"][0]["message"]
        n_tokens += alone["usage"]["completion_tokens"]
    chunks = server.stream(n=3, **options)
    assert [text_of(chunks, index) for index in range(3)] == [c["message"]["content"] for c in many["choices"]]
    assert many["usage"]["completion_tokens"] == n_tokens


def test_a_drawn_seed_is_told_and_gives_the_answer_again(server):
    first = server.ask(temperature=1.5, max_tokens=20)
    again = server.ask(temperature=1.5, max_tokens=20, seed=first["kimi"]["seed"])
    assert again["choices"] == first["choices"]


def test_a_stop_string_ends_the_answer_and_is_named(server):
    hello = [{"role": "user", "content": "Hello!"}]
    whole = server.ask(hello, temperature=0)["choices"][0]["message"]["content"]
    stop = whole[4:7]
    answer = server.ask(hello, temperature=0, stop=[stop])
    assert answer["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["kimi"]["stop_string"] == stop


def test_pictures_are_counted_and_described(server):
    answer = server.ask(with_picture(1), max_tokens=3)
    (image,) = answer["kimi"]["images"]
    assert (image["width"], image["height"]) == (84, 56)
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == image["tokens"] == 6
    count = server.ask(with_picture(1), path="/v1/chat/completions/input_tokens")
    assert count["input_tokens"] == answer["usage"]["prompt_tokens"] and count["image_tokens"] == 6


def test_a_repeated_prompt_is_not_computed_again(server):
    server.ask(max_tokens=1)
    assert server.ask(max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert server.ask(max_tokens=0)["choices"][0]["finish_reason"] == "length"


def test_fields_without_effect_are_told(server):
    with server.client() as client:
        response = client.post(
            "/v1/chat/completions", json={"messages": HI, "max_tokens": 1, "max_token": 5, "user": "me", "zzz": None}
        )
    assert response.json()["kimi"]["notices"] == [
        "max_token: this field has no effect",
        "user: this field has no effect",
    ]
    assert response.headers["x-kimi-vl-ignored"] == "max_token,zzz"


def test_progress_comes_before_the_first_token_when_asked_for(server):
    long = [{"role": "user", "content": "word " * 300}]
    chunks = server.stream([*long, *with_picture(77)], max_tokens=2, return_progress=True)
    stages = [chunk["prompt_progress"] for chunk in chunks[:-1] if "prompt_progress" in chunk]
    assert {"encode", "prefill"} == {stage["stage"] for stage in stages}
    assert stages[-1]["done"] == stages[-1]["total"]


def test_paths_without_v1_answer_too(server):
    assert server.ask(path="/chat/completions", max_tokens=1)["object"] == "chat.completion"


def test_models_are_listed_under_all_their_names(server):
    with server.client() as client:
        listed = client.get("/v1/models").json()
        assert [entry["id"] for entry in listed["data"]] == ["kimi", "other"]
        entry = client.get("/v1/models/other").json()
        assert entry["max_model_len"] == 2048 and entry["architecture"]["input_modalities"] == ["text", "image"]
        missing = client.get("/v1/models/a/b")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_the_counters_are_the_sums_of_the_usages():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), aliases=("kimi",)) as server:
        asked = [with_picture(seed) if seed % 2 else HI for seed in range(6)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda m: server.ask(m, max_tokens=9, n=2, temperature=1), asked))
        with server.client() as client:
            text = client.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    total = {
        "prompt_tokens": sum(a["usage"]["prompt_tokens"] for a in answers),
        "generation_tokens": sum(a["usage"]["completion_tokens"] for a in answers),
        "prompt_tokens_cached": sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers),
        "image_tokens": sum(a["usage"]["prompt_tokens_details"]["image_tokens"] for a in answers),
    }
    for name, amount in total.items():
        assert float(figures[f'kimi_vl_{name}_total{{model="kimi"}}']) == amount
    assert float(figures['kimi_vl_num_requests_running{model="kimi"}']) == 0
    hits, queries = (float(figures[f'kimi_vl_prefix_cache_{one}_total{{model="kimi"}}']) for one in ("hits", "queries"))
    assert 0 <= hits < queries
    assert float(figures['kimi_vl_images_encoded_total{model="kimi"}']) == 3
    # A step may give an answer several tokens, and the first of each comes with its prompt.
    assert 0 < float(figures['kimi_vl_step_batch_size_sum{model="kimi"}']) <= total["generation_tokens"]


def test_a_schema_is_followed_and_openai_s_client_parses_it(server):
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")

    class Receipt(pydantic.BaseModel):
        total: int
        paid: bool

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for seed in range(3):
            answer = client.chat.completions.parse(
                model="x", messages=HI, response_format=Receipt, temperature=1.5, seed=seed, max_tokens=200
            )
            if answer.choices[0].finish_reason == "stop":
                assert isinstance(answer.choices[0].message.parsed.total, int)
    plain = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}}
    assert server.ask(**plain)["choices"][0]["message"]["content"].strip() == "null"
    assert text_of(server.stream(guided_choice=["ja"])) == "ja"
    broken = server.post("/v1/chat/completions", messages=HI, guided_json={"contains": 1})
    assert broken.status_code == 400 and broken.json()["error"]["param"] == "guided_json"
