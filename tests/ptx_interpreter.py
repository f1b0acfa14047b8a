"""Runs PTX, as nvcc writes it, on the CPU: what the compiler made of a kernel, without a GPU.

The other half of the proof beside the emulator in C++: that one runs the kernel's source with its own meaning of each
instruction; this one runs the compiler's output, so it also reads the inline assembly (operands, order, types) and what
the optimiser did. It knows the instructions that the kernels come to, and refuses others by name.

Every register is a NumPy array with one number per thread of the grid. Threads step together, lowest program counter
first, which brings divergent ones together again; at a barrier they wait for the rest of their block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

WIDTH = {
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
}
DTYPE = {
    "u8": np.uint8,
    "s8": np.int8,
    "u16": np.uint16,
    "s16": np.int16,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
    "b8": np.uint8,
    "b16": np.uint16,
    "b32": np.uint32,
    "b64": np.uint64,
}
GLOBAL_BASE = 1 << 32  # addresses below are nobody's
SHARED_BASE = 0


class PtxError(Exception):
    pass


@dataclass
class Instruction:
    op: str
    args: list
    predicate: str | None
    negated: bool
    line: int


@dataclass
class Kernel:
    name: str
    params: list = field(default_factory=list)  # (name, bytes, align)
    code: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)
    shared: dict = field(default_factory=dict)  # name -> (offset, bytes); dynamic: bytes 0


def _split(text: str) -> list:
    """Operands: names, numbers, [address], {lists}."""
    out, depth, start = [], 0, 0
    for i, ch in enumerate(text):
        depth += (ch in "[{(" and 1) or -(ch in "]})")
        if ch == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        out.append(text[start:].strip())
    return [[p.strip() for p in a[1:-1].split(",")] if a.startswith("{") else a for a in out]


def parse(text: str) -> dict[str, Kernel]:
    kernels, kernel, module_shared = {}, None, {}
    text = re.sub(r"//[^\n]*", "", text)
    lines = text.split("\n")
    statement = ""
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line:
            continue
        m = re.match(r"(?:\.visible |\.weak )?\.entry ([\w$]+)\(", line)
        if m:
            kernel = Kernel(m[1], shared=dict(module_shared))
            kernels[m[1]] = kernel
            continue
        m = re.match(r"(?:\.extern )?\.shared \.align (\d+) \.b8 ([\w$]+)(?:\[(\d*)\])?;", line)
        if m:
            (kernel.shared if kernel else module_shared)[m[2]] = (0, int(m[3] or 0))
            continue
        if kernel is None:
            continue
        m = re.match(
            r"\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr (?:\.\w+ )?(?:\.align \d+ )?)?([\w$]+)(?:\[(\d+)\])?", line
        )
        if m and not kernel.code:
            size = WIDTH[m[2]] * int(m[4] or 1)
            kernel.params.append((m[3], size, int(m[1] or WIDTH[m[2]])))
            continue
        if line in (")", "{", "}"):
            if line == "}" and kernel.code:
                kernel = None
            continue
        if re.match(r"\.(maxntid|minnctapersm|reg|pragma|loc|file|version|target|address_size)\b", line):
            continue
        m = re.match(r"(\$?[\w$]+):$", line)
        if m:
            kernel.labels[m[1]] = len(kernel.code)
            continue
        statement += " " + line
        if not line.endswith(";"):
            continue
        for one in statement.strip().rstrip(";").split(";"):
            one = one.strip()
            m = re.match(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$", one)
            if not m:
                raise PtxError(f"line {number}: {one}")
            kernel.code.append(Instruction(m[3], _split(m[4]), m[2], m[1] == "!", number))
        statement = ""
    return kernels


class Memory:
    """Device memory: arrays by address, with a gap between them."""

    def __init__(self):
        self.arrays, self.starts, self.next = [], [], GLOBAL_BASE

    def put(self, array: np.ndarray) -> int:
        at = self.next
        self.arrays.append(np.frombuffer(bytearray(np.ascontiguousarray(array).tobytes()), np.uint8))
        self.starts.append(at)
        self.next = (at + array.nbytes + 4095) // 4096 * 4096 + 4096
        return at

    def get(self, at: int, dtype, shape) -> np.ndarray:
        return self.arrays[self.starts.index(at)].view(dtype).reshape(shape)

    def locate(self, address: np.ndarray, size: int):
        which = np.searchsorted(self.starts, address.astype(np.int64), "right") - 1
        if (which < 0).any():
            raise PtxError(f"address {int(address.min()):#x} outside of memory")
        if (address % np.uint64(size)).any():
            raise PtxError("misaligned access")
        return which

    def load(self, address, size):
        out = np.empty((len(address), size), np.uint8)
        which = self.locate(address, size)
        for w in np.unique(which):
            lanes, array = which == w, self.arrays[w]
            offset = address[lanes].astype(np.int64) - self.starts[w]
            if (offset + size > len(array)).any():
                raise PtxError(f"load of {size} bytes {int(offset.max())} bytes into an array of {len(array)}")
            out[lanes] = array[offset[:, None] + np.arange(size)]
        return out

    def store(self, address, value):
        size = value.shape[1]
        which = self.locate(address, size)
        for w in np.unique(which):
            lanes, array = which == w, self.arrays[w]
            offset = address[lanes].astype(np.int64) - self.starts[w]
            if (offset + size > len(array)).any():
                raise PtxError(f"store of {size} bytes {int(offset.max())} bytes into an array of {len(array)}")
            array[offset[:, None] + np.arange(size)] = value[lanes]


class Grid:
    def __init__(self, kernel: Kernel, memory: Memory, grid, block, shared_bytes: int, params: bytes):
        self.kernel, self.memory = kernel, memory
        self.block = np.array(list(block) + [1] * (3 - len(block)))
        self.grid = np.array(list(grid) + [1] * (3 - len(grid)))
        per, blocks = int(self.block.prod()), int(self.grid.prod())
        self.n, self.per = per * blocks, per
        assert per % 32 == 0 and self.block[1] == self.block[2] == 1
        linear, number = np.tile(np.arange(per), blocks), np.repeat(np.arange(blocks), per)
        self.number = number
        self.special = {
            "%tid.x": linear,
            "%ntid.x": np.full(self.n, per),
            "%laneid": linear % 32,
            "%ctaid.x": number % self.grid[0],
            "%ctaid.y": number // self.grid[0] % self.grid[1],
            "%ctaid.z": number // self.grid[0] // self.grid[1],
            "%nctaid.x": np.full(self.n, self.grid[0]),
            "%nctaid.y": np.full(self.n, self.grid[1]),
        }
        self.shared = np.full((blocks, shared_bytes), 0xFF, np.uint8)
        self.params = np.frombuffer(params, np.uint8)
        self.param_at, at = {}, 0
        for name, size, align in kernel.params:
            at = (at + align - 1) // align * align
            self.param_at[name] = at
            at += size
        self.reg: dict[str, np.ndarray] = {}
        self.pc = np.zeros(self.n, np.int64)
        self.waiting = np.zeros(self.n, bool)
        self.steps = 0
        self.used: set[str] = set()

    # ---- operands -------------------------------------------------------------------------------------------------
    def value(self, arg: str, kind: str, lanes) -> np.ndarray:
        dtype = DTYPE.get(kind, bool)
        if arg in self.special:
            return self.special[arg][lanes].astype(dtype)
        if arg.startswith("%"):
            bits = self.reg[arg][lanes]
            if kind == "pred":
                return bits
            size = np.dtype(dtype).itemsize
            if bits.dtype.itemsize != size:  # the low bytes of a wider register
                bits = bits.astype({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size])
            return bits.view(dtype)
        count = self.n if lanes is Ellipsis else int(np.count_nonzero(lanes))
        if arg.startswith("0f"):
            return np.full(count, np.uint32(int(arg[2:], 16)), np.uint32).view(dtype)
        if arg in self.kernel.shared:
            return np.full(count, SHARED_BASE, dtype)
        number = int(arg, 0)
        bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
        return np.full(count, number & ((1 << (8 * np.dtype(bits).itemsize)) - 1), bits).view(dtype)

    def set(self, name: str, value: np.ndarray, lanes):
        if value.dtype != bool:
            value = value.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[value.dtype.itemsize])
            if value.dtype == np.uint8:
                value = value.astype(np.uint16)
        if lanes is Ellipsis:
            self.reg[name] = value
            return
        old = self.reg.get(name)
        fits = old is not None and old.dtype == value.dtype
        old = old.copy() if fits else np.zeros(self.n, value.dtype)
        old[lanes] = value
        self.reg[name] = old

    def address(self, arg: str, lanes):
        m = re.match(r"\[([%\w$.]+)(?:\s*\+\s*(-?\d+))?\]", arg)
        base, offset = m[1], int(m[2] or 0)
        if base in self.param_at:
            return self.param_at[base] + offset
        wide = "u64" if base.startswith("%rd") else "u32"
        return self.value(base, wide, lanes).astype(np.int64) + offset

    # ---- running --------------------------------------------------------------------------------------------------
    def run(self):
        code, end = self.kernel.code, len(self.kernel.code)
        while True:
            live = self.pc < end
            if not live.any():
                return
            ready = live & ~self.waiting
            if not ready.any():
                raise PtxError("deadlock: every thread waits at a barrier")
            at = int(self.pc[ready].min())
            active = ready & (self.pc == at)
            whole = bool(active.all())
            others = self.pc[ready & ~active]
            stop = int(others.min()) if len(others) else end
            while at < stop:
                i = code[at]
                self.steps += 1
                self.used.add(i.op)
                lanes = Ellipsis if whole else active
                taken = None
                if i.predicate:
                    p = self.value(i.predicate, "pred", Ellipsis)
                    p = ~p if i.negated else p
                    lanes = p & active
                    if not lanes.any():
                        at += 1
                        self.pc[active] = at
                        continue
                if i.op in ("bra", "bra.uni"):
                    taken = lanes if i.predicate else active
                    self.pc[active] = at + 1
                    self.pc[taken] = self.kernel.labels[i.args[0]]
                    break
                if i.op == "ret":
                    self.pc[active] = at + 1
                    self.pc[lanes if i.predicate else active] = end
                    self.release()
                    break
                if i.op.startswith(("bar.sync", "barrier")):
                    self.pc[active] = at + 1
                    self.waiting[active] = True
                    self.release()
                    break
                try:
                    self.execute(i, lanes)
                except PtxError as error:
                    raise PtxError(f"{self.kernel.name} line {i.line}, {i.op} {i.args}: {error}") from None
                at += 1
                self.pc[active] = at

    def release(self):
        """Blocks whose living threads all wait may go on."""
        done = self.pc >= len(self.kernel.code)
        everyone = (self.waiting | done).reshape(-1, self.per).all(1)
        self.waiting &= ~np.repeat(everyone, self.per)

    # ---- instructions ---------------------------------------------------------------------------------------------
    def execute(self, i: Instruction, lanes):
        op, *mods = i.op.split(".")
        kind = mods[-1] if mods else ""
        a = i.args

        def get(k, t=kind):
            return self.value(a[k], t, lanes)

        with np.errstate(all="ignore"):
            if op in ("ld", "st"):
                return self.move_memory(op, mods, kind, a, lanes)
            if op == "mov":
                return self.set(a[0], get(1), lanes)
            if op in ("add", "sub"):
                return self.set(a[0], get(1) + get(2) if op == "add" else get(1) - get(2), lanes)
            if op in ("mul", "mad"):
                if kind == "f32":
                    return self.set(a[0], get(1) * get(2), lanes)
                if "wide" in mods:
                    big = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}[kind]
                    r = get(1).astype(DTYPE[big]) * get(2).astype(DTYPE[big])
                    return self.set(a[0], r + self.value(a[3], big, lanes) if op == "mad" else r, lanes)
                if "hi" in mods:
                    return self.set(
                        a[0],
                        (
                            get(1).astype(np.int64 if kind[0] == "s" else np.uint64)
                            * get(2).astype(np.int64 if kind[0] == "s" else np.uint64)
                            >> 32
                        ).astype(DTYPE[kind]),
                        lanes,
                    )
                r = get(1) * get(2)
                return self.set(a[0], r + get(3) if op == "mad" else r, lanes)
            if op == "fma":
                r = get(1).astype(np.float64) * get(2).astype(np.float64) + get(3).astype(
                    np.float64
                )  # one rounding too many in rare cases
                return self.set(a[0], r.astype(np.float32), lanes)
            if op in ("and", "or", "xor", "not"):
                if kind == "pred":
                    t = [self.value(x, "pred", lanes) for x in a[1:]]
                else:
                    t = [self.value(x, kind, lanes) for x in a[1:]]
                return self.set(
                    a[0],
                    ~t[0]
                    if op == "not"
                    else {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[op](t[0], t[1]),
                    lanes,
                )
            if op in ("shl", "shr"):
                by = self.value(a[2], "u32", lanes)
                bits = 8 * WIDTH[kind]
                x = get(1)
                r = (
                    x << np.minimum(by, bits - 1).astype(x.dtype)
                    if op == "shl"
                    else x >> np.minimum(by, bits - 1).astype(x.dtype)
                )
                if kind[0] != "s":
                    r = np.where(by >= bits, x.dtype.type(0), r)
                return self.set(a[0], r, lanes)
            if op in ("max", "min"):
                return self.set(
                    a[0],
                    (np.fmax if op == "max" else np.fmin)(get(1), get(2))
                    if kind[0] == "f"
                    else (np.maximum if op == "max" else np.minimum)(get(1), get(2)),
                    lanes,
                )
            if op in ("abs", "neg"):
                return self.set(a[0], np.abs(get(1)) if op == "abs" else -get(1), lanes)
            if op in ("div", "rem"):
                return self.set(a[0], divide(op, kind, get(1), get(2)), lanes)
            if op == "copysign":
                return self.set(a[0], np.copysign(get(2), get(1)), lanes)
            if op == "sqrt":
                return self.set(a[0], np.sqrt(get(1)), lanes)
            if op == "rcp":
                return self.set(a[0], np.float32(1) / get(1), lanes)
            if op == "ex2":
                return self.set(a[0], np.exp2(get(1).astype(np.float64)).astype(np.float32), lanes)
            if op == "selp":
                return self.set(a[0], np.where(self.value(a[3], "pred", lanes), get(1), get(2)), lanes)
            if op == "setp":
                x, y = get(1), get(2)
                compare = mods[0]
                unordered = len(compare) == 3 and compare[2] == "u"  # also true where one is not a number
                r = {"lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y, "eq": x == y, "ne": x != y}[compare[:2]]
                return self.set(a[0], r | (np.isnan(x) | np.isnan(y)) if unordered else r, lanes)
            if op == "cvt":
                return self.convert(mods, a, lanes)
            if op == "cvta":
                return self.set(a[0], get(1), lanes)
            if op == "dp4a":
                x, y = (self.value(a[k], "b32", lanes)[:, None] >> np.arange(0, 32, 8, dtype=np.uint32) for k in (1, 2))
                x, y = (
                    x.astype(np.uint8).view(np.int8).astype(np.int32),
                    y.astype(np.uint8).view(np.int8).astype(np.int32),
                )
                return self.set(a[0], (x * y).sum(1, dtype=np.int32) + self.value(a[3], "s32", lanes), lanes)
            if op == "prmt":
                both = np.stack(
                    [
                        self.value(a[k], "b32", lanes) >> np.uint32(8 * b) & np.uint32(255)
                        for k in (1, 2)
                        for b in range(4)
                    ],
                    1,
                )
                select = self.value(a[3], "b32", lanes)
                r = np.zeros(len(select), np.uint32)
                for b in range(4):
                    which = select >> np.uint32(4 * b)
                    byte = both[np.arange(len(select)), which & 7]
                    byte = np.where(which & 8, np.where(byte & 128, np.uint32(255), np.uint32(0)), byte)
                    r |= byte.astype(np.uint32) << np.uint32(8 * b)
                return self.set(a[0], r, lanes)
            if op in ("shfl", "vote", "ldmatrix", "mma"):
                return self.exchange(op, mods, a, lanes)
            if op == "cp" and mods[0] == "async":
                return self.copy_async(mods, a, lanes)
            if op in ("griddepcontrol", "membar", "fence") or i.op.startswith("bar.warp"):
                return None
        raise PtxError("unknown instruction")

    def convert(self, mods, a, lanes):
        if mods[0] == "rn" and mods[1] == "bf16x2":
            high, low = (self.value(x, "f32", lanes).view(np.uint32) for x in a[1:3])
            rounded = [
                (x + np.uint32(0x7FFF) + (x >> np.uint32(16) & np.uint32(1))) >> np.uint32(16) for x in (low, high)
            ]
            return self.set(a[0], rounded[0] | rounded[1] << np.uint32(16), lanes)
        to, source = mods[-2], mods[-1]
        if source == "f16":
            return self.set(a[0], self.value(a[1], "u16", lanes).view(np.float16).astype(np.float32), lanes)
        x = self.value(a[1], source, lanes)
        if to == "f16":
            return self.set(a[0], x.astype(np.float16).view(np.uint16), lanes)
        if "rzi" in mods or "rni" in mods:
            x = np.trunc(x) if "rzi" in mods else np.rint(x)
        return self.set(a[0], x.astype(DTYPE[to]), lanes)

    def move_memory(self, op, mods, kind, a, lanes):
        space = mods[0]
        vector = 4 if "v4" in mods else 2 if "v2" in mods else 1
        size = WIDTH[kind]
        target, source = (a[0], a[1]) if op == "ld" else (a[1], a[0])
        names = target if isinstance(target, list) else [target]
        at = self.address(source, lanes)
        if space == "param":
            for k, name in enumerate(names):
                count = self.n if lanes is Ellipsis else int(lanes.sum())
                raw = self.params[at + k * size : at + (k + 1) * size]
                self.set(name, np.full(count, raw.view(DTYPE[kind])[0]), lanes)
            return
        blocks = self.number if lanes is Ellipsis else self.number[lanes]
        if op == "ld":
            raw = (
                self.load_shared(at, size * vector, blocks)
                if space == "shared"
                else self.memory.load(at.astype(np.uint64), size * vector)
            )
            for k, name in enumerate(names):
                loaded = np.ascontiguousarray(raw[:, k * size : (k + 1) * size]).view(DTYPE[kind])[:, 0]
                if kind in ("s8", "s16"):  # extended to the width of the register
                    loaded = loaded.astype({"%rs": np.int16, "%rd": np.int64}.get(name[:3], np.int32))
                self.set(name, loaded, lanes)
            return
        values = [self.value(n, kind, lanes) for n in names]
        raw = np.concatenate([np.ascontiguousarray(v).view(np.uint8).reshape(len(v), size) for v in values], 1)
        if space == "shared":
            self.store_shared(at, raw, blocks)
        else:
            self.memory.store(at.astype(np.uint64), raw)

    def load_shared(self, at, size, blocks):
        if (at < 0).any() or (at + size > self.shared.shape[1]).any():
            raise PtxError(f"shared load at {int(at.max())} of {self.shared.shape[1]}")
        if (at % size).any():
            raise PtxError("misaligned shared load")
        return self.shared[blocks[:, None], at[:, None] + np.arange(size)]

    def store_shared(self, at, raw, blocks):
        if (at < 0).any() or (at + raw.shape[1] > self.shared.shape[1]).any():
            raise PtxError(f"shared store at {int(at.max())} of {self.shared.shape[1]}")
        self.shared[blocks[:, None], at[:, None] + np.arange(raw.shape[1])] = raw

    def copy_async(self, mods, a, lanes):
        if mods[1] in ("commit_group", "wait_group", "wait_all"):
            return
        to, source = self.address(a[0], lanes), self.address(a[1], lanes)
        blocks = self.number if lanes is Ellipsis else self.number[lanes]
        size = int(a[2])
        take = self.value(a[3], "u32", lanes) if len(a) > 3 else np.full(len(to), size)
        raw = np.zeros((len(to), size), np.uint8)
        for count in np.unique(take):
            some = take == count
            if count:
                raw[some, :count] = self.memory.load(source[some].astype(np.uint64), size)[:, :count]
        self.store_shared(to, raw, blocks)

    def exchange(self, op, mods, a, lanes):
        active = np.ones(self.n, bool) if lanes is Ellipsis else lanes
        warps = active.reshape(-1, 32)
        if (warps.any(1) != warps.all(1)).any():
            raise PtxError("a part of a warp")
        chosen = np.nonzero(warps.all(1))[0]
        lanes_of = (chosen[:, None] * 32 + np.arange(32)).ravel()
        index = np.zeros(self.n, bool)
        index[lanes_of] = True
        lanes = Ellipsis if index.all() else index

        def w(x, t="b32"):
            return self.value(x, t, lanes).reshape(-1, 32)

        def put(name, v):
            return self.set(name, np.ascontiguousarray(v).reshape(-1), lanes)

        lane = np.arange(32)
        if op == "shfl":
            target = a[0].split("|")[0]
            x, by = w(a[1]), w(a[2]).astype(np.int64)
            source = (
                lane ^ by
                if mods[1] == "bfly"
                else by
                if mods[1] == "idx"
                else lane + by
                if mods[1] == "down"
                else lane - by
            )
            source = np.where((source >= 0) & (source < 32), source, lane)
            return put(target, np.take_along_axis(x, source, 1))
        if op == "vote":
            bits = (w(a[1], "pred").astype(np.uint64) << lane.astype(np.uint64)).sum(1).astype(np.uint32)
            return put(a[0], np.repeat(bits[:, None], 32, 1))
        if op == "ldmatrix":
            at = self.address(a[1], lanes)
            blocks = self.number if lanes is Ellipsis else self.number[index]
            rows = (
                np.ascontiguousarray(self.load_shared(at, 16, blocks)).view(np.uint16).reshape(-1, 4, 8, 8)
            )  # warp, matrix, row, column
            if "trans" in mods:
                rows = rows.swapaxes(2, 3)
            pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, 4, 32)
            for k, name in enumerate(a[0]):
                put(name, pairs[:, k])
            return None
        shape = mods[2]
        if shape == "m16n8k16":
            return put_matrix(
                self,
                put,
                w,
                a,
                16,
                2,
                lambda v: (
                    (v.astype(np.uint32) << np.uint32(16)).view(np.float32)
                    if "bf16" in mods
                    else v.view(np.float16).astype(np.float32)
                ),
                np.float64,
            )
        if shape == "m16n8k32":
            return put_matrix(self, put, w, a, 32, 4, lambda v: v.view(np.int8).astype(np.int32), np.int32)
        raise PtxError(f"unknown shape {shape}")


def put_matrix(grid, put, w, a, k, per_word, decode, sums):
    """d = a b + c in the layouts of PTX's section on fragments; sums in float64 or int32."""
    lane = np.arange(32)
    group, quad = lane // 4, lane % 4
    n_warps = w(a[1][0]).shape[0]
    x, y = np.zeros((n_warps, 16, k), sums), np.zeros((n_warps, k, 8), sums)
    narrow = np.uint16 if per_word == 2 else np.uint8
    for word, name in enumerate(a[1]):
        part = np.ascontiguousarray(w(name)).view(narrow).reshape(n_warps, 32, per_word)
        for e in range(per_word):
            x[:, group + 8 * (word % 2), quad * per_word + e + k // 2 * (word // 2)] = decode(
                np.ascontiguousarray(part[:, :, e])
            )
    for word, name in enumerate(a[2]):
        part = np.ascontiguousarray(w(name)).view(narrow).reshape(n_warps, 32, per_word)
        for e in range(per_word):
            y[:, quad * per_word + e + k // 2 * word, group] = decode(np.ascontiguousarray(part[:, :, e]))
    kind = "f32" if sums is np.float64 else "s32"
    product = x @ y
    for word, name in enumerate(a[0]):
        c = w(a[3][word], kind)
        row, column = group + 8 * (word // 2), quad * 2 + word % 2
        put(name, (product[:, row, column] + c.astype(sums)).astype(DTYPE[kind]))


def divide(op, kind, x, y):
    """Of whole numbers: rounded towards zero, and what is left."""
    if kind == "f32":
        return x / y
    whole = np.abs(x) // np.abs(y)
    if kind[0] == "s":
        whole = np.where((x < 0) != (y < 0), -whole, whole)
    return (whole if op == "div" else x - whole * y).astype(DTYPE[kind])


def launch(kernel: Kernel, memory: Memory, grid, block, shared_bytes: int, params: bytes) -> Grid:
    g = Grid(kernel, memory, grid, block, shared_bytes, params)
    g.run()
    return g
