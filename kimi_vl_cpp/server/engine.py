"""The seam between HTTP and the model: streams of `KimiVL` iterated by worker threads, their events on the event loop.

Owns the queue before the workers: first come, first served for each key, the keys in turn. The only file that runs
answers (one of them is in runs.py); it knows no HTTP and no JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from ..errors import Cancelled
from ..types import Response
from ..version import __version__
from .errors import Refused, unavailable
from .metrics import Metrics
from .runs import Event, Run
from .settings import Settings
from .trace import Trace

if TYPE_CHECKING:
    from ..generation.stream import PieceStream
    from ..model import KimiVL

_T = TypeVar("_T")
N_WORKERS = 2
"""Threads that prepare requests: pictures, tokens."""
_STUCK_S = 60.0


class Engine:
    """Everything that runs on one open model."""

    def __init__(self, model: KimiVL, settings: Settings, metrics: Metrics) -> None:
        """To be made on the event loop. Raises BadRequest where the trace cannot be written."""
        self.model = model
        self.trace = Trace(settings.trace) if settings.trace else None
        self.settings = settings
        self.runs: dict[str, list[Run]] = {}
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queued: OrderedDict[str, deque[Run]] = OrderedDict()
        self._running: set[Run] = set()
        self._n_preparing = 0
        self._pool = ThreadPoolExecutor(settings.max_running, "answer")
        self._workers = ThreadPoolExecutor(N_WORKERS, "prepare")
        self._last_progress = time.monotonic()
        self._ended: deque[float] = deque(maxlen=32)
        self._stopped = threading.Event()
        conductor = model.loaded.conductor
        conductor.watch(self._computed)
        self._driver = threading.Thread(target=conductor.drive, args=(self._stopped.is_set,), name="drive", daemon=True)
        self._driver.start()

    def _computed(self, work: str, began: float, ended: float, n: int) -> None:
        """A step, a layer, a block or a mask that has been computed. In the thread that computes."""
        if work == "decode":
            self._metrics.step(n)
        elif work == "mask":
            self._metrics.mask(ended - began)
        if self.trace is not None:
            self.trace.work(work, began, ended, n)

    # Numbers

    @cached_property
    def fingerprint(self) -> str:
        """Changes with everything that changes the bits of an answer: weights, KV type, instruction set, version."""
        loaded = self.model.loaded
        digest = hashlib.sha256(f"{loaded.kv_type} {sorted(loaded.engine.config.items())}".encode())
        for path in (loaded.files.text, loaded.files.mmproj):
            if path is not None:
                digest.update(f" {path.stat().st_size} ".encode())
                with path.open("rb") as file:
                    digest.update(file.read(1 << 20))
        return f"kvl-{__version__}-{digest.hexdigest()[:8]}"

    def describe(self, metrics: Metrics) -> None:
        """Adds what is known here to the metrics. All of it is read without waiting for the core."""
        conductor, images = self.model.loaded.conductor, self.model.loaded.image_cache
        index, disk = conductor.index, conductor.index.disk
        metrics.begin()
        metrics.gauge("num_requests_running", "Answers being computed.", lambda: self.n_running)
        metrics.gauge("num_requests_waiting", "Answers that wait.", lambda: self.n_waiting)
        metrics.gauge(
            "num_requests_swapped", "Answers that wait to go on, without memory.", lambda: conductor.n_swapped
        )
        metrics.count("num_preemptions", "Times that an answer's memory went to others.", lambda: conductor.n_preempted)
        metrics.gauge("image_cache_bytes", "Memory of encoded pictures.", lambda: images.n_bytes)
        metrics.gauge("kv_cache_bytes", "Memory of positions, under way and kept.", lambda: index.pool.bytes_in_use)
        metrics.gauge("kv_cache_budget_bytes", "Memory that positions may take.", lambda: index.pool.budget)
        metrics.gauge(
            "kv_cache_usage_perc",
            "Share of that memory which answers under way hold; 1 is all of it.",
            lambda: index.bytes_held / max(index.pool.budget, 1),
        )
        metrics.gauge("block_store_bytes", "Memory of positions that are kept to be found.", lambda: index.bytes_kept)
        metrics.gauge(
            "disk_cache_bytes", "Bytes of the cache folder.", lambda: 0 if disk is None else disk.store.n_bytes
        )
        metrics.count("mm_cache_queries", "Pictures that were looked for.", lambda: images.n_looked_up)
        metrics.count("mm_cache_hits", "Pictures that were encoded already.", lambda: images.n_found)
        metrics.count("images_encoded", "Pictures that were encoded.", lambda: images.n_encoded)
        metrics.count("prefix_cache_hits", "Positions of prompts that were held.", lambda: index.counts.hit_positions)
        queries = lambda: index.counts.hit_positions + index.counts.missed_positions  # noqa: E731
        metrics.count("prefix_cache_queries", "Positions of prompts that were looked for.", queries)
        metrics.count("kv_pages_evicted", "Pages of positions that made room.", lambda: index.counts.evicted_pages)

    @property
    def image_cache_bytes(self) -> int:
        """Memory that encoded pictures take."""
        return self.model.loaded.image_cache.n_bytes

    def is_encoded(self, key: str) -> bool:
        """Whether the embeddings of a picture are held."""
        return self.model.loaded.image_cache.holds(key)

    @property
    def n_running(self) -> int:
        """Answers being computed."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Answers that are prepared or queued."""
        return self._n_preparing + sum(len(runs) for runs in self._queued.values())

    @property
    def stuck(self) -> bool:
        """Whether nothing has moved for a minute while there was work."""
        busy = any(not run.paused for run in list(self._running))
        return busy and time.monotonic() - self._last_progress > _STUCK_S

    @property
    def retry_after(self) -> float:
        """Seconds after which a place in the queue may be free, from the speed at which answers ended lately."""
        if len(self._ended) < 2:
            return 2.0
        return (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)

    def note_progress(self) -> None:
        """Something moved."""
        self._last_progress = time.monotonic()

    # The way of a request

    def admit(self, request_id: str, key: str, n: int = 1) -> tuple[list[Run], asyncio.Queue[tuple[int, Event]]]:
        """Places in the queue for the n answers to one request, and where their events come.

        Raises Refused: 503 when the queue is full, 429 when the key has too many.
        """
        self._refuse_more(key, n)
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        runs = [Run(self, key, index, events) for index in range(n)]
        self.runs[request_id] = runs
        self._n_preparing += n
        return runs, events

    def _refuse_more(self, key: str, n: int) -> None:
        settings = self.settings
        free = max(0, settings.max_running - self.n_running)
        if self.n_waiting + n > settings.max_queue + free:
            self._metrics.rejected("queue_full")
            raise unavailable(
                f"the queue is full: {self.n_waiting} requests wait, as many as are let in",
                "serve.queue_full",
                self.retry_after,
            )
        if settings.max_per_key:
            n_own = sum(run.key == key for runs in self.runs.values() for run in runs)
            if n_own + n > settings.max_per_key:
                self._metrics.rejected("per_key")
                raise Refused(
                    429,
                    f"this key has {n_own} requests under way, at most {settings.max_per_key} are let in",
                    "serve.too_many",
                    headers={"Retry-After": str(round(min(60, max(1, self.retry_after))))},
                )

    async def prepare(self, function: Callable[[], _T]) -> _T:
        """`function()` in one of the threads that prepare requests."""
        return await self._loop.run_in_executor(self._workers, function)

    def enqueue(self, run: Run, stream: PieceStream) -> None:
        """Puts a prepared run into the queue; it starts when its turn comes. On the event loop."""
        run.stream = stream
        self._n_preparing -= 1
        if run.end_reason is not None:
            self._finish_unstarted(run)
            return
        run.state, run.queued = "queued", time.perf_counter()
        self._queued.setdefault(run.key, deque()).append(run)
        if self.settings.max_queue_s:
            run.waiting_timer = self._loop.call_later(self.settings.max_queue_s, self._waited_too_long, run)
        self._start_more()

    def release(self, request_id: str) -> None:
        """Forgets a request: its runs end if they have not ended. On the event loop."""
        for run in self.runs.pop(request_id, ()):
            if run.state == "preparing" and run.stream is None:
                self._n_preparing -= 1
                run.state = "ended"
            elif run.state != "ended":
                self._metrics.cancelled(run.state)
                run.end("disconnected")

    def withdraw(self, run: Run) -> None:
        """Takes a run out of the queue, where it is still there."""
        if run.state == "queued":
            self._loop.call_soon_threadsafe(self._withdraw, run)

    def _withdraw(self, run: Run) -> None:
        waiting = self._queued.get(run.key)
        if waiting is None or run not in waiting:
            return
        waiting.remove(run)
        if not waiting:
            del self._queued[run.key]
        self._finish_unstarted(run)

    def _finish_unstarted(self, run: Run) -> None:
        assert run.stream is not None
        run.stream.close()
        run.stop_waiting()
        self._ended_run(run)
        reason = run.end_reason
        if reason == "queue":
            self._metrics.rejected("queue_time")
            run.give(unavailable("the request waited too long for its turn", "serve.queue_time", self.retry_after))
        elif reason == "timeout":
            run.give(unavailable("the request reached its time limit while it waited", "serve.timeout", 5))
        else:
            run.give(Cancelled("the request was cancelled while it waited", "request.cancelled"))

    def _waited_too_long(self, run: Run) -> None:
        if run.state == "queued":
            run.end("queue")

    def _start_more(self) -> None:
        """Starts queued runs while there is room, one key after the other."""
        while self._queued and len(self._running) < self.settings.max_running:
            key, waiting = next(iter(self._queued.items()))
            run = waiting.popleft()
            del self._queued[key]
            if waiting:
                self._queued[key] = waiting  # behind the other keys
            self._running.add(run)
            run.stop_waiting()
            self.note_progress()
            self._pool.submit(run.work)

    def finished(self, run: Run, outcome: Event) -> None:
        """A worker thread has ended a run."""
        with suppress(RuntimeError):  # the loop is closed: no one is waiting
            self._loop.call_soon_threadsafe(self._finish, run, outcome)

    def _ended_run(self, run: Run) -> None:
        run.state = "ended"
        if self.trace is not None:
            name = next((one for one, runs in self.runs.items() if run in runs), "left")
            self.trace.answer(f"{name} {run.index}", run.history, run.pieces, reason=run.end_reason)

    def _finish(self, run: Run, outcome: Event) -> None:
        self._ended_run(run)
        self._running.discard(run)
        now = time.perf_counter()
        self._ended.append(now)
        if isinstance(outcome, Response):
            first = run.first_token - run.arrived if run.first_token else 0.0
            total = now - run.arrived
            self._metrics.answered(outcome, run.key, run.queue_s, total, first, same_prompt=run.index > 0)
            assert run.stream is not None
            if run.stream.thinking_closed_by:
                self._metrics.thinking_closed(run.stream.thinking_closed_by)
        run.give(outcome)
        self._start_more()

    def post(self, events: asyncio.Queue[tuple[int, Event]], event: tuple[int, Event]) -> None:
        """Puts an event into a queue of the loop, from any thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(events.put_nowait, event)

    # The end

    @property
    def idle(self) -> bool:
        """Whether no answer is under way or waiting."""
        return not self._running and not self.n_waiting

    def end_all(self, reason: str) -> None:
        """Ends every run."""
        for runs in list(self.runs.values()):
            for run in runs:
                run.end(reason)

    def close(self) -> None:
        """Ends every run, waits for the threads and frees the model."""
        self.stop()
        self.model.close()

    def stop(self) -> None:
        """Ends every run and waits for the threads."""
        self.end_all("shutdown")
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._stopped.set()
        self.model.loaded.conductor.wake()
        self._driver.join()
        if self.trace is not None:
            self.trace.close()
