"""A conductor over the core that answers by script, in a time of its own, and what its jobs would give alone."""

from __future__ import annotations

import time
from pathlib import Path

import fake_core
import numpy as np

from kimi_vl_cpp.cache.disk import DiskStore
from kimi_vl_cpp.cache.images import ImageCache
from kimi_vl_cpp.cache.keys import Picture, Positions
from kimi_vl_cpp.scheduler.conductor import Conductor
from kimi_vl_cpp.scheduler.gate import Gate
from kimi_vl_cpp.scheduler.job import Job, JobSpec
from kimi_vl_cpp.scheduler.resources import Resources

ROOT = b"root"
N_CTX = 4000
PIXELS = {name: np.full((28, 28 * 100, 3), index, np.uint8) for index, name in enumerate(("a", "b"))}


class Sampled:
    """Chooses with a sampler alone: in the core, or where the logits are."""

    logprob = masked = None

    def __init__(self, seed: int, in_core: bool = True) -> None:
        self.sampler = fake_core.Sampler(seed=seed)
        self.core_sampler = self.sampler if in_core else None

    def choose(self, session: fake_core.Session) -> int:
        return session.sample(self.sampler)

    def force(self, session: fake_core.Session, token: int) -> int:
        return token


class Machine:
    """A conductor, its core, and a clock that only the core's work moves."""

    def __init__(self, n_pages: int = 1000, *, real_time: bool = False, folder: Path | None = None, **options) -> None:
        self.script = fake_core.Script()
        fake_core.SCRIPT = self.script
        self.script.answer = None
        self.script.chunk = 2048
        self.script.sleep = time.sleep if real_time else self._sleep
        self.now = 0.0
        self.engine = fake_core.Engine("fake.gguf")
        self.pool = fake_core.PagePool(self.engine, n_pages * fake_core.PAGE_BYTES)
        self.gate = Gate(self.engine.close)
        store = None if folder is None else DiskStore(folder, ROOT)
        self.images = ImageCache(1 << 30, store)
        clock = time.perf_counter if real_time else lambda: self.now
        resources = Resources(
            engine=self.engine,
            pool=self.pool,
            features=self.images,
            new_session=self._new_session,
            store=store,
            clock=clock,
        )
        self.conductor = Conductor(resources, self.gate, **options)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _new_session(self, adapter: int) -> fake_core.Session:
        return fake_core.Session(self.engine, N_CTX, pool=self.pool, adapter=adapter)

    def start(self, items: list, n: int = 5, seed: int = 0, **options) -> Job:
        chooser = options.pop("chooser", None) or Sampled(seed)
        options.setdefault("pixels", {digest: lambda pixels=pixels: pixels for digest, pixels in PIXELS.items()})
        return self.conductor.submit(Job(Positions(ROOT, items), JobSpec(chooser=chooser, max_new_tokens=n, **options)))

    def read(self, job: Job, n: int = 1 << 30) -> list[int]:
        """Up to n more tokens of a job."""
        found: list[int] = []
        while len(found) < n and (token := self.conductor.next_token(job)) is not None:
            found.append(token)
        return found

    def check(self) -> None:
        """What must be true whenever nobody is inside."""
        index = self.conductor.index
        self.gate.call(self.conductor._turns.tidy)
        nodes = list(index.nodes())
        holding = [job.holding.nodes for job in self.conductor._turns.jobs if job.holding is not None]
        assert len(nodes) == len(index)
        assert all(node.n_users == sum(held.count(node) for held in holding) for node in nodes)
        assert self.pool.most_in_use <= self.pool.budget
        assert index.bytes_kept == sum(not node.n_users for node in nodes) * self.pool.page_bytes
        if not self.conductor._turns.jobs:
            assert self.pool.n_pages == len(index)


def alone(items: list, n: int = 5, seed: int = 0) -> list[int]:
    """The tokens of a job that nothing was cached for and nobody ran beside."""
    machine = Machine()
    return machine.read(machine.start(items, n, seed))


def prompt(start: int, n: int) -> list[int]:
    return [(start + i * i) % 250 for i in range(n)]


KINDS = [prompt(0, 100), prompt(0, 300), prompt(0, 300)[:256] + [7] * 100, [1, Picture("a", 100), *prompt(3, 80)]]
ANSWERS: dict[tuple[int, int], list[int]] = {}


def answer_of(kind: int, seed: int) -> list[int]:
    if (kind, seed) not in ANSWERS:
        ANSWERS[kind, seed] = alone(KINDS[kind], 200, seed)
    return ANSWERS[kind, seed]
