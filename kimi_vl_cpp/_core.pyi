"""Types of the C++ extension. Errors are those of `kimi_vl_cpp.errors`.

All calls that take more than about a millisecond release the GIL, and notice Ctrl-C on the main thread within 100 ms
by raising KeyboardInterrupt.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

class TensorInfo:
    """One row of a file's tensor directory."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """NumPy order: slowest dimension first."""
    @property
    def ne(self) -> tuple[int, ...]:
        """GGUF order: contiguous dimension first."""
    @property
    def type(self) -> str: ...
    @property
    def supported(self) -> bool: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_elems(self) -> int: ...
    @property
    def offset(self) -> int:
        """Bytes from the start of its shard."""
    @property
    def shard(self) -> int: ...

class GGUFFile:
    """Metadata and tensors of a GGUF file, all shards of a split one. Raises BadModelFile."""

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def n_shards(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def tensors(self) -> list[TensorInfo]: ...
    def keys(self) -> list[str]: ...
    def get(self, key: str) -> Any:
        """int, float, bool, str, list of these, or None when the key is absent."""
    def get_bytes_list(self, key: str) -> list[bytes] | None: ...
    def get_int(self, key: str) -> int | None:
        """Of any integer type. Here and below: another type is BadModelFile with code "gguf.key_type"."""
    def get_float(self, key: str) -> float | None:
        """Of type f32 or f64."""
    def get_bool(self, key: str) -> bool | None: ...
    def get_ints(self, key: str) -> list[int] | None:
        """An array of any integer type."""
    def get_floats(self, key: str) -> list[float] | None:
        """An array of f32 or f64."""
    def value_type(self, key: str) -> str:
        """As "u32", "string" or "array[i32]"."""
    def tensor_f32(self, name: str) -> NDArray[np.float32]:
        """Decoded, in NumPy order. Raises Unsupported when its type is not among formats()."""
    def tensor_raw(self, name: str) -> NDArray[np.uint8]: ...

SAMPLER_LIMITS: dict[str, tuple[Any, Any]]
"""Sampling option -> the smallest and the largest value allowed."""

class Sampler:
    """Chooses token ids; the same seed and the same logits give the same ids."""

    def __init__(
        self,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
    ) -> None: ...
    def sample(self, logits: NDArray[np.float32]) -> int:
        """logits: [n_vocab]."""
    def accept(self, token: int) -> None:
        """Adds a token to the history of the repeat penalty (Session.sample does it itself)."""

class Engine:
    """The immutable part: files, weights, backend."""

    def __init__(
        self,
        path: str,
        mmproj: str | None = None,
        n_threads: int = 0,
        isa: str = "auto",
        activations: str = "int8",
        backend: str = "cpu",
        library: str = "",
    ) -> None:
        """backend: one of `backends()`. isa: of "cpu" alone. library: of "cuda" alone, the file that holds it, in place
        of libkimi_cuda.so beside the package's core.

        Raises Unsupported "device.plugin" for a backend whose library cannot be loaded, "device.none" without a GPU,
        BadRequest "device.unknown" for another name, "device.option" for an option that the backend does not have."""
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def gguf(self) -> GGUFFile: ...
    @property
    def vision_gguf(self) -> GGUFFile | None: ...
    def vision_tower(
        self, pixels: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None, adapter: int = -1
    ) -> NDArray[np.float32]:
        """pixels: [H, W, 3], H and W multiples of 28 -> [(H/14)*(W/14), vision_hidden_size]. adapter: as for
        `Session`."""
    def encode_image(
        self, pixels: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None, adapter: int = -1
    ) -> NDArray[np.float32]:
        """pixels: [H, W, 3], H and W multiples of 28 -> [(H/28)*(W/28), hidden_size]. adapter: as for `Session`."""
    def add_adapter(self, changes: Sequence[tuple[str, int, NDArray[np.float32], NDArray[np.float32]]]) -> int:
        """Low-rank factors beside the weights, for sessions and pictures that name the adapter by the number returned:
        for matrix `index` of the stack `name`, a [rank, columns] and b [rank, rows] add transpose(b) (a x) to its
        product with x. The factors are copied, as float32.

        Raises BadModelFile "lora.module", "lora.shape", Unsupported "lora.backend"; then nothing has changed."""
    @property
    def adapter_bytes(self) -> int:
        """Memory that the factors of all adapters take."""
    def step(
        self,
        slices: Sequence[tuple[Session, NDArray[Any], Literal["none", "last", "all"]]],
        expanded: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> list[NDArray[np.float32] | None]:
        """Advances several sessions in one pass over the weights. expanded: for each slice as in `Session.prefill`."""
    def decode(
        self, rows: Sequence[tuple[Session, int | Sequence[int], Sampler | None]]
    ) -> list[int | list[int] | Exception | None]:
        """One step of several sessions: a row appends a token to its session, samples the next one and shows it to the
        sampler. Logits stay in the session. None for a sampler: nothing is sampled, the outcome is None.

        A row with a list of tokens carries drafts: the first token is the sequence's next, the others are guesses at
        those after it. All are computed in one pass; one token after the other is sampled and compared with the guess,
        up to the first that differs, and the session keeps what agreed. The outcome is the list of new tokens, 1 to
        len(tokens): those of plain decoding, whatever the temperature. Drafts that n_ctx or the pool has no room for
        are left out.

        A row that fails has its error in its place (ContextFull, OutOfMemory, BadRequest ...) and its session is as
        before; the other rows are not affected. A session or a sampler may appear once.
        """
    def begin_prefill(
        self,
        session: Session,
        parts: Sequence[NDArray[Any]],
        logits: Literal["none", "last", "all"] = "last",
        expanded: NDArray[np.bool_] | None = None,
        chunk: int = 0,
    ) -> PrefillTask:
        """`Session.prefill` in pieces: raises what it would, before any work, and computes nothing yet."""
    def begin_image(self, pixels: NDArray[np.uint8], adapter: int = -1) -> ImageTask:
        """`encode_image` in pieces: raises what it would, and computes nothing yet. pixels must not change before the
        first `advance`."""
    def kv_bytes_per_token(self, kv_type: str = "auto") -> int:
        """Bytes of the KV cache for one position of all layers."""
    def close(self) -> None:
        """Later use of it or of its sessions raises BadRequest with code "engine.closed"."""

class PrefillTask:
    """A prompt on its way through the decoder, chunk by chunk and layer by layer.

    Between two calls of `advance` other tasks, steps and calls of the engine may run; the bits are those of
    `Session.prefill`. Until the task is done, fails or is cancelled (dropping it cancels it), every other use of its
    session raises BadRequest "session.busy"; `Session.n_past` counts the chunks that are whole.
    """

    def advance(self, n_layers: int = 1) -> bool:
        """Computes up to n_layers layers, of the next chunk too when one is finished; the last layer of the prompt
        includes the logits. Returns `done`. An error, or a signal handler that raises, ends the task: the session then
        holds the whole chunks. Raises BadRequest "task.ended" after that or after `cancel`."""
    @property
    def done(self) -> bool: ...
    @property
    def n_done(self) -> int:
        """New positions that the session holds: those of whole chunks."""
    @property
    def logits(self) -> NDArray[np.float32] | None:
        """What `Session.prefill` would have returned. Raises BadRequest "task.unfinished" before it is done."""
    def cancel(self) -> None:
        """Ends it: the session is free, and holds the whole chunks. Harmless when it has ended already."""

class ImageTask:
    """A picture on its way through MoonViT and the projector, with the bits of `Engine.encode_image`.

    Between two calls of `advance` other tasks, steps and calls of the engine may run.
    """

    def advance(self, n_blocks: int = 1) -> bool:
        """Computes up to n_blocks of: the patches, every block of the tower, the projector. Returns `done`. Errors end
        it as they end a PrefillTask."""
    @property
    def done(self) -> bool: ...
    @property
    def result(self) -> NDArray[np.float32]:
        """[(H/28)*(W/28), hidden_size]. Raises BadRequest "task.unfinished" before it is done."""
    def cancel(self) -> None:
        """Ends it and frees its memory. Harmless when it has ended already."""

class Importance:
    """Sums of squares of what every weight of an engine is multiplied with, over all of its calls from now on.

    Attention then runs in its absorbed form, whatever the length of a prompt: slower, and the same within rounding. One
    at a time for an engine: BadRequest "importance.busy"; after close() "importance.closed".
    """

    def __init__(self, engine: Engine) -> None: ...
    def sums(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """GGUF tensor name -> sums [n_matrices, n_cols] and numbers of rows [n_matrices], of all tensors with any. The
        same bits for any number of threads."""
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """The numbers of rows alone."""
    def close(self) -> None:
        """Stops watching, drops the sums."""

class Page:
    """A counted reference to a page of a pool: up to PAGE_POSITIONS positions of all layers.

    A page that anybody refers to does not change: a session that wants to write into it gets a copy.
    """

    @property
    def n_filled(self) -> int:
        """Rows that have been written."""
    @property
    def sealed(self) -> bool:
        """Whether all PAGE_POSITIONS rows have been written."""
    @property
    def nbytes(self) -> int:
        """What it counts for in the pool's budget."""
    def read(self) -> bytes:
        """The rows of all layers, [n_layers][n_filled][row bytes]: `nbytes * n_filled / PAGE_POSITIONS` bytes."""

class PagePool:
    """The memory of the caches of any number of sessions, handed out in pages."""

    def __init__(self, engine: Engine, budget: int, kv_type: str = "auto") -> None:
        """budget: bytes of all pages handed out, a page at least (BadRequest "request.budget"). Raises OutOfMemory with
        code "memory.kv_pages" when the machine has less; so does every call that needs a page and finds the budget used
        up, before it touches any memory."""
    @property
    def budget(self) -> int: ...
    @property
    def bytes_in_use(self) -> int:
        """n_pages * page_bytes."""
    @property
    def page_bytes(self) -> int: ...
    @property
    def n_pages(self) -> int:
        """Pages handed out: each counts once, however many refer to it."""
    @property
    def kv_type(self) -> str: ...
    def page_from(self, rows: Any, n_filled: int) -> Page:
        """A page of these bytes (any bytes-like object), as `Page.read` gave them. Raises BadRequest "request.page"
        when there are not as many as n_filled rows have."""

class Session:
    """One sequence of positions; its KV cache lies in pages."""

    def __init__(
        self, engine: Engine, n_ctx: int, kv_type: str = "auto", pool: PagePool | None = None, adapter: int = -1
    ) -> None:
        """n_ctx: a limit; pages are taken as positions come. pool None: a pool of its own, that grows to n_ctx.
        adapter: what `Engine.add_adapter` returned, which counts for every row, -1 for none. Raises BadRequest
        "request.adapter"."""
    @property
    def n_past(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def kv_bytes(self) -> int:
        """Of the pages that it refers to, shared ones too."""
    @property
    def pages(self) -> list[Page]:
        """Of all positions, in order; the last may be partial, and after `truncate` hold more rows than count. While
        the last one is referred to from here, the session's next token costs a copy of it."""
    def adopt(self, pages: Sequence[Page], n_past: int) -> None:
        """Takes the first n_past positions of pages of its pool, by reference; n_past may end inside the last page.
        Only in an empty session, which has no logits until something is appended. Raises BadRequest "request.pages".
        """
    def fork(self) -> Session:
        """A session of the same pool with the same positions and logits; both go on independently."""
    @property
    def logits(self) -> NDArray[np.float32]:
        """[n_vocab]: a copy of the last position's logits."""
    def prefill(
        self,
        parts: Sequence[NDArray[Any]],
        logits: Literal["none", "last", "all"] = "last",
        progress: Callable[[int, int], None] | None = None,
        chunk: int = 0,
        expanded: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32] | None:
        """parts: int32 [n] ids or float32 [n, hidden_size] embeddings, appended. Raises ContextFull before any work.

        expanded: bool [n], the form of each row (docs/architecture.md, "The same bits"); None: expanded where the rows
        fill a page of PAGE_POSITIONS whole. Bits follow from rows and forms, not from chunk or the cut into calls.
        """
    def truncate(self, n_past: int) -> None: ...
    def decode(self, token: int) -> None: ...
    def sample(self, sampler: Sampler) -> int: ...

def formats() -> list[dict[str, Any]]:
    """The tensor types that are read: name, id, block_elems, block_bytes, bits_per_weight, and whether `quantize_rows`
    writes it (writable)."""

def decode(type_name: str, raw: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """`n` elements of a format's blocks. Raises BadRequest when the sizes do not fit."""

def quantize_rows(
    type_name: str,
    data: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16],
    importance: NDArray[np.float32] | None = None,
    n_threads: int = 0,
    isa: str = "auto",
) -> NDArray[np.uint8]:
    """Rows [n_rows, n_cols] (uint16: bfloat16) into blocks, uint8 [n_rows, row_bytes].

    The same bytes for any n_threads and isa.

    importance: [n_cols], what a squared error in each column weighs. Raises BadRequest: quant.not_finite (names row and
    column), quant.overflow, quant.columns, quant.type, quant.data, quant.importance, cpu.isa. Raises Unsupported:
    quant.no_encoder for a format that is only read."""

class _Bench:
    """What this machine could do at most, measured. n_threads 0: automatic. Raises BadRequest, Unsupported."""

    def read_bandwidth(self, n_threads: int = 0, seconds: float = 0.3) -> float:
        """Reading memory beyond all caches: GB/s."""
    def int8_peak(self, isa: str = "auto", n_threads: int = 0, seconds: float = 0.2) -> float:
        """Multiply-adds of int8, two operations each: GOPS."""
    def f32_peak(self, isa: str = "auto", n_threads: int = 0, seconds: float = 0.2) -> float:
        """GFLOPS."""
    def bf16_peak(self, isa: str = "auto", n_threads: int = 0, seconds: float = 0.2) -> float:
        """GFLOPS; 0.0 when the instruction set has no bfloat16."""

bench: _Bench

_F32 = NDArray[np.float32]
_U8 = NDArray[np.uint8]
_Bits = NDArray[np.uint16]
_Arrays = tuple[NDArray[Any], ...]

class _Ops:
    """The kernels of each instruction set, for tests. Bits are those of float16 or bfloat16. A kernel that the
    instruction set does not have returns None. Raises BadRequest for arrays of other types or shapes."""

    def isas(self) -> list[str]:
        """Names of the instruction sets that this processor runs, best first."""
    def addresses(self, isa: str) -> dict[str, list[int]]:
        """Group of kernels -> addresses of its functions, 0 where there is none."""
    def sizes(self, isa: str) -> dict[str, int]:
        """panel_lanes, tile_lanes and max_attention_keys of a table."""
    def decode_row(self, isa: str, type: str, raw: _U8, n: int) -> _F32:
        """[n], exact."""
    def quantize_rows(self, isa: str, x: _F32) -> NDArray[Any]:
        """x [n, k] -> a structured array [n, k / 32] of blocks of 32."""
    def gemv(self, isa: str, type: str, w: _U8, x: NDArray[Any]) -> _F32:
        """w [n_rows, row_bytes], x from `quantize_rows` -> [n_x, n_rows]."""
    def gemv_float(self, isa: str, type: str, w: _U8, x: _F32) -> _F32:
        """w [n_rows, row_bytes] of F32, F16 or BF16, x [n_x, k] -> [n_x, n_rows]."""
    def gemm(self, isa: str, type: str, w: _U8, x: NDArray[Any], rows: NDArray[np.int32] | None = None) -> _F32:
        """As gemv, through panels; rows [n]: the row of x that each output row takes."""
    def gemm_f32(self, isa: str, a: _F32, b: _F32, out: _F32 | None = None, transposed: bool = False) -> _F32:
        """a [m, k], or [k, m] when transposed, b [k, tile_lanes] -> a @ b, added to out when given."""
    def gemm_bf16(self, isa: str, a: _Bits, b: _Bits, into: Literal["floats", "rows", "pairs"]) -> NDArray[Any] | None:
        """a [m, k], b [k / 2, tile_lanes, 2] -> floats [m, tile_lanes], rows: bits of it, pairs: bits
        [(m + 1) / 2, tile_lanes, 2]."""
    def pack_panel(self, isa: str, type: str, w: _U8, k: int) -> dict[str, Any]:
        """One panel: q uint8 [k / 4, lanes, 4] with bias and max_q, scale and min float32 [k / group, lanes] (min None
        without), group, k."""
    def pack_bf16(self, isa: str, type: str, w: _U8, k: int) -> _Bits | None:
        """w [n_rows, row_bytes], its first k elements -> [k / 2, tile_lanes, 2]; None for types without such a kernel,
        too."""
    def transpose_panel(self, isa: str, w: _F32, k: int) -> _F32:
        """w [n_rows, ld] -> its first k columns as [k, tile_lanes]; missing rows are zeros."""
    def rms_norm(self, isa: str, x: _F32, weight: _F32, eps: float) -> _F32:
        """One row."""
    def layer_norm(self, isa: str, x: _F32, weight: _F32, bias: _F32, eps: float) -> _F32:
        """One row."""
    def silu_mul(self, isa: str, gate: _F32, up: _F32) -> _F32:
        """silu(gate) * up."""
    def gelu_tanh(self, isa: str, x: _F32) -> _F32: ...
    def gelu_erf(self, isa: str, x: _F32) -> _F32: ...
    def add_scaled(self, isa: str, x: _F32, scale: float, out: _F32) -> _F32:
        """out + scale * x."""
    def rotate_pairs(self, isa: str, x: _F32, cos_sin: _F32) -> _F32:
        """x [2 n], cos_sin [n, 2]; pairs (2j, 2j + 1)."""
    def f16_from_f32(self, isa: str, x: _F32) -> _Bits:
        """To nearest even."""
    def f32_from_f16(self, isa: str, x: _Bits) -> _F32: ...
    def f32_from_q8(self, isa: str, bytes: _U8, scales: _Bits, n: int) -> _F32:
        """scale * (byte - 128) of the first n."""
    def bf16_from_f32(self, isa: str, x: _F32) -> _Bits | None:
        """To nearest even."""
    def bf16_pairs_from_f32(self, isa: str, x: _F32, scale: float) -> _Bits | None:
        """scale * x, [n_rows, n_cols], as bits [(n_rows + 1) / 2, n_cols, 2]; the partner of an odd last row is
        zeros."""
    def attention_block(
        self,
        isa: str,
        q: _F32,
        k1: _F32,
        k2: _F32 | None,
        v: _F32,
        key0: int = 0,
        last_key: NDArray[np.int32] | None = None,
        state: _Arrays | None = None,
    ) -> _Arrays:
        """q [lanes, dk1 + dk2], k1 [n, dk1], k2 [n, dk2], v [n, dv], last_key [lanes], state (m, l, o) -> (m, l, o)."""
    def attention_block_bf16(
        self,
        isa: str,
        q_t: _Bits,
        k1: _Bits,
        k2: _Bits,
        v: _Bits,
        key0: int,
        last_key: NDArray[np.int32] | None,
        state: _Arrays,
    ) -> _Arrays | None:
        """q_t [dk / 2, lanes, 2], k1 [n, dk1], k2 [n, dk2], v [(n + 1) / 2, dv, 2], state (m, l, o_t) ->
        (m, l, o_t)."""
    def latent_block_f16(
        self,
        isa: str,
        q_t: _Bits,
        rows: _Bits,
        key0: int,
        last_key: NDArray[np.int32] | None,
        state: _Arrays,
    ) -> _Arrays | None:
        """q_t of bfloat16 [width / 2, lanes, 2], rows of float16 [n_keys, width], state (m, l, o_t [rank, lanes]) ->
        (m, l, o_t)."""
    def latent_block_q8(
        self,
        isa: str,
        q: NDArray[np.int8],
        q_scale: _F32,
        bytes: _U8,
        scales: _Bits,
        dv: int,
        key0: int,
        last_key: NDArray[np.int32] | None,
        state: _Arrays,
    ) -> _Arrays | None:
        """q [lanes, n], q_scale [lanes, n / 32], bytes [n_keys, n], scales of float16 [n_keys, n / 32], state (m, l, o)
        -> (m, l, o)."""

ops: _Ops

PAGE_POSITIONS: int
"""Positions of a page of the KV cache: the unit in which the form of rows is decided."""

def kv_row_bytes(kv_type: str, kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """Bytes of the KV cache for one position of one layer; auto counts as f16."""

def backends() -> list[str]:
    """What `Engine` takes as backend: the names that this version knows, installed or not."""

def describe_backend(name: str) -> str:
    """The variant that `Engine` would use of a backend: an instruction set, or the architecture of the GPU.

    Raises what Engine raises for it."""

def backend_memory(name: str) -> int:
    """Bytes that a backend could still allocate: of this machine, or of the GPU; 0: unknown.

    Raises what Engine raises for it."""

def check_text_model(gguf: GGUFFile) -> int: ...
def check_vision_file(gguf: GGUFFile, hidden_size: int | None = None) -> None: ...
def isas() -> list[dict[str, Any]]: ...
def cpu_info() -> dict[str, Any]: ...
def cpu_count() -> int: ...
