"""What `kimi-vl bench` times: prompts, decoding, pictures. One call of `Bench.sample` is one measurement of one test.

Inputs are drawn once from fixed seeds: the same test always sees the same token ids and the same noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import _core
from ..errors import BadRequest
from ..files import model_files
from ..generation.adapters import Lora, index_of, load_adapters
from ..generation.raw import RawCore, RawSession
from ..machine.memory import check_memory
from .work import Machine, TextCost, VisionCost, Work

PROBE_SECONDS = 0.2
_WARM_PROMPT = 256  # tokens: enough to touch every expert


@dataclass(frozen=True)
class Test:
    """One row. kind: "prefill", "warm" (the same prompt, held in memory), "decode" or "picture". streams: answers that
    are decoded together. For pictures width and height as asked for."""

    __test__: ClassVar[bool] = False  # nothing for pytest to collect

    kind: str
    n: int = 0
    depth: int = 0
    width: int = 0
    height: int = 0
    streams: int = 1

    @property
    def name(self) -> str:
        """As peers spell it too: "pp512", "tg64 @ d4096"; "warm512", "tg64 x4", "image 896x896"."""
        if self.kind == "picture":
            return f"image {self.width}x{self.height}"
        name = {"prefill": "pp", "warm": "warm", "decode": "tg"}[self.kind] + str(self.n)
        together = f" x{self.streams}" if self.streams > 1 else ""
        return name + together + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_forks(self) -> int:
        """Sequences that it forks off that of its depth."""
        return 1 if self.kind == "warm" else self.streams if self.streams > 1 else 0

    @property
    def unit(self) -> str:
        """Of every figure of the test: "t/s" (more is better) or "s" (less is better)."""
        return "s" if self.kind in ("picture", "warm") else "t/s"


@dataclass
class Row:
    """What was measured of a test. samples: in the test's unit, in the order taken."""

    test: Test
    work: Work
    samples: list[float]
    probes: list[Machine]
    n_patches: int = 0
    n_tokens: int = 0

    @property
    def machine(self) -> Machine:
        """The machine in the minutes of this row: the median of its probes."""
        return median_machine(self.probes)

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    def figure(self, seconds: float) -> float:
        """Seconds of one sample in the unit of the test."""
        return seconds if self.test.unit == "s" else self.test.n * self.test.streams / seconds

    def ceiling(self) -> tuple[float, str]:
        """The best figure that the machine allows, and what bounds it."""
        seconds, bound = self.machine.seconds(self.work)
        return self.figure(seconds), bound

    @property
    def share(self) -> float:
        """The median as a share of the ceiling: 1.0 is as fast as the machine can be."""
        best = self.ceiling()[0]
        return best / self.median if self.test.unit == "s" else self.median / best


