"""An open model: what everything that generates needs of it. Below conversations, translations and the public face.

Owns opening and closing: files, engine, tokenizer, image processor, caches, conductor and limits. Refuses to know
what is asked of the model.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import Protocol

from .. import _core
from ..cache.disk import DEFAULT_QUOTA, DiskStore
from ..cache.images import ImageCache
from ..cache.keys import root_key, salted
from ..checks import check_choice, check_int, check_text, expand_home
from ..errors import BadRequest, OutOfMemory, shown
from ..files import model_files
from ..files.digest import code_digest, model_digest
from ..files.model_files import ModelFiles
from ..files.variants import (
    DEFAULTS,
    Variant,
    default_in_token_limit,
    detect_variant,
    stored_defaults,
    stored_in_token_limit,
)
from ..machine.memory import check_memory, free_bytes, shrink_to_fit
from ..media.processor import ImageInput, ImageProcessor, LimitedImage, ProcessedImage
from ..scheduler.conductor import Conductor
from ..scheduler.gate import Gate
from ..scheduler.resources import Resources
from ..text.template_check import OTHER_TEMPLATE
from ..text.tokenizer import Tokenizer
from ..types import Progress, SamplingDefaults
from ..version import __version__
from .adapters import Adapters, LoadedAdapter, Lora, keyed, load_adapters
from .grammar import GrammarCompiler

DEFAULT_N_CTX = 8192  # for which there is always memory in the pool; where it holds more, up to the next
LARGEST_DEFAULT_N_CTX = 32768
MIN_N_CTX = 1024  # a default context is not made smaller than this when memory is short
MOST_BESIDE_SMALL_WEIGHTS = 64 << 20  # bytes of pages that are kept by default, where the weights take less
DEFAULT_IMAGE_CACHE_BYTES = 256 << 20
DEFAULT_MAX_PARALLEL = 16
_MAX_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is opened; the fields are the arguments of `KimiVL`, which documents them."""

    n_ctx: int | None = None
    n_threads: int | None = None
    device: str = "cpu"
    isa: str = "auto"
    kv_type: str = "auto"
    activations: str = "int8"
    in_token_limit: int | None = None
    image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES
    kv_memory: int | None = None
    max_parallel: int = DEFAULT_MAX_PARALLEL
    speculate: str = "auto"
    overflow: str = "error"
    cache_dir: str | os.PathLike[str] | None = None
    cache_disk: int = DEFAULT_QUOTA
    memory_check: bool = True
    lora: Lora | None = None

    def check(self) -> None:
        """Raises BadRequest (code "request.<argument>") for a value out of range."""
        if self.n_ctx is not None:
            check_int("n_ctx", self.n_ctx, 0, 1 << 31)
        if self.n_threads is not None:
            check_int("n_threads", self.n_threads, 0, _MAX_THREADS)
        if self.in_token_limit is not None:
            check_int("in_token_limit", self.in_token_limit, 4, 512 * 512)
        check_choice("device", self.device, tuple(_core.backends()))
        check_text("isa", self.isa)
        check_text("kv_type", self.kv_type)
        check_text("activations", self.activations)
        check_int("image_cache_bytes", self.image_cache_bytes, 0, 1 << 62)
        if self.kv_memory is not None:
            check_int("kv_memory", self.kv_memory, 1, 1 << 62)
        check_int("max_parallel", self.max_parallel, 1, 1024)
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, os.PathLike)):
            raise BadRequest(f"cache_dir: got {shown(self.cache_dir)}, expected a path", "request.cache_dir")
        check_int("cache_disk", self.cache_disk, 1 << 20, 1 << 62)
        check_choice("overflow", self.overflow, ("error", "drop_turns"))
        check_choice("speculate", self.speculate, ("auto", "off"))


