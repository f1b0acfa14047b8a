"""A core without a network: it says what a test tells it to say, and writes down what it was asked to do.

Same interface as the part of `kimi_vl_cpp._core` that the Python layer uses. `install(monkeypatch)` puts it in the
real core's place. Logits depend on the whole timeline, so a wrongly reused prefix changes the answer.
"""

from __future__ import annotations

import hashlib
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from kimi_vl_cpp.errors import BadRequest, ContextFull

HIDDEN = 8
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
    depends on the timeline. decode_s, prefill_s, encode_s: how long a token, a prefill and a picture take."""

    def __init__(self) -> None:
        self.answer: str | None = "Hello world"
        self.encoded: list[str] = []
        self.prefilled: list[int] = []
        self.sessions = 0
        self.max_inside = 0
        self.decode_s = self.prefill_s = self.encode_s = 0.0
        self.chunk = 64
        self.fail_at: Callable[[str, int], None] = lambda stage, done: None
        self.metadata: dict[str, Any] = {"general.name": "Kimi VL Fake Instruct"}
        self.has_vision = True
        self.context_length = 4096


SCRIPT = Script()


class GGUFFile:
    def __init__(self, path: str) -> None:
        self.path = path
        self.version, self.n_shards, self.file_bytes, self.warnings = 3, 1, 1000, []
        self.tensors = [types.SimpleNamespace(name="token_embd.weight", shape=(N_VOCAB, HIDDEN))]
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
            self.tensors.append(types.SimpleNamespace(name="v.patch_embd.weight", shape=(1,)))

    def keys(self) -> list[str]:
        return list(self._metadata)

    def get(self, key: str) -> Any:
        value = self._metadata.get(key)
        return [item.decode() for item in value] if key == "tokenizer.ggml.tokens" else value

    def get_bytes_list(self, key: str) -> list[bytes] | None:
        value = self._metadata.get(key)
        return value if isinstance(value, list) and (not value or isinstance(value[0], bytes)) else None


class Engine:
    def __init__(
        self,
        path: str,
        mmproj: str | None = None,
        n_threads: int = 0,
        isa: str = "auto",
        activations: str = "int8",
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
            "isa": isa,
        }

    def _enter(self) -> None:
        if self.closed:
            raise BadRequest("the engine is closed", "engine.closed")
        with self.lock:
            self.inside += 1
            SCRIPT.max_inside = max(SCRIPT.max_inside, self.inside)

    def _leave(self) -> None:
        with self.lock:
            self.inside -= 1

    def work(self, stage: str, total: int, seconds: float, progress: Callable[[int, int], None] | None) -> None:
        """Pretends to compute `total` units for `seconds`, with progress ten times."""
        self._enter()
        try:
            for step in range(1, 11):
                if seconds:
                    time.sleep(seconds / 10)
                SCRIPT.fail_at(stage, step)
                if progress is not None:
                    progress(total * step // 10, total)
        finally:
            self._leave()

    def encode_image(self, pixels: np.ndarray, progress: Any = None) -> np.ndarray:
        height, width, _ = pixels.shape
        n_tokens = (height // 28) * (width // 28)
        self.work("encode", n_tokens, SCRIPT.encode_s, progress)
        SCRIPT.encoded.append(hashlib.sha256(pixels.tobytes()).hexdigest())
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:4], "little"))
        return rng.normal(size=(n_tokens, HIDDEN)).astype(np.float32)

    def vision_tower(self, pixels: np.ndarray, progress: Any = None) -> np.ndarray:
        height, width, _ = pixels.shape
        self.work("encode", 1, SCRIPT.encode_s, progress)
        return np.zeros(((height // 14) * (width // 14), 6), dtype=np.float32)

    def close(self) -> None:
        self.closed = True


class Session:
    def __init__(self, engine: Engine, n_ctx: int, kv_type: str = "auto") -> None:
        SCRIPT.sessions += 1
        self.engine, self.n_ctx, self.kv_bytes = engine, n_ctx, n_ctx * 4
        self.held: list[bytes] = []
        self.n_decoded = 0

    @property
    def n_past(self) -> int:
        return len(self.held)

    @property
    def logits(self) -> np.ndarray:
        return self._logits(len(self.held))

    def _logits(self, n: int) -> np.ndarray:
        digest = hashlib.sha256(b"".join(self.held[:n])).digest()
        logits = np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=N_VOCAB).astype(np.float32)
        if SCRIPT.answer is not None:
            said = SCRIPT.answer.encode()  # the id of a single byte is the byte
            logits[said[self.n_decoded] if self.n_decoded < len(said) else 256 + SPECIAL.index("<|im_end|>")] = 100.0
        return logits

    def prefill(
        self,
        parts: list[np.ndarray],
        logits: str = "last",
        progress: Any = None,
        chunk: int = 0,
        expanded: np.ndarray | None = None,
    ) -> Any:
        new: list[bytes] = []
        for part in parts:
            assert part.dtype in (np.int32, np.float32) and part.flags.c_contiguous
            assert part.ndim == (1 if part.dtype == np.int32 else 2)
            new.extend(row.tobytes() for row in part)
        if expanded is not None:  # a position held in the other form is another position
            assert len(expanded) == len(new)
            new = [row + b"expanded" * int(form) for row, form in zip(new, expanded, strict=True)]
        if len(self.held) + len(new) > self.n_ctx:
            raise ContextFull(f"{len(new)} more after {len(self.held)} of {self.n_ctx}")
        start = len(self.held)
        self.n_decoded = 0
        while new:
            piece, new = new[: SCRIPT.chunk], new[SCRIPT.chunk :]
            self.engine.work("prefill", len(piece), SCRIPT.prefill_s, progress)
            self.held.extend(piece)
            SCRIPT.prefilled.append(len(piece))
        if logits == "none":
            return None
        if logits == "last":
            return self.logits
        return np.stack([self._logits(n + 1) for n in range(start, len(self.held))])

    def truncate(self, n_past: int) -> None:
        assert 0 <= n_past <= len(self.held)
        del self.held[n_past:]

    def decode(self, token: int) -> None:
        assert len(self.held) < self.n_ctx, "decode beyond the context"
        self.engine.work("decode", 1, SCRIPT.decode_s, None)
        self.held.append(np.int32(token).tobytes())
        self.n_decoded += 1

    def sample(self, sampler: Sampler) -> int:
        return sampler.sample(self.logits)


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
    import sys

    import kimi_vl_cpp
    from kimi_vl_cpp.files import opening
    from kimi_vl_cpp.generation import loaded, raw, sampling, timelines

    global SCRIPT
    SCRIPT = Script()
    fake = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "kimi_vl_cpp._core", fake)
    monkeypatch.setattr(kimi_vl_cpp, "_core", fake, raising=False)
    for module in (loaded, raw, sampling, timelines):
        monkeypatch.setattr(module, "_core", fake)
    monkeypatch.setattr(opening, "GGUFFile", GGUFFile)
    return SCRIPT
