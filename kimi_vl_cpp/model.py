"""KimiVL: the face, one open model and everything that can be asked of it from Python.

Owns the public calls and their checks. Holds no loop of its own: opening is in generation/loaded.py, who runs when in
scheduler/, the text of an answer in generation/generation.py, the chat template in text/chat_template.py, images in
media/. It is long because it is the reference of one class: three quarters of it are signatures and what they mean.

Threads: any number of threads may use one KimiVL. Every request has a sequence of its own, and all of them share the
pages of the KV cache: what a prompt has in common with any earlier one is not computed again. The answers under way are
decoded together, one step of the network for all of them, and a long prompt or a picture is computed in pieces between
the steps, so none waits for the end of another.

Reproducibility: the same request with the same seed gives the same answer, to the last bit of its logits, with any
number of threads, whatever else the model is doing, and whatever of the prompt was held already (docs/architecture.md,
"The same bits").
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from . import builtin
from .cache.disk import DEFAULT_QUOTA
from .checks import Closeable, check_int, check_text
from .errors import BadRequest
from .files.model_files import ModelFiles
from .files.variants import Variant
from .generation import sampling
from .generation.adapters import Lora, index_of
from .generation.fitting import limit_images
from .generation.generation import Generation, Request, encode_cached
from .generation.loaded import DEFAULT_IMAGE_CACHE_BYTES, DEFAULT_MAX_PARALLEL, LoadOptions, load
from .generation.model_cache import ModelCache
from .generation.parts import Part, prepare_parts
from .generation.raw import RawModel
from .generation.request import Question, build_request, build_text_request, check_images
from .generation.sampling import SamplingOptions
from .generation.several import MAX_ANSWERS, Answers, AnswersStream, answers_to
from .generation.stream import PieceStream
from .media.documents import open_pages
from .media.drawn import text_around
from .media.processor import ProcessedImage
from .text.chat_template import user_content
from .types import Progress, Response, SamplingDefaults

if TYPE_CHECKING:
    from .chat.conversation import Conversation
    from .generation.tools import ToolUse
    from .grounding.ask import Box, Point
    from .media.documents import DocumentInput
    from .media.processor import ImageInput, LimitedImage
    from .media.timed import TimedVideo
    from .openai.completions import ChatCompletionStream
    from .openai.types import ChatCompletion
    from .openai.videos import VideoPart
    from .text.chat_template import Message

_MOVED = ("engine", "gate", "tokenizer", "processor", "image_cache")


class KimiVL(Closeable):
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
        device: Literal["cpu", "cuda"] = "cpu",
        isa: str = "auto",
        kv_type: str = "auto",
        activations: str = "int8",
        in_token_limit: int | None = None,
        image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
        kv_memory: int | None = None,
        max_parallel: int = DEFAULT_MAX_PARALLEL,
        speculate: Literal["auto", "off"] = "auto",
        overflow: Literal["error", "drop_turns"] = "error",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_disk: int = DEFAULT_QUOTA,
        lora: Lora | None = None,
        memory_check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Loads the model; the weights stay in the file and are mapped, not read.

        path: the text GGUF, any shard of a split one, or one file with the vision part inside.
        mmproj: the vision GGUF. None looks for one beside `path` (see model_files.find_mmproj); without one the model
            answers texts only.
        n_ctx: tokens of context, a limit: memory is taken as a context grows. None: 8192, and up to 32768 where the
            memory for the KV cache holds as many; less where the model or the memory allows less. 0: all that the model
            was trained for.
        n_threads: None or 0: as many as the process may use.
        device: "cpu", or "cuda" for an NVIDIA GPU, where the library for it is installed (`kimi-vl doctor` says so).
        isa: the instruction set, "auto" (the best that the processor has) or a name that `kimi-vl doctor` lists.
        kv_type: the numbers of the KV cache: "f16", "f32" or "q8_0" (half of "f16", faster on long contexts,
            a little less exact). "auto": "f16", and "f32" for float32 weights.
        activations: what quantized text weights are multiplied with: "int8", rounded as every fast runtime does, or
            "float", which adds no error to the file's own and is several times slower.
        in_token_limit: 14x14 patches a picture may have before it is scaled down. None: what the file says (those of
            `kimi-vl quantize` do), else 16384 for Thinking-2506, 4096 for the others.
        image_cache_bytes: how much memory encoded pictures may take.
        kv_memory: bytes that the KV cache of all requests and conversations may take, those of the past included. None:
            a quarter of what is free, no more than the weights (or 64 MiB), at least one context. Others wait.
        max_parallel: answers that are decoded together; more take turns.
        speculate: "auto" drafts tokens that have followed the same ones earlier in the prompt or the answer, where that
            pays (tables, JSON, edits of a text); the answer is the same, it comes sooner. "off": never.
        overflow: what happens to a conversation that no longer fits into the context. "error": ContextFull, with the
            numbers. "drop_turns": its oldest questions are left out with their answers, with a notice; never the system
            message, the last question, or a part of a turn.
        cache_dir: a folder in which pages of the KV cache and encoded pictures outlive this process, for its owner
            alone and not encrypted; what the model was shown can be partly told from them. None: they end with it.
        cache_disk: bytes that the folder may take; what was not used for longest goes first.
        lora: LoRA adapters (PEFT's folders, GGUF files) beside the weights: a path, (path, scale) or a list of them for
            every request; or a dict of such values by names, of which a request's option `lora` names one or none.
        memory_check: refuses to load what cannot fit into this machine's memory (or the process's limit, or the
            GPU's free memory) instead of letting it crawl or fail later.
        progress: called as progress(stage, done, total) by this and every later call, see `types.Progress`.

        Raises BadModelFile, OutOfMemory (with what would fit), BadRequest for a wrong argument, Unsupported (codes
        "device.*" for a device that is not there, "lora.*" for an adapter that cannot be applied exactly).
        """
        options = LoadOptions(
            n_ctx=n_ctx,
            n_threads=n_threads,
            device=device,
            isa=isa,
            kv_type=kv_type,
            activations=activations,
            in_token_limit=in_token_limit,
            image_cache_bytes=image_cache_bytes,
            kv_memory=kv_memory,
            max_parallel=max_parallel,
            speculate=speculate,
            overflow=overflow,
            cache_dir=cache_dir,
            cache_disk=cache_disk,
            memory_check=memory_check,
            lora=lora,
        )
        self.loaded = load(path, mmproj, options, progress)

    @classmethod
    def builtin(cls, **options: Any) -> Self:
        """The small model of the package: a demonstration, not Kimi-VL; docs/builtin-model.md says what it can do.
        options: those of the constructor, `path` and `mmproj` excepted.

        Raises BadModelFile "builtin.missing" when this installation has none, else what the constructor raises.
        """
        return cls(builtin.model_path(), **options)

    @property
    def name(self) -> str:
        """What the file calls the model."""
        return self.loaded.name

    @property
    def variant(self) -> Variant:
        """Which Kimi-VL it is, see files/variants.py."""
        return self.loaded.variant

    @property
    def defaults(self) -> SamplingDefaults:
        """The sampling options of this variant, used where a call names none."""
        return self.loaded.defaults

    @property
    def files(self) -> ModelFiles:
        """The files that were opened."""
        return self.loaded.files

    @property
    def notices(self) -> list[str]:
        """What is worth knowing about the files that were opened."""
        return self.loaded.notices

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that a request's option `lora` may have."""
        return tuple(self.loaded.adapters.named)

    @property
    def has_vision(self) -> bool:
        """Whether a vision part was loaded."""
        return self.loaded.has_vision

    @property
    def n_ctx(self) -> int:
        """Tokens of context."""
        return self.loaded.n_ctx

    @property
    def context_length(self) -> int:
        """Tokens of context that the model was trained for, the most that `n_ctx` may be."""
        return self.loaded.context_length

    @property
    def n_threads(self) -> int:
        """Threads that the core computes with."""
        return int(self.loaded.engine.config["n_threads"])

    @property
    def isa(self) -> str:
        """The instruction set that the core computes with."""
        return str(self.loaded.engine.config["isa"])

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary, the last dimension of logits."""
        return self.loaded.n_vocab

    @property
    def hidden_size(self) -> int:
        """Width of an embedding, the last dimension of `encode_image`."""
        return self.loaded.hidden_size

    @property
    def load_s(self) -> float:
        """Seconds that loading took."""
        return self.loaded.load_s

    @property
    def progress(self) -> Progress | None:
        """The callback of calls that are given none."""
        return self.loaded.progress

    @progress.setter
    def progress(self, progress: Progress | None) -> None:
        self.loaded.progress = progress

    @property
    def cache(self) -> ModelCache:
        """What the model remembers of earlier requests: `info()`, `prefetch()`, `pin()`, `clear()`."""
        return ModelCache(self.loaded)

    @property
    def raw(self) -> RawModel:
        """Ids and pixels in, logits out: the inner door for tools that measure a model."""
        return RawModel(self.loaded)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self.loaded.gate.closed

    def close(self) -> None:
        """Frees the model. Answers under way in other threads end with `Cancelled` (code "engine.closed"); waits for
        the core call that is running, about 100 ms at most. Calling it again does nothing."""
        self.loaded.close()

    if not TYPE_CHECKING:  # a type checker should see that they are gone

        def __getattr__(self, name: str) -> Any:
            """The attributes that have moved to `loaded`, with a DeprecationWarning."""
            if name not in _MOVED or "loaded" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"KimiVL.{name} has moved: use KimiVL.loaded.{name}", DeprecationWarning, stacklevel=2)
            return getattr(self.loaded, name)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.variant}, n_ctx {self.n_ctx}"
        return f"<KimiVL {self.name!r}, {state}>"

    # Asking

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        system: str | None = None,
        stream: Literal[False] = False,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Response: ...

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        system: str | None = None,
        stream: Literal[True],
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> PieceStream: ...

    @overload
    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        system: str | None = None,
        stream: bool,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Response | PieceStream: ...

    def chat(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        system: str | None = None,
        stream: bool = False,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Response | PieceStream:
        """One question, with pictures before the text; one answer.

        prompt: the question; the text of a special token stays text. images: each a path, bytes of a picture file,
        a PIL.Image, a uint8 array [H, W, 3], a `Page` of a document, or what `frames` gives. documents: PDF and TIFF
        files, each open (`Document`, `TiffDocument`) or a path, perhaps with pages behind it ("report.pdf#3,7-9");
        their pages stand before the images, each behind "Page 3 of 50:". image_patches: 14x14 patches above which a
        picture is scaled down, at most the model's in_token_limit. None: that limit; pages get the highest of
        media/budget.py, LADDER, at which all of them fit, which a notice reports when it is less than the limit.
        system: the system message, None for the model's own default.
        stream: True returns a `PieceStream`, a generator of `Piece`; closing it cancels.
        max_new_tokens: where the answer is cut; None is the variant's default, -1 no limit; the context cuts it too.
        temperature (0 is greedy), top_k (0 is off), top_p, min_p, repeat_penalty, repeat_last_n: None is the variant's
        default, see `defaults`. seed: 0 to 2**64-1; None or -1 draws one below 2**53, see
        `Response.seed`.
        stop: a string or strings that end the answer (not the reasoning) and are not part of it. More options, and what
        they mean: generation/sampling.py, `SamplingParams`.

        The beginning that a prompt shares with an earlier one (the same system message and pictures) is not computed
        again, and a picture seen before is not encoded again.

        Raises BadRequest (code "request.<parameter>"), BadImage, BadDocument, ContextFull (with the numbers),
        OutOfMemory.
        """
        started = time.perf_counter()
        messages, pictures, notices = self._question(prompt, images, documents, image_patches, system)
        answer = self.start(messages, pictures, progress=progress, started=started, **sampling_options)
        answer.add_notices(notices)
        return answer if stream else answer.drain()

    @overload
    def answers(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        n: int = 5,
        vote: bool = False,
        stream: Literal[False] = False,
        system: str | None = None,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Answers: ...
    @overload
    def answers(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        n: int = 5,
        vote: bool = False,
        stream: Literal[True],
        system: str | None = None,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> AnswersStream: ...
    @overload
    def answers(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        n: int = 5,
        vote: bool = False,
        stream: bool,
        system: str | None = None,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Answers | AnswersStream: ...

    def answers(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        n: int = 5,
        vote: bool = False,
        stream: bool = False,
        system: str | None = None,
        progress: Progress | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> Answers | AnswersStream:
        """Several answers to one question. The prompt is computed once and the answers are decoded together, so that
        five take less than three times as long as one.

        n: 1 to 64. vote: ends as soon as the lead of one answer cannot be lost; the others are cancelled. stream:
        returns the pieces as they come, each with the number of its answer. The rest as for `chat`. Answer 0 has the
        seed that is given or drawn, the others seeds that follow from it: each response names its own, with which
        `chat` gives it again.

        Raises like `chat`.
        """
        started = time.perf_counter()
        check_int("n", n, 1, MAX_ANSWERS)
        messages, pictures, notices = self._question(prompt, images, documents, image_patches, system)
        first = self.start(messages, pictures, progress=progress, started=started, **sampling_options)
        first.add_notices(notices)
        found = AnswersStream(answers_to(first, n), vote=vote)
        return found if stream else found.drain()

    def start(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput | LimitedImage | ProcessedImage] = (),
        *,
        progress: Progress | None = None,
        started: float | None = None,
        continue_final: bool = False,
        tools: ToolUse | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> PieceStream:
        """Checks a whole conversation (see text/chat_template.py, `Message`) and returns its answer's stream.

        What `chat` and `create_chat_completion` are made of. Pages of documents without a limit of their own are drawn
        as large as all of them fit. started: the time.perf_counter() from which first_token_s counts. continue_final:
        the answer continues the last message, an assistant's. tools: the functions that the answer may call. Raises
        like `chat`.
        """
        started = time.perf_counter() if started is None else started
        question = Question(messages=messages, images=images, continue_final=continue_final, tools=tools)
        request = build_request(self.loaded, question, options=dict(sampling_options), started=started)
        return self._stream(request, progress)

    def start_text(
        self,
        prompt: str | Sequence[int],
        *,
        special: bool = False,
        progress: Progress | None = None,
        started: float | None = None,
        **sampling_options: Unpack[SamplingOptions],
    ) -> PieceStream:
        """The stream of what follows a text, or token ids, without the chat template.

        special: whether text that spells a special token becomes that token. Raises like `chat`.
        """
        started = time.perf_counter() if started is None else started
        options = dict(sampling_options)
        return self._stream(
            build_text_request(self.loaded, prompt, options=options, started=started, special=special), progress
        )

    def _stream(self, request: Request, progress: Progress | None) -> PieceStream:
        return PieceStream(Generation(self.loaded, request, progress or self.progress))

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
        """A chat completion with the dicts of OpenAI's API; see openai/completions.create for options and errors."""
        from .openai.completions import create

        return create(
            self.start, self.loaded.tokenizer.token_bytes, self.name, messages, self._frames, stream=stream, **options
        )

    def conversation(self, system: str | None = None, *, lora: str | None = None) -> Conversation:
        """A conversation of several turns, which computes only what is new at each turn. system: the system message,
        None for the model's own default. lora: the name of the adapter of its answers, see `adapters`.

        Raises BadRequest (code "request.lora") for another name."""
        from .chat.conversation import Conversation

        return Conversation(self, system, lora)

    # Videos

    def frames(
        self,
        video: TimedVideo | str | os.PathLike[str],
        times: str | None = None,
        *,
        subtitles: str | os.PathLike[str] | None = None,
        **choice: Any,
    ) -> list[ProcessedImage]:
        """Frames of a video as pictures for `chat` and `Conversation.ask`, each behind its time.

        video: a `Video`, or a path, perhaps with a range of times behind it ("talk.mp4#00:10:00-00:20:00"). times: the
        range; None is all of it. subtitles: a SubRip or WebVTT file with what is said, which stands behind the times of
        the frames. choice: the fields of media/frames.py, `FrameChoice`: sampling, n, fps, patches,
        timestamps, dedupe.

        Raises BadVideo, BadRequest, Unsupported (code "unsupported.extra") without PyAV.
        """
        from .media import frames
        from .media.subtitles import read

        chosen = frames.FrameChoice(**choice)
        cues = [] if subtitles is None else read(subtitles)
        opened, named = frames.open_named(video)
        found, notices = frames.choose(opened, self.loaded.processor, chosen, times or named, cues)
        return [replace(found[0], notices=notices), *found[1:]]

    def _frames(self, part: VideoPart, local: bool) -> tuple[list[ProcessedImage], list[str]]:
        """The frames of a video in a message, opened in this process. local: whether it may name a file."""
        from .media import frames
        from .media.video import Video
        from .openai.videos import not_opened

        self.require_vision()
        source = part.source
        if isinstance(source, str):
            is_url = "://" in source
            if not local or (is_url and not source.startswith("file://")):
                raise not_opened(part, "send a data:video/mp4;base64,... URL, or a path with allow_local_images=True")
            source = unquote(source.removeprefix("file://")) if is_url else source
        with Video(source) as video:
            return frames.choose(video, self.loaded.processor, part.choice, part.times)

    # Pointing

    @overload
    def point(
        self, image: ImageInput, query: str, n: Literal[1] = 1, *, may_be_absent: Literal[False] = False, **options: Any
    ) -> Point: ...
    @overload
    def point(
        self, image: ImageInput, query: str, n: Literal[1] = 1, *, may_be_absent: bool, **options: Any
    ) -> Point | None: ...
    @overload
    def point(
        self, image: ImageInput, query: str, n: int | None, *, may_be_absent: bool = False, **options: Any
    ) -> list[Point]: ...

    def point(
        self, image: ImageInput, query: str, n: int | None = 1, *, may_be_absent: bool = False, **options: Any
    ) -> Point | list[Point] | None:
        """Where something is in a picture, in pixels of the upright source.

        query: what to point at. n: 1 gives one point; a larger number, or None for as many as the answer has, a list.
        may_be_absent: the model may say that it is not there, which is None (or an empty list). options: mapping
        ("unpadded" or "padded", grounding/mapping.py), units ("thousandths" or "pixels", for a model that does not
        answer in shares), and those of `start`; sampling is greedy unless said otherwise.

        Raises GroundingError (codes grounding.*) for an answer without a point, and like `chat`.
        """
        from .grounding import ask

        if n is not None:
            check_int("n", n, 1, 1000)
        found = ask.points(
            self.start,
            self.process_image(image),
            check_text("query", query),
            several=n != 1,
            may_be_absent=may_be_absent,
            **ask.checked(options, self.variant, self.n_ctx),
        )
        if n == 1:
            return found[0] if found else None
        return found[:n]

    def detect(self, image: ImageInput, query: str, **options: Any) -> list[Box]:
        """Boxes around things in a picture, in pixels of the upright source. Arguments and errors like `point`."""
        from .grounding import ask

        seen = self.process_image(image)
        return ask.boxes(self.start, seen, check_text("query", query), **ask.checked(options, self.variant, self.n_ctx))

    # Tokens, pictures, numbers

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text. special: whether text that spells a special token becomes that token."""
        self.loaded.gate.check()
        return self.loaded.tokenizer.encode(check_text("text", text), special=special)

    def detokenize(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD. special: whether special tokens appear in it.

        Raises BadRequest (code "request.token_id") for an id outside the vocabulary.
        """
        self.loaded.gate.check()
        return self.loaded.tokenizer.decode(ids, special=special)

    def process_image(self, image: ImageInput | LimitedImage | ProcessedImage) -> ProcessedImage:
        """A picture as the vision tower will see it. Raises BadImage, and BadRequest when there is no vision file."""
        return self.loaded.process_image(image)

    def encode_image(
        self, image: ImageInput, progress: Progress | None = None, *, lora: str | None = None
    ) -> NDArray[np.float32]:
        """A picture as the decoder receives it: float32 [n_tokens, hidden_size]. From the cache when seen before.
        lora: the name of an adapter.

        Raises BadImage, and BadRequest (code "model.no_vision") when the model was loaded without a vision file.
        """
        seen = self.process_image(image)
        tick = self._stage("encode", progress)
        adapter = self.loaded.adapters.pick(lora)
        key = self.loaded.picture_key(seen, adapter)
        return self.loaded.gate.call(encode_cached, self.loaded, key, seen.pixels, tick, adapter).copy()

    def vision_tower(self, image: ImageInput, progress: Progress | None = None) -> NDArray[np.float32]:
        """The vision tower's output before the projector: float32 [n_patches, vision_hidden_size]. Raises like
        `encode_image`."""
        seen = self.process_image(image)
        return self.raw.vision_tower(seen.pixels, self._stage("encode", progress))

    def logits(
        self,
        parts: Sequence[Part],
        *,
        positions: Literal["all", "last"] = "all",
        progress: Progress | None = None,
        lora: str | None = None,
    ) -> NDArray[np.float32]:
        """The logits after every position of the parts, computed on a fresh session. lora: the name of an adapter.

        parts: each a list or integer array [n] of token ids, or a float array [n, hidden_size] of embeddings.
        positions: "all" gives float32 [n_positions, n_vocab], "last" gives [n_vocab].

        Raises BadRequest for a wrong part, ContextFull beyond n_ctx, OutOfMemory.
        """
        if positions not in ("all", "last"):
            raise BadRequest(f"positions: got {positions!r}, expected 'all' or 'last'", "request.positions")
        arrays = prepare_parts(parts, self.n_vocab, self.hidden_size, self.n_ctx)
        adapter = index_of(self.loaded.adapters.pick(lora))
        session = self.raw.session(sum(len(array) for array in arrays), adapter=adapter)
        result = session.prefill(arrays, positions, self._stage("prefill", progress))
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
        params = sampling.resolve(self.defaults, max_new_tokens=max_new_tokens, **sampling_options)
        arrays = prepare_parts(parts, self.n_vocab, self.hidden_size, self.n_ctx - 1)
        n_prompt = sum(len(array) for array in arrays)
        n_new = min(params.max_new_tokens, self.n_ctx - n_prompt)
        sampler = sampling.make_sampler(params)
        stop_ids = frozenset() if ignore_stop else self.loaded.tokenizer.stop_ids
        adapter = index_of(self.loaded.adapters.pick(params.lora))
        session = self.raw.session(n_prompt + n_new, adapter=adapter)
        session.prefill(arrays, "last", self._stage("prefill", progress))
        tokens = islice(session.tokens(sampler), n_new)
        return list(takewhile(lambda token: token not in stop_ids, tokens))

    # Inside

    def _question(
        self,
        prompt: str,
        images: Sequence[ImageInput | ProcessedImage],
        documents: Sequence[DocumentInput],
        image_patches: int | None,
        system: str | None,
    ) -> tuple[list[Any], list[ImageInput | LimitedImage | ProcessedImage], list[str]]:
        """The messages of one question, its pictures, pages first, and notices on its documents."""
        check_text("prompt", prompt)
        pages, notices = open_pages(documents)
        pictures = limit_images(self.loaded, [*pages, *check_images(images)], image_patches)
        content = user_content(prompt, [text_around(picture) for picture in pictures])
        messages: list[Any] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": check_text("system", system)})
        return messages, pictures, notices

    def require_vision(self) -> None:
        """Raises BadRequest (code "model.no_vision") when the model was loaded without a vision file."""
        self.loaded.require_vision()

    def _stage(self, stage: str, progress: Progress | None) -> Any:
        """The core's progress callback for a call outside of a Generation; ends the call when the model is closed."""
        report = progress or self.progress

        def tick(done: int, total: int) -> None:
            self.loaded.gate.check_running()
            if report is not None:
                report(stage, done, total)

        return tick