@dataclass(kw_only=True)
class LoadedModel:
    """The parts of an open model.

    gate: the lock that every call of the core goes through. conductor: what answers requests. n_ctx: tokens of context.
    root: what the keys of cached pages begin with, vision_root: those of encoded pictures, both without an adapter.
    adapters: the LoRA adapters beside the weights. defaults: sampling options
    of this variant. progress: the callback of calls that were given none. grammars: compiles those of requests. load_s:
    seconds that opening took.
    """

    files: ModelFiles
    kv_type: str
    engine: _core.Engine
    gate: Gate
    tokenizer: Tokenizer
    processor: ImageProcessor
    image_cache: ImageCache
    conductor: Conductor
    n_ctx: int
    root: bytes
    vision_root: bytes
    variant: Variant
    name: str
    defaults: SamplingDefaults
    adapters: Adapters = field(default_factory=Adapters)
    progress: Progress | None = None
    overflow: str = "error"
    load_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.grammars = GrammarCompiler(self.tokenizer, self.n_vocab)

    @property
    def notices(self) -> list[str]:
        """What is worth knowing about the files."""
        return [*([] if self.tokenizer.template_is_kimis else [OTHER_TEMPLATE]), *self.adapters.notices]

    @property
    def has_vision(self) -> bool:
        """Whether a vision part was loaded."""
        return bool(self.engine.config["has_vision"])

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary, the last dimension of logits."""
        return int(self.engine.config["n_vocab"])

    @property
    def hidden_size(self) -> int:
        """Width of an embedding."""
        return int(self.engine.config["hidden_size"])

    @property
    def context_length(self) -> int:
        """Tokens of context that the model was trained for."""
        return int(self.engine.config["context_length"])

    def require_vision(self) -> None:
        """Raises BadRequest (code "model.no_vision") when the model was loaded without a vision part."""
        if not self.has_vision:
            raise BadRequest(
                f"{self.files.text}: a picture was given, but the model was loaded without a vision file. "
                f"{self.files.why_no_mmproj}",
                "model.no_vision",
            )

    def process_image(self, image: ImageInput | LimitedImage | ProcessedImage) -> ProcessedImage:
        """A picture as the vision tower will see it. Raises BadImage, and BadRequest without a vision part."""
        self.gate.check()
        self.require_vision()
        return self.processor(image)

    def kept_image(self, image: ImageInput | LimitedImage | ProcessedImage) -> ProcessedImage:
        """The same for a picture that stays: memory does not grow with the pages of a document."""
        self.gate.check()
        self.require_vision()
        return self.processor.redrawable(image)

    def page_root(self, adapter: LoadedAdapter | None, salt: str = "") -> bytes:
        """What the keys of pages begin with that are computed with an adapter."""
        return salted(keyed(self.root, adapter), salt)

    def picture_key(self, seen: ProcessedImage, adapter: LoadedAdapter | None, salt: str = "") -> str:
        """What a picture is cached under: the same key, the same embeddings."""
        root = keyed(self.vision_root, adapter) if adapter is not None and adapter.pictures else self.vision_root
        return salted(hashlib.sha256(root + bytes.fromhex(seen.digest)).digest(), salt).hex()

    def close(self) -> None:
        """Frees everything; waits for the core call that is running."""
        self.gate.close()
        self.image_cache.clear()


class Opened(Protocol):
    """What holds an open model: `KimiVL`."""

    @property
    def loaded(self) -> LoadedModel: ...


def load(
    path: str | os.PathLike[str],
    mmproj: str | os.PathLike[str] | None,
    options: LoadOptions,
    progress: Progress | None = None,
) -> LoadedModel:
    """Opens a model: finds its files, checks that it can fit, maps the weights and makes the pool of the KV cache.

    Raises BadModelFile, OutOfMemory (with what would fit), BadRequest for a wrong option.
    """
    options.check()
    started = time.perf_counter()
    if progress is not None:
        progress("load", 0, 1)
    files = model_files.resolve(path, mmproj, options.kv_type)
    n_ctx = _context(files, options)
    vision_path = None if files.mmproj is None else str(files.mmproj)
    engine = _core.Engine(
        str(files.text), vision_path, options.n_threads or 0, options.isa, options.activations, options.device
    )
    gate = Gate(engine.close)
    try:
        variant = detect_variant(engine.gguf.get, files.text)
        adapters = load_adapters(engine, options.lora)
        pool, n_ctx = _pool(engine, options, n_ctx, files.file_bytes)
        root = _root(engine, options, pool.kv_type)
        folder = options.cache_dir
        store = None if folder is None else DiskStore(expand_home(os.fspath(folder)), root, options.cache_disk)
        images = ImageCache(options.image_cache_bytes, store)

        def new_session(adapter: int) -> _core.Session:
            return _core.Session(engine, n_ctx, options.kv_type, pool, adapter)

        conductor = Conductor(
            Resources(engine=engine, pool=pool, features=images, new_session=new_session, store=store),
            gate,
            max_parallel=options.max_parallel,
            drafts=options.speculate == "auto",
        )
        loaded = LoadedModel(
            files=files,
            kv_type=options.kv_type,
            engine=engine,
            gate=gate,
            tokenizer=Tokenizer.from_gguf(engine.gguf, vision=bool(engine.config["has_vision"])),
            processor=_processor(engine, variant, options.in_token_limit),
            image_cache=images,
            conductor=conductor,
            n_ctx=n_ctx,
            root=root,
            vision_root=model_digest(engine.vision_gguf or engine.gguf),
            variant=variant,
            name=str(engine.config.get("name") or files.text.stem),
            defaults=stored_defaults(engine.gguf.get, DEFAULTS[variant]),
            adapters=adapters,
            progress=progress,
            overflow=options.overflow,
        )
    except BaseException:
        gate.close()
        raise
    loaded.load_s = time.perf_counter() - started
    if progress is not None:
        progress("load", 1, 1)
    return loaded


def _root(engine: _core.Engine, options: LoadOptions, kv_type: str) -> bytes:
    """What the keys of pages begin with."""
    code = code_digest(str(_core.__file__)).hex()
    arithmetic = [__version__, code, options.device, engine.config["isa"], options.activations]
    return root_key(model=model_digest(engine.gguf), arithmetic=" ".join(arithmetic), kv_type=kv_type)


def _context(files: ModelFiles, options: LoadOptions) -> int:
    """Tokens of context. Raises OutOfMemory when the estimate is more than this machine, the process or the GPU has."""
    gpu_bytes = None if options.device == "cpu" else _core.backend_memory(options.device)
    if options.n_ctx is None:
        n_ctx = min(DEFAULT_N_CTX, files.context_length)
        if options.memory_check:
            n_ctx = shrink_to_fit(files, n_ctx, MIN_N_CTX, gpu_bytes)
    else:
        n_ctx = options.n_ctx or files.context_length
    if options.memory_check:
        check_memory(files, n_ctx, gpu_bytes)
    return n_ctx


def _pool(engine: _core.Engine, options: LoadOptions, n_ctx: int, weight_bytes: int) -> tuple[_core.PagePool, int]:
    """The memory of all caches, and the tokens of context, which the pool can always hold: pages are taken as positions
    come, so a context that was not asked for may be as long as the pool allows.

    Raises BadRequest (code "request.n_ctx") beyond what the model was trained for, OutOfMemory.
    """
    context_length = int(engine.config["context_length"])
    if n_ctx > context_length:
        raise BadRequest(
            f"n_ctx: got {n_ctx}, but the model was trained for {context_length} tokens: "
            f"use n_ctx <= {context_length}, or 0 for all of them",
            "request.n_ctx",
        )
    page_bytes = _core.PAGE_POSITIONS * engine.kv_bytes_per_token(options.kv_type)
    free = (free_bytes() or 0) if options.device == "cpu" else _core.backend_memory(options.device)
    largest = n_ctx if options.n_ctx is not None else min(LARGEST_DEFAULT_N_CTX, context_length)

    def needed(n_ctx: int) -> int:
        return (-(-n_ctx // _core.PAGE_POSITIONS) + 1) * page_bytes  # one more: an answer's page may be a copy

    default = min(free // 4, max(weight_bytes, MOST_BESIDE_SMALL_WEIGHTS))
    while True:
        least = needed(n_ctx)
        budget = max(least, default) if options.kv_memory is None else options.kv_memory
        try:
            if budget >= least:
                pool = _core.PagePool(engine, budget, options.kv_type)
                while n_ctx < largest and needed(min(2 * n_ctx, largest)) <= budget:
                    n_ctx = min(2 * n_ctx, largest)
                return pool, n_ctx
            text = f"kv_memory: got {options.kv_memory} bytes, but a context of {n_ctx} tokens needs {least}"
            error: OutOfMemory | BadRequest = BadRequest(text + ": give more, or a smaller n_ctx", "request.kv_memory")
        except OutOfMemory as refused:
            error = refused
        if options.n_ctx is not None or n_ctx // 2 < MIN_N_CTX:
            raise error
        n_ctx //= 2


def _processor(engine: _core.Engine, variant: Variant, in_token_limit: int | None) -> ImageProcessor:
    config = engine.config
    if in_token_limit is None:
        vision = engine.vision_gguf or engine.gguf
        in_token_limit = stored_in_token_limit(vision.get) or default_in_token_limit(variant)
    return ImageProcessor(
        patch_size=config.get("patch_size") or 14,
        merge=config.get("merge") or 2,
        in_token_limit=in_token_limit,
        max_grid_side=config.get("max_grid_side") or 512,
    )
