"""A core without a network: it says what a test tells it to say, and writes down what it was asked to do.

Same interface as the part of `kimi_vl_cpp._core` that the Python layer uses. `install(monkeypatch)` puts it in the
real core's place. Logits depend on all rows and their forms, so a wrongly reused page changes the answer.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from kimi_vl_cpp._core import PAGE_POSITIONS
from kimi_vl_cpp.errors import BadRequest, ContextFull, OutOfMemory

__all__ = ["PAGE_POSITIONS"]

HIDDEN = 8
N_LAYERS = 10  # also blocks of the tower: pieces that a task is done in
PAGE_BYTES = 1000
SPECIAL = [
    "[BOS]",
    "[EOS]",
    "<|im_end|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_system|>",
    "<|im_middle|>",
    "<|media_start|>",
    "<|media_content|>",
    "<|media_end|>",
    "<|media_pad|>",
]
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def byte_tokens() -> list[bytes]:
    """The 256 single-byte tokens in their GPT-2 spelling: id = position here."""
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    spelling = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [spelling[byte].encode() for byte in range(256)]


N_VOCAB = 256 + len(SPECIAL)


class Script:
    """What the fake model answers and what it has seen. answer: the text of the next answers, or None for noise that
    depends on the timeline. decode_s, prefill_s, encode_s: how long a step, a prefill and a picture take;
    prefill_row_s: a row in a layer."""

    def __init__(self) -> None:
        self.answer: str | None = "Hello world"
        self.encoded: list[str] = []
        self.prefilled: list[int] = []
        self.sessions = 0
        self.max_inside = 0
        self.steps: list[int] = []  # rows of each step
        self.decode_s = self.prefill_s = self.prefill_row_s = self.encode_s = 0.0
        self.sleep: Callable[[float], None] = time.sleep
        self.chunk = 64
        self.fail_at: Callable[[str, int], None] = lambda stage, done: None
        self.fail_row: Callable[[Session], None] = lambda session: None
        self.metadata: dict[str, Any] = {"general.name": "Kimi VL Fake Instruct"}
        self.has_vision = True
        self.context_length = 4096


SCRIPT = Script()


def tensor(name: str, shape: tuple[int, ...]) -> types.SimpleNamespace:
    return types.SimpleNamespace(name=name, shape=shape, offset=0, n_bytes=0, shard=0)


class GGUFFile:
    def __init__(self, path: str) -> None:
        self.path = path
        self.version, self.n_shards, self.file_bytes, self.warnings = 3, 1, 1000, []
        self.tensors = [tensor("token_embd.weight", (N_VOCAB, HIDDEN))]
        self._metadata = {
            "general.architecture": "deepseek2",
            "deepseek2.block_count": 2,
            "deepseek2.context_length": SCRIPT.context_length,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "kimi-k2",
            "tokenizer.ggml.tokens": [*byte_tokens(), *(name.encode() for name in SPECIAL)],
            "tokenizer.ggml.token_type": [1] * 256 + [3] * len(SPECIAL),
            "tokenizer.ggml.merges": [],
            **SCRIPT.metadata,
        }
        if SCRIPT.has_vision:
            self.tensors.append(tensor("v.patch_embd.weight", (1,)))

    def keys(self) -> list[str]:
        return list(self._metadata)

    def get(self, key: str) -> Any:
        value = self._metadata.get(key)
        return [item.decode() for item in value] if key == "tokenizer.ggml.tokens" else value

    def get_bytes_list(self, key: str) -> list[bytes] | None:
        value = self._metadata.get(key)
        return value if isinstance(value, list) and (not value or isinstance(value[0], bytes)) else None


def backends() -> list[str]:
    return ["cpu"]


class Engine:
    def __init__(
        self,
        path: str,
        mmproj: str | None = None,
        n_threads: int = 0,
        isa: str = "auto",
        activations: str = "int8",
        backend: str = "cpu",
    ) -> None:
        self.gguf = GGUFFile(path)
        self.vision_gguf = None
        self.closed = False
        self.inside = 0
        self.lock = threading.Lock()
        self.config = {
            "name": SCRIPT.metadata.get("general.name"),
            "n_vocab": N_VOCAB,
            "hidden_size": HIDDEN,
            "context_length": SCRIPT.context_length,
            "has_vision": SCRIPT.has_vision,
            "vision_hidden_size": 6,
            "patch_size": 14,
            "merge": 2,
            "max_grid_side": 512,
            "n_threads": n_threads or 2,
            "num_hidden_layers": N_LAYERS,
            "vision_layers": N_LAYERS,
            "isa": isa,
        }

    def kv_bytes_per_token(self, kv_type: str = "auto") -> int:
        return PAGE_BYTES // PAGE_POSITIONS

    def _enter(self) -> None:
        if self.closed:
            raise BadRequest("the engine is closed", "engine.closed")
        with self.lock:
            self.inside += 1
            SCRIPT.max_inside = max(SCRIPT.max_inside, self.inside)

    def _leave(self) -> None:
        with self.lock:
            self.inside -= 1

    def piece(self, stage: str, step: int, seconds: float) -> None:
        """Pretends to compute one piece of a stage for `seconds`."""
        self._enter()
        try:
            if seconds:
                SCRIPT.sleep(seconds)
            SCRIPT.fail_at(stage, step)
        finally:
            self._leave()

    def work(self, stage: str, total: int, seconds: float, progress: Callable[[int, int], None] | None) -> None:
        """Pretends to compute `total` units for `seconds`, with progress ten times."""
        for step in range(1, N_LAYERS + 1):
            self.piece(stage, step, seconds / N_LAYERS)
            if progress is not None:
                progress(total * step // N_LAYERS, total)

    def encode_image(self, pixels: np.ndarray, progress: Any = None, adapter: int = -1) -> np.ndarray:
        self.work("encode", N_LAYERS, SCRIPT.encode_s, progress)
        return self.encoded(pixels)

    def encoded(self, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        n_tokens = (height // 28) * (width // 28)
        SCRIPT.encoded.append(hashlib.sha256(pixels.tobytes()).hexdigest())
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:4], "little"))
        return rng.normal(size=(n_tokens, HIDDEN)).astype(np.float32)

    def begin_image(self, pixels: np.ndarray, adapter: int = -1) -> ImageTask:
        return ImageTask(self, pixels)

    def begin_prefill(
        self,
        session: Session,
        parts: list[np.ndarray],
        logits: str = "last",
        expanded: np.ndarray | None = None,
        chunk: int = 0,
    ) -> PrefillTask:
        return PrefillTask(session, session.rows_of(parts, expanded), chunk)

    def decode(self, rows: list[tuple[Session, Any, Sampler | None]]) -> list[Any]:
        self.piece("decode", 1, SCRIPT.decode_s)
        SCRIPT.steps.append(len(rows))
        return [self._decode_row(*row) for row in rows]

    def _decode_row(self, session: Session, tokens: Any, sampler: Sampler | None) -> Any:
        try:
            SCRIPT.fail_row(session)
            drafted = not isinstance(tokens, int)
            found: list[int] = []
            for token in tokens if drafted else [tokens]:
                if found and found[-1] != token:
                    break
                session.append([np.int32(token).tobytes()])
                session.n_decoded += 1
                if sampler is not None:
                    found.append(session.sample(sampler))
        except Exception as error:
            return error.with_traceback(None)  # the frames of a C++ function hold nothing either
        return None if sampler is None else found if drafted else found[0]

    def vision_tower(self, pixels: np.ndarray, progress: Any = None) -> np.ndarray:
        height, width, _ = pixels.shape
        self.work("encode", 1, SCRIPT.encode_s, progress)
        return np.zeros(((height // 14) * (width // 14), 6), dtype=np.float32)

    def close(self) -> None:
        self.closed = True


WRITTEN: dict[bytes, list[bytes]] = {}


class Page:
    def __init__(self, pool: PagePool, rows: list[bytes]) -> None:
        self.pool, self.rows = pool, rows
        pool.live.add(self)

    @property
    def n_filled(self) -> int:
        return len(self.rows)

    def read(self) -> bytes:
        """Stands for the rows, which have any length here; the same for the same ones."""
        handle = hashlib.sha256(b"|".join(self.rows)).digest()
        WRITTEN[handle] = list(self.rows)
        return handle


class PagePool:
    def __init__(self, engine: Engine, budget: int, kv_type: str = "auto") -> None:
        self.engine, self.budget, self.page_bytes, self.kv_type = engine, budget, PAGE_BYTES, "f16"
        self.live: weakref.WeakSet[Page] = weakref.WeakSet()
        self.most_in_use = 0

    @property
    def n_pages(self) -> int:
        return len(self.live)

    @property
    def bytes_in_use(self) -> int:
        return self.n_pages * self.page_bytes

    def page_from(self, rows: bytes, n_filled: int) -> Page:
        found = WRITTEN[bytes(rows)]
        assert len(found) == n_filled
        return self.take(found)

    def take(self, rows: list[bytes]) -> Page:
        """A page with these rows."""
        page = self.take_empty(1)[0]
        page.rows[:] = rows
        return page

    def take_empty(self, n: int) -> list[Page]:
        """n pages, or none."""
        if self.bytes_in_use + n * self.page_bytes > self.budget:
            raise OutOfMemory("no page is free", "memory.kv_pages")
        pages = [Page(self, []) for _ in range(n)]
        self.most_in_use = max(self.most_in_use, self.bytes_in_use)
        return pages


class Session:
    def __init__(
        self, engine: Engine, n_ctx: int, kv_type: str = "auto", pool: PagePool | None = None, adapter: int = -1
    ) -> None:
        SCRIPT.sessions += 1
        self.engine, self.n_ctx, self.adapter = engine, n_ctx, adapter
        self.pool = pool or PagePool(engine, 1 << 40)
        self.table: list[Page] = []
        self.n_past = self.n_decoded = 0

    @property
    def held(self) -> list[bytes]:
        return [row for page in self.table for row in page.rows][: self.n_past]

    @property
    def pages(self) -> list[Page]:
        return list(self.table)

    def adopt(self, pages: list[Page], n_past: int) -> None:
        assert self.n_past == 0 and len(pages) == -(-n_past // PAGE_POSITIONS)
        assert all(page.n_filled == PAGE_POSITIONS for page in pages[:-1]) and all(p.pool is self.pool for p in pages)
        self.table, self.n_past = list(pages), n_past

    def fork(self) -> Session:
        other = Session(self.engine, self.n_ctx, pool=self.pool)
        other.adopt(self.table, self.n_past)
        other.n_decoded = self.n_decoded
        return other

    def append(self, rows: list[bytes]) -> None:
        if self.n_past + len(rows) > self.n_ctx:
            raise ContextFull(f"{len(rows)} more after {self.n_past} of {self.n_ctx}")
        self.reserve(len(rows))
        for row in rows:
            number, offset = divmod(self.n_past, PAGE_POSITIONS)
            self.table[number].rows[offset:] = [row]
            self.n_past += 1

    def reserve(self, n: int) -> None:
        """Takes the pages of n more rows, all or none: a page that anybody else refers to is copied."""
        number, offset = divmod(self.n_past, PAGE_POSITIONS)
        copies = n > 0 and offset > 0 and sys.getrefcount(self.table[number]) > 2
        n_new = max(-(-(self.n_past + n) // PAGE_POSITIONS) - len(self.table), 0)
        taken = self.pool.take_empty(n_new + copies)
        if copies:
            page = taken.pop()
            page.rows[:] = self.table[number].rows[:offset]
            self.table[number] = page
        self.table += taken

    @property
    def logits(self) -> np.ndarray:
        return self._logits(self.n_past)

    def _logits(self, n: int) -> np.ndarray:
        digest = hashlib.sha256(b"".join(self.held[:n])).digest()
        logits = np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=N_VOCAB).astype(np.float32)
        if SCRIPT.answer is not None:
            said = SCRIPT.answer.encode()  # the id of a single byte is the byte
            logits[said[self.n_decoded] if self.n_decoded < len(said) else 256 + SPECIAL.index("<|im_end|>")] = 100.0
        return logits

    def rows_of(self, parts: list[np.ndarray], expanded: np.ndarray | None) -> list[bytes]:
        """What the parts leave in the cache: a position in the other form is another position."""
        new: list[bytes] = []
        for part in parts:
            assert part.dtype in (np.int32, np.float32) and part.flags.c_contiguous
            assert part.ndim == (1 if part.dtype == np.int32 else 2)
            new.extend(row.tobytes() for row in part)
        if expanded is not None:
            assert len(expanded) == len(new)
            new = [row + b"expanded" * int(form) for row, form in zip(new, expanded, strict=True)]
        if self.n_past + len(new) > self.n_ctx:
            raise ContextFull(f"{len(new)} more after {self.n_past} of {self.n_ctx}")
        return new

    def prefill(
        self,
        parts: list[np.ndarray],
        logits: str = "last",
        progress: Any = None,
        chunk: int = 0,
        expanded: np.ndarray | None = None,
    ) -> Any:
        start = self.n_past
        task = PrefillTask(self, self.rows_of(parts, expanded), chunk)
        while not task.advance():
            if progress is not None:
                progress(task.n_done, task.n_rows)
        if progress is not None:
            progress(task.n_rows, task.n_rows)
        if logits == "none":
            return None
        if logits == "last":
            return self.logits
        return np.stack([self._logits(n + 1) for n in range(start, self.n_past)])

    def truncate(self, n_past: int) -> None:
        assert 0 <= n_past <= self.n_past
        self.n_past = n_past
        del self.table[-(-n_past // PAGE_POSITIONS) :]

    def decode(self, token: int) -> None:
        self.engine.piece("decode", 1, SCRIPT.decode_s)
        self.append([np.int32(token).tobytes()])
        self.n_decoded += 1

    def sample(self, sampler: Sampler) -> int:
        return sampler.sample(self.logits)


class PrefillTask:
    """A prompt, chunk by chunk, each in N_LAYERS pieces. As in the core, the pages of all its rows are taken when it
    begins, and those without a row go back when it ends early."""

    def __init__(self, session: Session, rows: list[bytes], chunk: int) -> None:
        self.session, self.rows, self.n_rows = session, rows, len(rows)
        self.chunk = min(chunk or SCRIPT.chunk, SCRIPT.chunk)
        self.layer = self.n_done = 0
        session.n_decoded = 0
        session.reserve(self.n_rows)

    @property
    def done(self) -> bool:
        return self.n_done == self.n_rows

    def advance(self, n_layers: int = 1) -> bool:
        for _ in range(n_layers):
            if self.done:
                break
            self.layer += 1
            seconds = SCRIPT.prefill_s / N_LAYERS + SCRIPT.prefill_row_s * self.n_rows
            try:
                self.session.engine.piece("prefill", self.layer, seconds)
            except BaseException:
                self.cancel()
                raise
            if self.layer == N_LAYERS:
                piece = self.rows[self.n_done : self.n_done + self.chunk]
                self.session.append(piece)
                SCRIPT.prefilled.append(len(piece))
                self.n_done += len(piece)
                self.layer = 0
        return self.done

    def cancel(self) -> None:
        self.rows = []
        self.session.truncate(self.session.n_past)


class ImageTask:
    """A picture, in N_LAYERS pieces."""

    def __init__(self, engine: Engine, pixels: np.ndarray) -> None:
        self.engine, self.pixels, self.layer = engine, pixels, 0
        self.result: np.ndarray | None = None

    def advance(self, n_blocks: int = 1) -> bool:
        for _ in range(n_blocks):
            self.layer += 1
            self.engine.piece("encode", self.layer, SCRIPT.encode_s / N_LAYERS)
        if self.layer >= N_LAYERS:
            self.result = self.engine.encoded(self.pixels)
        return self.result is not None


SAMPLER_LIMITS = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 30),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 10.0),
    "repeat_last_n": (0, 1 << 20),
}


class Sampler:
    def __init__(self, seed: int = 0, temperature: float = 1.0, **options: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.temperature = temperature
        self.options = options

    def sample(self, logits: np.ndarray) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        p = np.exp((logits - logits.max()).astype(np.float64) / self.temperature)
        return int(self.rng.choice(len(p), p=p / p.sum()))

    def accept(self, token: int) -> None:
        pass


def install(monkeypatch: Any) -> Script:
    """Puts the fake in the real core's place for one test; returns its script, fresh."""
    import kimi_vl_cpp
    from kimi_vl_cpp.files import opening
    from kimi_vl_cpp.generation import loaded, raw, sampling

    global SCRIPT
    SCRIPT = Script()
    fake = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "kimi_vl_cpp._core", fake)
    monkeypatch.setattr(kimi_vl_cpp, "_core", fake, raising=False)
    for module in (loaded, raw, sampling):
        monkeypatch.setattr(module, "_core", fake)
    monkeypatch.setattr(opening, "GGUFFile", GGUFFile)
    return SCRIPT
