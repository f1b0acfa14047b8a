"""What /metrics shows is what the scheduler, the caches and the core did. The core answers by script."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import fake_core
import pytest
from server_support import RunningServer, with_picture
from waiting import wait_until

from kimi_vl_cpp.model import KimiVL

SLOW_S = 0.05
LONG = [{"role": "user", "content": "word " * 180}]


@pytest.fixture
def load(script, tmp_path):
    path = tmp_path / "fake-Instruct.gguf"
    path.write_bytes(b"fake")
    return lambda **options: KimiVL(str(path), **{"n_ctx": 1024, **options})


def metric(server: RunningServer, name: str) -> float:
    """A value of /metrics, which has to be there."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f'kimi_vl_{name}{{model="fake-Instruct"}} ')]
    return float(value)


def test_memory_of_positions_is_held_by_answers_under_way_and_kept_at_rest(script, load):
    script.answer, script.decode_s = "x" * 300, SLOW_S
    with RunningServer(load) as server, ThreadPoolExecutor(1) as pool:
        assert metric(server, "kv_cache_usage_perc") == metric(server, "block_store_bytes") == 0
        answer = pool.submit(server.ask)
        wait_until(lambda: metric(server, "kv_cache_usage_perc") > 0, "an answer holds memory")
        budget = metric(server, "kv_cache_budget_bytes")
        assert metric(server, "kv_cache_usage_perc") <= 3 * fake_core.PAGE_BYTES / budget
        script.decode_s = 0.0
        n_positions = answer.result()["usage"]["total_tokens"]
        wait_until(lambda: metric(server, "kv_cache_usage_perc") == 0, "nothing is under way")
        n_pages = -(-n_positions // fake_core.PAGE_POSITIONS)
        assert metric(server, "block_store_bytes") == metric(server, "kv_cache_bytes") == n_pages * fake_core.PAGE_BYTES


def test_pictures_are_looked_for_and_found(script, load):
    with RunningServer(load) as server:
        for asked, looked_for, found in (
            (with_picture(1), 1, 0),
            (with_picture(1), 1, 0),  # its positions are held: nobody needs the picture
            ([{"role": "system", "content": "Be brief."}, *with_picture(1)], 2, 1),
            (with_picture(2), 3, 1),
        ):
            server.ask(asked, max_tokens=2)
            assert (metric(server, "mm_cache_queries_total"), metric(server, "mm_cache_hits_total")) == (
                looked_for,
                found,
            )
        assert metric(server, "images_encoded_total") == len(script.encoded) == 2


def test_steps_are_those_of_the_core(script, load):
    with RunningServer(load) as server:
        server.ask(n=3, max_tokens=9)
        server.ask(LONG)
        assert metric(server, "steps_total") == metric(server, "step_batch_size_count") == len(script.steps) > 0
        assert metric(server, "step_batch_size_sum") == sum(script.steps)


def test_masks_are_counted_for_what_a_grammar_holds(script, load):
    pytest.importorskip("llguidance", reason="needs the extra [server]")
    script.answer = None
    with RunningServer(load) as server:
        server.ask(max_tokens=9)
        assert metric(server, "mask_seconds_count") == 0
        answer = server.ask(guided_choice=["seven", "eleven"])
        assert answer["choices"][0]["message"]["content"] in ("seven", "eleven")
        assert answer["usage"]["completion_tokens"] <= metric(server, "mask_seconds_count") <= len("eleven") + 1
        assert metric(server, "mask_seconds_sum") > 0


def test_answers_whose_memory_goes_to_others_are_counted_and_wait_until_it_is_back(script, load):
    script.answer = None
    nearly_a_page = [{"role": "user", "content": "word " * 12}]
    asked = {"messages": nearly_a_page, "seed": 1, "max_tokens": 250, "ignore_eos": True, "loop_guard": False}
    with RunningServer(load) as server:
        alone = server.ask(**asked)["choices"][0]["message"]
        assert metric(server, "num_preemptions_total") == metric(server, "num_requests_swapped") == 0
    script.decode_s = SLOW_S
    memory = 4 * fake_core.PAGE_BYTES
    with RunningServer(lambda: load(n_ctx=384, kv_memory=memory)) as server, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.ask, cache_salt=str(n), **asked) for n in range(3)]
        wait_until(lambda: metric(server, "num_requests_swapped") > 0, "one waits for its memory")
        script.decode_s = 0.0
        assert [one.result()["choices"][0]["message"] for one in answers] == [alone] * 3
        assert metric(server, "num_preemptions_total") > 0 and metric(server, "num_requests_swapped") == 0


def test_the_cache_folder_is_measured(script, load, tmp_path):
    folder = tmp_path / "cache"
    with RunningServer(load) as server:
        server.ask(LONG)
        assert metric(server, "disk_cache_bytes") == 0
    with RunningServer(lambda: load(cache_dir=folder)) as server:
        server.ask(LONG, max_tokens=4)
        wait_until(lambda: metric(server, "num_requests_running") == 0, "its last page is written")
        assert metric(server, "disk_cache_bytes") == sum(path.stat().st_size for path in folder.rglob("*.*")) > 0
