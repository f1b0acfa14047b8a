"""The adapters of an open model: which there are, which one a request names, and what that does to the keys of caches.

Owns the argument `lora` of `KimiVL` and the loading into the core. What a file of an adapter may hold is adapters/.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from .. import _core
from ..adapters.opening import open_adapter
from ..adapters.sides import added_up, changes_pictures, network_shapes, side_bytes, side_products
from ..checks import expand_home
from ..errors import BadModelFile, BadRequest, OutOfMemory, shown
from ..machine.memory import free_bytes

LoraSource = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
"""A folder of PEFT or a GGUF file, perhaps with a scale."""

Lora = LoraSource | Sequence[LoraSource] | Mapping[str, LoraSource | Sequence[LoraSource]]
"""What `KimiVL` takes as `lora`."""

MAX_NAME_CHARS = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")


@dataclass(frozen=True)
class LoadedAdapter:
    """index: the core's. digest: of everything that it adds. pictures: whether it changes their embeddings. paths: what
    it was opened from, n_bytes: the memory that it takes. notices: what is worth knowing about it."""

    index: int
    digest: bytes
    pictures: bool
    paths: tuple[Path, ...]
    n_bytes: int
    notices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What to call it where it has no name."""
        return ", ".join(path.name for path in self.paths)


@dataclass(frozen=True)
class Adapters:
    """always: what every request gets. named: what a request may name instead of none; only one of the two is there."""

    always: LoadedAdapter | None = None
    named: Mapping[str, LoadedAdapter] = field(default_factory=dict)

    @property
    def notices(self) -> list[str]:
        """What is worth knowing about them."""
        return [notice for one in (self.always, *self.named.values()) if one is not None for notice in one.notices]

    def pick(self, name: str | None) -> LoadedAdapter | None:
        """The adapter of a request that says `name`. Raises BadRequest (code "request.lora")."""
        if name is None:
            return self.always
        if name in self.named:
            return self.named[name]
        there = f"expected one of {', '.join(self.named)}" if self.named else "the model was opened without named ones"
        raise BadRequest(f"lora: there is no adapter {shown(name)}, {there}", "request.lora")

    def with_digest(self, digest: bytes) -> tuple[str | None, LoadedAdapter] | None:
        """The name by which an adapter of exactly these factors and scales is picked, and the adapter; None: none is
        loaded."""
        names = [(None, self.always), *self.named.items()]
        return next(((name, one) for name, one in names if one is not None and one.digest == digest), None)


def index_of(adapter: LoadedAdapter | None) -> int:
    """The core's number of an adapter, -1 for none."""
    return -1 if adapter is None else adapter.index


def keyed(root: bytes, adapter: LoadedAdapter | None) -> bytes:
    """A root of keys for what is computed with an adapter; without one, the root itself."""
    return root if adapter is None else hashlib.sha256(b"lora" + root + adapter.digest).digest()


def load_adapters(engine: _core.Engine, lora: Lora | None) -> Adapters:
    """Opens what `lora` names and hands it to the core.

    Raises BadRequest "request.lora", BadModelFile and Unsupported (codes "lora.*"), OutOfMemory "memory.lora".
    """
    if lora is None:
        return Adapters()
    if not isinstance(lora, Mapping):
        return Adapters(always=_load(engine, _sources(lora)))
    for name in lora:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadRequest(
                f"lora: the name {shown(name)}, expected up to {MAX_NAME_CHARS} letters, digits, '.', '_' and '-'",
                "request.lora",
            )
    return Adapters(named={name: _load(engine, _sources(value)) for name, value in lora.items()})


def _sources(given: object) -> list[tuple[Path, float]]:
    if isinstance(given, (str, os.PathLike)) or _is_scaled(given):
        return [_source(given)]
    if isinstance(given, Sequence) and given and not isinstance(given, bytes):
        return [_source(one) for one in given]
    raise BadRequest(
        f"lora: got {shown(given)}, expected the path of an adapter, (path, scale), a list of them, or a dict of names",
        "request.lora",
    )


def _is_scaled(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int | float)


def _source(given: object) -> tuple[Path, float]:
    path, scale = given if isinstance(given, tuple) and _is_scaled(given) else (given, 1.0)
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise BadRequest(f"lora: got {shown(path)}, expected the path of an adapter", "request.lora")
    if isinstance(scale, bool) or not math.isfinite(scale):
        raise BadRequest(f"lora: the scale is {shown(scale)}, expected a finite number", "request.lora")
    return Path(expand_home(os.fspath(path))), float(scale)


def _load(engine: _core.Engine, sources: list[tuple[Path, float]]) -> LoadedAdapter:
    model_name = str(engine.config["name"])
    files = [file for file in (engine.gguf, engine.vision_gguf) if file is not None]
    shapes = network_shapes({one.name: tuple(one.shape) for file in files for one in file.tensors}, engine.gguf.get)
    projector = (engine.vision_gguf or engine.gguf).get("clip.projector_type")
    with ExitStack() as stack:
        opened = []
        for path, scale in sources:
            opened.append(open_adapter(path, shapes, scale, projector))
            stack.callback(opened[-1].close)
        n_bytes = sum(sum(side_bytes(one).values()) for one in opened)
        free = free_bytes()
        if free is not None and 2 * n_bytes > free:  # what was read, and the core's copy
            raise OutOfMemory(
                f"{sources[0][0]}: the adapter takes {n_bytes / 1e9:.1f} GB as float32, and twice that while it is "
                f"loaded, but only {free / 1e9:.1f} GB are free: merge it into the model's file instead",
                "memory.lora",
            )
        products = added_up(chain.from_iterable(side_products(one, shapes) for one in opened))
        try:
            index = engine.add_adapter(products)
        except BadModelFile as error:
            raise BadModelFile(f"{sources[0][0]}: {error}", error.code) from None
        digest = hashlib.sha256()
        for name, number, a, b in products:
            digest.update(f"{name} {number} {a.shape} {b.shape} ".encode())
            digest.update(a.data)
            digest.update(b.data)
        return LoadedAdapter(
            index,
            digest.digest(),
            any(map(changes_pictures, opened)),
            tuple(path for path, _ in sources),
            n_bytes,
            tuple(notice for one in opened if (notice := one.notice_beside(model_name))),
        )
