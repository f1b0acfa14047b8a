"""Models from the hub: which files of a repository are taken, and that only whole, verified ones get their names."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import COMMIT, FakeHub, serving

pytest.importorskip("huggingface_hub", reason="needs the extra [hub]")

from kimi_vl_cpp import errors
from kimi_vl_cpp.files.hub import MOST_FAILURES, Choice, Hub, Wanted, choices, parse, pick

REPOSITORY = "someone/Kimi-VL-GGUF"
TEXT, VISION = "Kimi-VL-Q4_K_M.gguf", "mmproj-Kimi-VL-F16.gguf"


def smallest(found: list[Choice]) -> Choice:
    return found[0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    # huggingface_hub keeps what a hub says of agents for the user's later calls: not what this one says
    monkeypatch.setattr(
        "huggingface_hub.constants.AGENT_HARNESSES_PATH", str(tmp_path_factory.mktemp("hf") / "agents"), raising=False
    )
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    data = np.random.default_rng(0).bytes(100_000)
    files = {TEXT: b"GGUF" + data, VISION: data[:5000], "README.md": b"x", "Kimi-VL-Q8_0.gguf": data * 2}
    with serving(FakeHub(REPOSITORY, files)) as hub:
        yield hub


def opened(fake: FakeHub, cache: Path, **options: object) -> Hub:
    return Hub(endpoint=fake.url, cache_dir=cache, offline=False, **options)  # type: ignore[arg-type]


def test_a_model_and_its_vision_file_arrive_where_other_tools_find_them(fake: FakeHub, tmp_path: Path) -> None:
    import huggingface_hub

    seen: list[tuple[str, int, int]] = []
    wanted = Wanted(REPOSITORY, "Q4_K_M")
    path = opened(fake, tmp_path).pull(wanted, smallest, lambda *step: seen.append(step))
    assert path.read_bytes() == fake.files[TEXT] and path.name == TEXT
    assert path.with_name(VISION).read_bytes() == fake.files[VISION]
    assert sorted(p.name for p in path.parent.iterdir()) == [TEXT, VISION]
    assert seen[-1] == (f"{REPOSITORY}/{TEXT}", len(fake.files[TEXT]), len(fake.files[TEXT]))
    found = huggingface_hub.try_to_load_from_cache(REPOSITORY, TEXT, cache_dir=tmp_path)
    assert found == str(path) and path.parent.name == COMMIT
    n = len(fake.downloads())
    assert opened(fake, tmp_path).pull(wanted, smallest) == path and len(fake.downloads()) == n


def test_what_another_tool_downloaded_is_not_downloaded_again(fake: FakeHub, tmp_path: Path) -> None:
    import huggingface_hub

    for name in (TEXT, VISION):
        huggingface_hub.hf_hub_download(REPOSITORY, name, endpoint=fake.url, cache_dir=tmp_path)
    n = len(fake.downloads())
    path = opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert path.read_bytes() == fake.files[TEXT] and len(fake.downloads()) == n


def test_a_hundred_broken_connections_cost_no_byte(fake: FakeHub, tmp_path: Path) -> None:
    fake.break_after = len(fake.files[TEXT]) // 101
    path = opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert path.read_bytes() == fake.files[TEXT]
    starts = [int(r.removeprefix("bytes=").rstrip("-") or 0) for _, p, r in fake.downloads() if p.endswith(TEXT)]
    assert len(starts) > 100 and starts == sorted(set(starts))  # every one goes on where the last one ended
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_connection_that_brings_nothing_is_given_up_and_goes_on_later(fake: FakeHub, tmp_path: Path) -> None:
    fake.break_after = 60_000
    hub, wanted = opened(fake, tmp_path), Wanted(REPOSITORY, "Q4_K_M")

    def stop(_name: str, done: int, _total: int) -> None:
        if done >= 10_000:
            fake.break_after = 0

    with pytest.raises(errors.KimiVLError, match=rf"broke {MOST_FAILURES} times .* goes on at byte 60000") as caught:
        hub.pull(wanted, smallest, stop)
    assert caught.value.code == "hub.connection"
    assert not [path for path in tmp_path.rglob("*.gguf") if "mmproj" not in path.name]
    fake.break_after = None
    fake.requests.clear()
    assert hub.pull(wanted, smallest).read_bytes() == fake.files[TEXT]
    assert [r for _, p, r in fake.downloads() if p.endswith(TEXT)] == ["bytes=60000-"]


def test_a_killed_download_goes_on_where_it_was(fake: FakeHub, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from kimi_vl_cpp.files.hub import Hub, Wanted\n"
        "def kill(name, done, total):\n"
        f"    if name.endswith({TEXT!r}) and done >= 40_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"hub = Hub(endpoint={fake.url!r}, cache_dir={str(tmp_path)!r}, offline=False)\n"
        f"hub.pull(Wanted({REPOSITORY!r}, 'Q4_K_M'), min, kill)\n"
    )
    fake.break_after = 30_000
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not [path for path in tmp_path.rglob("*") if path.name == TEXT]
    fake.break_after = None
    fake.requests.clear()
    path = opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert path.read_bytes() == fake.files[TEXT]
    (again,) = [r for _, p, r in fake.downloads() if p.endswith(TEXT)]
    assert int(again.removeprefix("bytes=").rstrip("-")) >= 30_000


def test_a_server_that_cannot_continue_a_file_sends_it_again(fake: FakeHub, tmp_path: Path) -> None:
    fake.continues = False
    hub, wanted = opened(fake, tmp_path), Wanted(REPOSITORY, "Q4_K_M")

    def cut(_name: str, done: int, _total: int) -> None:
        fake.break_after = None if fake.break_after and done > 20_000 else fake.break_after

    fake.break_after = 30_000
    assert hub.pull(wanted, smallest, cut).read_bytes() == fake.files[TEXT]


def test_bytes_that_changed_on_the_way_never_get_the_name(fake: FakeHub, tmp_path: Path) -> None:
    fake.spoil = True
    with pytest.raises(errors.BadModelFile, match="thrown away") as caught:
        opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert caught.value.code == "hub.checksum"
    digest = hashlib.sha256(fake.files[VISION]).hexdigest()
    assert [path for path in tmp_path.rglob("*") if path.name in (TEXT, VISION, digest, f"{digest}.incomplete")] == []


def test_offline_the_cache_answers_without_a_request(fake: FakeHub, tmp_path: Path) -> None:
    offline = Hub(endpoint=fake.url, cache_dir=tmp_path, offline=True)
    with pytest.raises(errors.BadModelFile, match="HF_HUB_OFFLINE") as caught:
        offline.local_path(Wanted(REPOSITORY, ""), smallest)
    assert caught.value.code == "hub.offline"
    path = opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    fake.requests.clear()
    for wanted in (Wanted(REPOSITORY, "Q4_K_M"), Wanted(REPOSITORY, "")):
        assert offline.local_path(wanted, smallest) == path
        assert opened(fake, tmp_path).local_path(wanted, smallest) == path
    assert fake.requests == [] and offline.cached(Wanted(REPOSITORY, "Q8_0"), smallest) is None


def test_a_token_is_sent_and_asked_for(fake: FakeHub, tmp_path: Path) -> None:
    fake.token = "hf_secret"
    with pytest.raises(errors.BadRequest, match="HF_TOKEN") as caught:
        opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert caught.value.code == "hub.not_found"
    assert opened(fake, tmp_path, token="hf_secret").pull(Wanted(REPOSITORY, "Q4_K_M"), smallest).is_file()


def test_what_is_not_there_is_named(fake: FakeHub, tmp_path: Path) -> None:
    hub = opened(fake, tmp_path)
    with pytest.raises(errors.BadRequest, match="has no file of type Q2_K, there are Q4_K_M, Q8_0"):
        hub.pull(Wanted(REPOSITORY, "Q2_K"), smallest)
    with pytest.raises(errors.BadRequest, match="no such repository"):
        hub.pull(Wanted("someone/else", ""), smallest)
    with pytest.raises(errors.BadRequest, match="holds no GGUF file"):
        pick([], Wanted("someone/else", ""), smallest)


def test_files_of_a_repository_become_choices() -> None:
    sizes = {
        "Kimi-VL-A3B-Thinking-2506-Q4_K_M.gguf": 40,
        "Kimi-VL-A3B-Thinking-2506-Q8_0.gguf": 80,
        "bf16/Kimi-VL-BF16-00001-of-00002.gguf": 100,
        "bf16/Kimi-VL-BF16-00002-of-00002.gguf": 60,
        "Kimi-VL-Q6_K-00001-of-00003.gguf": 60,
        "mmproj-Kimi-VL-Q8_0.gguf": 6,
        "mmproj-Kimi-VL-f16.gguf": 9,
        "imatrix.gguf": 1,
        "README.md": 1,
    }
    found = choices(sizes)
    assert [(one.type, one.n_bytes) for one in found] == [("Q4_K_M", 49), ("Q8_0", 89), ("BF16", 169)]
    assert all(list(one.vision) == ["mmproj-Kimi-VL-f16.gguf"] for one in found)
    assert pick(found, Wanted("a/b", "BF16"), smallest).files.keys() == {
        "bf16/Kimi-VL-BF16-00001-of-00002.gguf",
        "bf16/Kimi-VL-BF16-00002-of-00002.gguf",
    }


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            "hf:ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:q4_k_m",
            Wanted("ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF", "Q4_K_M"),
        ),
        ("a/b", Wanted("a/b", "")),
    ],
)
def test_names_are_read(text: str, want: Wanted) -> None:
    assert parse(text) == want


@pytest.mark.parametrize("text", ["", "hf:", "model", "a/b/c", "../b", "a/b:best", "a/b:", "a b/c", "-a/b"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="OWNER/REPOSITORY") as caught:
        parse(text)
    assert caught.value.code == "hub.name"


@pytest.mark.parametrize("nonsense", [[1, 2], "<html>", {"siblings": 5}])
def test_a_server_that_is_no_hub_is_called_so(fake: FakeHub, tmp_path: Path, nonsense: object) -> None:
    fake.nonsense = nonsense
    with pytest.raises(errors.KimiVLError, match="did not answer as the Hugging Face hub does") as caught:
        opened(fake, tmp_path).pull(Wanted(REPOSITORY, "Q4_K_M"), smallest)
    assert caught.value.code == "hub.connection" and fake.url in str(caught.value)