def median_machine(probes: list[Machine]) -> Machine:
    """The median of each measure."""
    return Machine(
        read_gb_s=statistics.median(p.read_gb_s for p in probes),
        int8_gops=statistics.median(p.int8_gops for p in probes),
        f32_gops=statistics.median(p.f32_gops for p in probes),
        bf16_gops=statistics.median(p.bf16_gops for p in probes),
    )


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How the model is opened, as `KimiVL` documents it. n_ctx: None for what the tests need."""

    n_threads: int = 0
    isa: str = "auto"
    kv_type: str = "auto"
    n_ctx: int | None = None
    lora: Lora | None = None


class Bench:
    """An open model and the state of its tests. Raises what _core raises, ContextFull and OutOfMemory among it."""

    def __init__(
        self,
        model: str,
        mmproj: str | None,
        tests: list[Test],
        options: BenchOptions,
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        pictures = any(test.kind == "picture" for test in tests)
        self.files = model_files.resolve(model, mmproj)
        room = max((test.depth + test.n for test in tests), default=0) if options.n_ctx is None else options.n_ctx
        check_memory(self.files, room)
        vision: Path | None = self.files.mmproj if pictures or options.lora is not None else None
        self.core = RawCore.open(
            self.files.text, vision, n_threads=options.n_threads, isa=options.isa, kv_type=options.kv_type
        )
        engine = self.core.engine
        self.core.adapter = index_of(load_adapters(engine, options.lora).always)
        self.config: dict[str, Any] = engine.config
        if pictures and not self.config["has_vision"]:
            raise BadRequest(
                f"{self.files.text}: --image needs a vision file. {self.files.why_no_mmproj}", "model.no_vision"
            )
        self.n_threads = int(self.config["n_threads"])
        self.isa = str(self.config["isa"])
        self._n_ctx, self._probe_seconds = options.n_ctx, probe_seconds
        self._sessions: dict[int, RawSession] = {}
        self._warm: set[str] = set()
        self._text = TextCost(self.config, engine.gguf.tensors, engine.kv_bytes_per_token(options.kv_type))
        vision_file = engine.vision_gguf
        self._vision = None if vision_file is None else VisionCost(self.config, vision_file.tensors)
        self.keep_depths = False  # whether the cache of a depth stays when another one is measured
        self._n_forks = max((test.n_forks for test in tests), default=0)
        self._room: dict[int, int] = {}
        for test in tests:
            if test.kind != "picture":
                self._room[test.depth] = max(self._room.get(test.depth, 0), test.depth + test.n)

    def close(self) -> None:
        """Frees the model."""
        self._sessions.clear()
        self.core.close()

    def row(self, test: Test) -> Row:
        """The test with its work counted and nothing measured."""
        if test.kind == "prefill":
            return Row(test, self._text.step(test.n, test.depth), [], [])
        if test.kind == "warm":
            return Row(test, self._text.step(1, test.depth + test.n - 1), [], [])
        if test.kind == "decode":
            return Row(test, self._text.decoding(test.n, test.depth, test.streams), [], [])
        assert self._vision is not None
        height, width, _ = self._noise(test).shape
        patch, merge = int(self.config["patch_size"]), int(self.config["merge"])
        n_patches = (height // patch) * (width // patch)
        n_tokens = n_patches // merge**2
        return Row(test, self._vision.picture(n_patches, n_tokens), [], [], n_patches, n_tokens)

    def probe(self) -> Machine:
        """Measures the machine, which takes some tenths of a second."""
        n, seconds = self.n_threads, self._probe_seconds
        return Machine(
            read_gb_s=_core.bench.read_bandwidth(n, seconds),
            int8_gops=_core.bench.int8_peak(self.isa, n, seconds / 2),
            f32_gops=_core.bench.f32_peak(self.isa, n, seconds / 2),
            bf16_gops=_core.bench.bf16_peak(self.isa, n, seconds / 2),
        )

    def prepare(self, test: Test, tell: Callable[[str], None]) -> None:
        """Everything that a sample must not pay for: the cache filled to the depth, pages read, kernels warm."""
        if test.kind == "picture":
            if "picture" not in self._warm:
                tell("warming up")
                patch = int(self.config["patch_size"]) * int(self.config["merge"])
                self.core.encode_image(np.zeros((patch * 4, patch * 4, 3), np.uint8))
                self._warm.add("picture")
            return
        if test.depth not in self._sessions:
            if not self.keep_depths:
                self._sessions.clear()
            room = self._n_ctx if self._n_ctx is not None else self._room[test.depth]
            session = self.core.session(room, self._n_forks)
            if test.depth:
                tell(f"filling the cache to {test.depth}")
                session.prefill(
                    [self._ids(test.depth, 1)],
                    "none",
                    lambda done, total: tell(f"filling the cache: {done} of {total}"),
                )
            self._sessions[test.depth] = session
        if test.name not in self._warm:
            tell("warming up")
            session = self._sessions[test.depth]
            session.truncate(test.depth)
            if test.kind == "decode":
                self._decode(session, min(test.n, 4), test.streams)
            else:
                session.prefill([self._ids(min(test.n, _WARM_PROMPT), 2)], "last")
            self._warm.add(test.name)

    def sample(self, row: Row) -> float:
        """One measurement, appended to the row. `prepare` has been called."""
        test = row.test
        if test.kind == "picture":
            pixels = self._noise(test)
            started = time.perf_counter()
            self.core.encode_image(pixels)
            seconds = time.perf_counter() - started
        else:
            session = self._sessions[test.depth]
            session.truncate(test.depth)
            ids = self._ids(test.n, 2)
            if test.kind == "warm":
                session.prefill([ids], "last")
            started = time.perf_counter()
            if test.kind == "prefill":
                session.prefill([ids], "last")
            elif test.kind == "warm":
                again = session.fork()
                again.truncate(test.depth + test.n - 1)
                again.prefill([ids[-1:]], "last")
            else:
                self._decode(session, test.n, test.streams)
            seconds = time.perf_counter() - started
        figure = row.figure(max(seconds, 1e-9))
        row.samples.append(figure)
        return figure

    def _decode(self, session: RawSession, n: int, streams: int) -> None:
        """n steps of `streams` sequences that go on from the session's positions, with different tokens."""
        if streams == 1:
            for token in self._ids(n, 3).tolist():
                session.decode(token)
            return
        sessions = [session.fork() for _ in range(streams)]
        for tokens in zip(*(self._ids(n, 3 + index).tolist() for index in range(streams)), strict=True):
            self.core.decode(list(zip(sessions, tokens, strict=True)))

    def _ids(self, n: int, seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.random.default_rng(seed).integers(0, int(self.config["n_vocab"]), n).astype(np.int32)

    def _noise(self, test: Test) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Padded as the image processor would, to whole tokens."""
        step = int(self.config["patch_size"]) * int(self.config["merge"])
        height, width = -(-test.height // step) * step, -(-test.width // step) * step
        return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
