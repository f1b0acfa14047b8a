"""KimiVL: one loaded model and everything a person can ask of it from Python.

Owns loading, the public calls and their checks, and which timeline serves a request. The token loop is in generate.py,
the spelling of prompts in prompt.py, pictures in processor.py.

Threads: any number of threads may use one KimiVL. Every request runs on a timeline (a session with its KV cache) of its
own. A request that finds the model's main timeline free uses it, and with it whatever beginning of the prompt it still
holds; one that comes while another is under way, from any thread, gets a timeline of its own that is just large enough
and is freed at its end. The core works on one request at a time, token by token in turn, so requests run side by side
and none waits for the end of another.

Reproducibility: the same request with the same seed gives the same answer, to the last bit of its logits, with any
number of threads, whatever else the model is doing, and whatever of the prompt was held already (docs/architecture.md,
"The same bits").
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from . import _core, builtin
from .cache.images import ImageCache
from .checks import NotPicklable, check_int, check_text
from .errors import BadRequest, OutOfMemory
from .files import model_files
from .files.variants import DEFAULTS, default_in_token_limit, detect_variant, stored_defaults, stored_in_token_limit
from .generation import sampling
from .generation.gate import Gate
from .generation.generation import Generation, Job, PieceStream, encode_cached
from .generation.parts import Part, prepare_parts
from .generation.request import build_job, check_images
from .generation.sequence import Timeline
from .machine.memory import check_memory, shrink_to_fit
from .media.processor import ImageProcessor, ProcessedImage
from .text.template_check import OTHER_TEMPLATE
from .text.tokenizer import Tokenizer
from .types import Progress, Response

if TYPE_CHECKING:
    from .chat.conversation import Conversation
    from .media.processor import ImageInput
    from .openai.completions import ChatCompletion, ChatCompletionStream
    from .text.chat_template import Message

DEFAULT_N_CTX = 8192
DEFAULT_IMAGE_CACHE_BYTES = 256 << 20
_MIN_N_CTX = 1024  # a default context is not made smaller than this when memory is short
_MAX_THREADS = 1024


class KimiVL(NotPicklable):
    """A Kimi-VL model, loaded from a GGUF file and its vision file.

    Use it as a context manager or call `close()`. Every method may raise `BadRequest` with code "engine.closed" after
    that. All errors are subclasses of `KimiVLError`. Ctrl-C on the main thread raises KeyboardInterrupt within 200 ms
    in every long call; the model is usable afterwards.
    """

    _instead = "open the model in the other process, KimiVL(path); the threads of one process can share this one"

    def __init__(
        self,
        path: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        isa: str = "auto",
        kv_type: str = "auto",
        activations: str = "int8",
        in_token_limit: int | None = None,
        image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
        memory_check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Loads the model; the weights stay in the file and are mapped, not read.

        path: the text GGUF, any shard of a split one, or one file with the vision part inside.
        mmproj: the vision GGUF. None looks for one beside `path` (see model_files.find_mmproj); without one the model
            answers texts only.
        n_ctx: tokens of context. None: 8192, less where the model or the memory allows less. 0: all that the model was
            trained for.
        n_threads: None or 0: as many as the process may use.
        isa: "auto", "generic", "avx2" or "avx512".
        kv_type: the numbers of the KV cache: "f16", "f32" or "q8_0" (half of "f16", faster on long contexts,
            a little less exact). "auto": "f16", and "f32" for float32 weights.
        activations: what quantized text weights are multiplied with: "int8", rounded as every fast runtime does, or
            "float", which adds no error to the file's own and is several times slower.
        in_token_limit: 14x14 patches a picture may have before it is scaled down. None: what the file says (those of
            `kimi-vl quantize` do), else 16384 for Thinking-2506, 4096 for the others.
        image_cache_bytes: how much memory encoded pictures may take.
        memory_check: refuses to load what cannot fit into this machine's memory (or the process's limit) instead of
            letting it crawl.
        progress: called as progress(stage, done, total) by this and every later call, see `types.Progress`.

        Raises BadModelFile, OutOfMemory (with what would fit), BadRequest for a wrong argument.
        """
        if n_ctx is not None:
            check_int("n_ctx", n_ctx, 0, 1 << 31)
        threads = 0 if n_threads is None else check_int("n_threads", n_threads, 0, _MAX_THREADS)
        if in_token_limit is not None:
            check_int("in_token_limit", in_token_limit, 4, 512 * 512)
        check_text("isa", isa)
        check_text("kv_type", kv_type)
        check_text("activations", activations)
        check_int("image_cache_bytes", image_cache_bytes, 0, 1 << 62)
        self.progress = progress
        started = time.perf_counter()
        if progress is not None:
            progress("load", 0, 1)
        files = model_files.resolve(path, mmproj, kv_type)
        size = (n_ctx or files.context_length) if n_ctx is not None else min(DEFAULT_N_CTX, files.context_length)
        if memory_check:
            size = shrink_to_fit(files, size, _MIN_N_CTX) if n_ctx is None else size
            check_memory(files, size)
        vision_path = None if files.mmproj is None else str(files.mmproj)
        self.engine = _core.Engine(str(files.text), vision_path, threads, isa, activations)
        self.gate = Gate(self.engine.close)
        try:
            config = self.engine.config
            self.has_vision = bool(config["has_vision"])
            self.tokenizer = Tokenizer.from_gguf(self.engine.gguf, vision=self.has_vision)
            self.notices = [] if self.tokenizer.template_is_kimis else [OTHER_TEMPLATE]
            self.variant = detect_variant(self.engine.gguf.get, files.text)
            self.defaults = stored_defaults(self.engine.gguf.get, DEFAULTS[self.variant])
            self.name = str(config.get("name") or files.text.stem)
            self.files = files
            if in_token_limit is None:
                vision = self.engine.vision_gguf or self.engine.gguf
                in_token_limit = stored_in_token_limit(vision.get) or default_in_token_limit(self.variant)
            self.processor = ImageProcessor(
                patch_size=config.get("patch_size") or 14,
                merge=config.get("merge") or 2,
                in_token_limit=in_token_limit,
                max_grid_side=config.get("max_grid_side") or 512,
            )
            self.image_cache = ImageCache(image_cache_bytes)
            self._kv_type = kv_type
            main = self._main_timeline(size, may_shrink=n_ctx is None)
            self.n_ctx = main.n_ctx
            self._main: weakref.ref[Timeline] | None = weakref.ref(main)
            self._idle: deque[Timeline] = deque([main], maxlen=1)  # the main one when no request holds it
        except BaseException:
            self.gate.close()
            raise
        self.load_s = time.perf_counter() - started
        if progress is not None:
            progress("load", 1, 1)

    @classmethod
    def builtin(cls, **options: Any) -> Self:
        """The small model of the package: a demonstration, not Kimi-VL; docs/builtin-model.md says what it can do.
        options: those of the constructor, `path` and `mmproj` excepted.

        Raises BadModelFile "builtin.missing" when this installation has none, else what the constructor raises.
        """
        return cls(builtin.model_path(), **options)

    @property
    def n_threads(self) -> int:
        """Threads that the core computes with."""
        return int(self.engine.config["n_threads"])

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary, the last dimension of logits."""
        return int(self.engine.config["n_vocab"])

    @property
    def hidden_size(self) -> int:
        """Width of an embedding, the last dimension of `encode_image`."""
        return int(self.engine.config["hidden_size"])

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self.gate.closed

    def close(self) -> None:
        """Frees the model. Answers under way in other threads end with `Cancelled` (code "engine.closed"); waits for
        the core call that is running, about 100 ms at most. Calling it again does nothing."""
        self.gate.close()
        self._idle.clear()
        self.image_cache.clear()

    def __enter__(self) -> KimiVL:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.variant}, n_ctx {self.n_ctx}"
        return f"<KimiVL {self.name!r}, {state}>"

    # Asking

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput] = (),
        *,
        system: str | None = None,
        stream: Literal[False] = False,
        progress: Progress | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        repeat_last_n: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Response: ...

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput] = (),
        *,
        system: str | None = None,
        stream: Literal[True],
        progress: Progress | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        repeat_last_n: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> PieceStream: ...

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput] = (),
        *,
        system: str | None = None,
        stream: bool,
        progress: Progress | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        repeat_last_n: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Response | PieceStream: ...

    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput] = (),
        *,
        system: str | None = None,
        stream: bool = False,
        progress: Progress | None = None,
        **sampling_options: Any,
    ) -> Response | PieceStream:
        """One question, with pictures before the text; one answer.

        prompt: the question; text that spells a special token stays text. images: each a path, bytes of a picture file,
        a PIL.Image, or a uint8 array [H, W, 3]. system: the system message, None for the model's own default.
        stream: True returns a `PieceStream`, a generator of `Piece`; closing it cancels.
        max_new_tokens: where the answer is cut; None is the variant's default, -1 no limit; the context cuts it too.
        temperature (0 is greedy), top_k (0 is off), top_p, min_p, repeat_penalty, repeat_last_n: None is the variant's
        default, see `defaults`. seed: 0 to 2**64-1; None or -1 draws one below 2**53, see
        `Response.seed`.
        stop: a string or strings that end the answer (not the reasoning) and are not part of it.

        The beginning that a prompt shares with the one before (the same system message and pictures) is not computed
        again, and a picture seen before is not encoded again.

        Raises BadRequest (code "request.<parameter>"), BadImage, ContextFull (with the numbers), OutOfMemory.
        """
        started = time.perf_counter()
        check_text("prompt", prompt)
        pictures = check_images(images)
        content: list[dict[str, Any]] = [{"type": "image", "image": index} for index in range(len(pictures))]
        messages: list[Any] = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": check_text("system", system)})
        answer = self.start(messages, pictures, progress=progress, started=started, **sampling_options)
        return answer if stream else answer.drain()

    def start(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput] = (),
        *,
        progress: Progress | None = None,
        started: float | None = None,
        **sampling_options: Any,
    ) -> PieceStream:
        """Checks a whole conversation (see prompt.build_prompt; images by index) and returns its answer's stream.

        What `chat` and `create_chat_completion` are made of. started: the time.perf_counter() from which first_token_s
        counts. Raises like `chat`.
        """
        started = time.perf_counter() if started is None else started
        job = build_job(self, messages, images, options=sampling_options, n_ctx=self.n_ctx, started=started)
        return PieceStream(Generation(self, job, self._lease, progress or self.progress))

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Any
    ) -> ChatCompletion: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
    ) -> ChatCompletionStream: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **options: Any
    ) -> ChatCompletion | ChatCompletionStream: ...

    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **options: Any
    ) -> ChatCompletion | ChatCompletionStream:
        """A chat completion with the dicts of OpenAI's API; see chat_completion.create for options and errors."""
        from .openai.completions import create

        return create(self, messages, stream=stream, **options)

    def conversation(self, system: str | None = None) -> Conversation:
        """A conversation of several turns, which computes only what is new at each turn. system: the system message,
        None for the model's own default."""
        from .chat.conversation import Conversation

        return Conversation(self, system)

    # Tokens, pictures, numbers

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text. special: whether text that spells a special token becomes that token."""
        self.gate.check()
        return self.tokenizer.encode(check_text("text", text), special=special)

    def detokenize(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD. special: whether special tokens appear in it.

        Raises BadRequest (code "request.token_id") for what is no id of the vocabulary.
        """
        self.gate.check()
        return self.tokenizer.decode(ids, special=special)

    def process_image(self, image: ImageInput) -> ProcessedImage:
        """A picture as the vision tower will see it. Raises BadImage, and BadRequest when there is no vision file."""
        self.gate.check()
        self.require_vision()
        return self.processor(image)

    def encode_image(self, image: ImageInput, progress: Progress | None = None) -> NDArray[np.float32]:
        """A picture as the decoder receives it: float32 [n_tokens, hidden_size]. From the cache when seen before.

        Raises BadImage, and BadRequest (code "model.no_vision") when the model was loaded without a vision file.
        """
        seen = self.process_image(image)
        tick = self._stage("encode", progress)
        return self.gate.call(encode_cached, self, seen.digest, seen.pixels, tick).copy()

    def vision_tower(self, image: ImageInput, progress: Progress | None = None) -> NDArray[np.float32]:
        """The vision tower's output before the projector: float32 [n_patches, vision_hidden_size]. Raises like
        `encode_image`."""
        seen = self.process_image(image)
        return self.gate.call(self.engine.vision_tower, seen.pixels, self._stage("encode", progress))

    def logits(
        self,
        parts: Sequence[Part],
        *,
        positions: Literal["all", "last"] = "all",
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """The logits after every position of the parts, computed on a fresh session.

        parts: each a list or integer array [n] of token ids, or a float array [n, hidden_size] of embeddings.
        positions: "all" gives float32 [n_positions, n_vocab], "last" gives [n_vocab].

        Raises BadRequest for a wrong part, ContextFull beyond n_ctx, OutOfMemory.
        """
        if positions not in ("all", "last"):
            raise BadRequest(f"positions: got {positions!r}, expected 'all' or 'last'", "request.positions")
        arrays = prepare_parts(parts, self.n_vocab, self.hidden_size, self.n_ctx)
        n_positions = sum(len(array) for array in arrays)

        def compute() -> NDArray[np.float32] | None:
            session = _core.Session(self.engine, n_positions, self._kv_type)
            return session.prefill(arrays, logits=positions, progress=self._stage("prefill", progress))

        result = self.gate.call(compute)
        assert result is not None
        return result

    def generate(
        self,
        parts: Sequence[Part],
        max_new_tokens: int | None = None,
        *,
        ignore_stop: bool = False,
        progress: Progress | None = None,
        **sampling_options: Any,
    ) -> list[int]:
        """Token ids that follow the parts, computed on a fresh session; the end-of-turn token is not among them.

        parts: as for `logits`. max_new_tokens and the sampling options: as for `chat`, `stop` excepted. ignore_stop:
        goes on past the end of the turn, whose token is then an id like any other.

        Raises like `chat`.
        """
        if sampling_options.pop("stop", None) is not None:
            raise BadRequest("stop: stop strings are for chat(), generate() works on token ids", "request.stop")
        params = sampling.resolve(self.defaults, max_new_tokens=max_new_tokens, **sampling.known(sampling_options))
        arrays = prepare_parts(parts, self.n_vocab, self.hidden_size, self.n_ctx - 1)
        n_prompt = sum(len(array) for array in arrays)
        n_new = min(params.max_new_tokens, self.n_ctx - n_prompt)
        sampler = sampling.make_sampler(params)
        stop_ids = frozenset() if ignore_stop else self.tokenizer.stop_ids

        def first() -> tuple[_core.Session, int]:
            session = _core.Session(self.engine, n_prompt + n_new, self._kv_type)
            session.prefill(arrays, logits="last", progress=self._stage("prefill", progress))
            return session, session.sample(sampler)

        def following(previous: int) -> int:
            session.decode(previous)
            return session.sample(sampler)

        session, token = self.gate.call(first)
        ids: list[int] = []
        while token not in stop_ids:
            ids.append(token)
            if len(ids) >= n_new:
                break
            token = self.gate.call(following, token)
        return ids

    # Inside

    def require_vision(self) -> None:
        """Raises BadRequest when the model was loaded without a vision file."""
        if not self.has_vision:
            raise BadRequest(
                f"{self.files.text}: a picture was given, but the model was loaded without a vision file. "
                f"{self.files.why_no_mmproj}",
                "model.no_vision",
            )

    def take_timeline(self) -> Timeline:
        """A timeline of full size for a conversation: the main one if it is free, else a new one."""
        try:
            timeline = self._idle.pop()
        except IndexError:
            return self.new_timeline(self.n_ctx)
        self._main = None
        return timeline

    def give_back(self, timeline: Timeline) -> None:
        """Takes a timeline of full size as the main one for later requests, unless there is one."""
        if self.closed:
            return
        main = None if self._main is None else self._main()
        if main is None or main is timeline:
            self._main = weakref.ref(timeline)
            self._idle.append(timeline)

    def new_timeline(self, n_ctx: int) -> Timeline:
        """A fresh timeline of n_ctx positions. Raises OutOfMemory."""
        return Timeline(self.gate.call(_core.Session, self.engine, n_ctx, self._kv_type))

    @contextmanager
    def _lease(self, job: Job) -> Iterator[Timeline]:
        try:
            timeline = self._idle.pop()
        except IndexError:
            if self._main is None or self._main() is None:  # a conversation took it along
                timeline = self.new_timeline(self.n_ctx)
                self._main = weakref.ref(timeline)
            else:
                timeline = self.new_timeline(min(job.n_prompt + job.max_new_tokens, self.n_ctx))
        try:
            yield timeline
        finally:
            self.give_back(timeline)

    def _main_timeline(self, n_ctx: int, may_shrink: bool) -> Timeline:
        context_length = int(self.engine.config["context_length"])
        if n_ctx > context_length:
            raise BadRequest(
                f"n_ctx: got {n_ctx}, but the model was trained for {context_length} tokens: "
                f"use n_ctx <= {context_length}, or 0 for all of them",
                "request.n_ctx",
            )
        while True:
            try:
                return self.new_timeline(n_ctx)
            except OutOfMemory:
                if not may_shrink or n_ctx // 2 < _MIN_N_CTX:
                    raise
                n_ctx //= 2

    def _stage(self, stage: str, progress: Progress | None) -> Any:
        """The core's progress callback for a call outside of a Generation; ends the call when the model is closed."""
        report = progress or self.progress

        def tick(done: int, total: int) -> None:
            self.gate.check_running()
            if report is not None:
                report(stage, done, total)

        return tick
