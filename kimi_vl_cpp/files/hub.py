"""Models from the Hugging Face hub, into the cache that huggingface_hub shares with other tools.

Owns which files of a repository make a model, and how they arrive: a file is collected under the name that the cache
has for unfinished ones, taken up again after a broken connection or a kill, compared with the hash that the hub gives,
and only then renamed. huggingface_hub does the rest: what the hub has, tokens, the layout of the cache. (Its
own downloads begin anew when a process ends, which for files of 10 GB is too often.)
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import importlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import BadModelFile, BadRequest, KimiVLError, Unsupported, shown

PREFIX = "hf:"
MOST_FAILURES = 5
"""Connections in a row that bring nothing before a download is given up."""

Progress = Callable[[str, int, int], None]
"""progress(file name, bytes there, bytes in all); an exception from it stops the download, which can be taken up."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
_TYPE = re.compile(
    r"(?i)(?<![a-z0-9])(bf16|f16|fp16|f32|fp32|i?q\d(?:_(?:[0-9klmsx]+))*|mxfp4(?:_moe)?|tq\d_\d)(?![a-z0-9])"
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_VISION_TYPES = ("F16", "BF16", "Q8_0", "F32")  # in this order; F16 is what the vision part is made of
_HASHED_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 30.0  # without a byte


@dataclass(frozen=True)
class Wanted:
    """A repository, and the type of the weights; "": to be chosen."""

    repository: str
    type: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.type}" if self.type else self.repository


@dataclass(frozen=True)
class Choice:
    """One set of weights in a repository. files: name -> bytes, the text model's shards in order. vision: bytes of the
    vision file by name, at most one."""

    type: str
    files: Mapping[str, int]
    vision: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        return sum(self.files.values()) + sum(self.vision.values())


Choose = Callable[[list[Choice]], Choice]
"""Picks one of several when no type was named."""


def parse(text: str) -> Wanted:
    """REPO or REPO:TYPE, with or without "hf:" before it. Raises BadRequest "hub.name"."""
    repository, colon, kind = text.removeprefix(PREFIX).partition(":")
    if not _REPOSITORY.fullmatch(repository) or (colon and not _TYPE.fullmatch(kind)):
        raise BadRequest(
            f"{shown(text)}: expected OWNER/REPOSITORY or OWNER/REPOSITORY:TYPE, for example "
            "ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:Q4_K_M",
            "hub.name",
        )
    return Wanted(repository, kind.upper())


def choices(sizes: Mapping[str, int]) -> list[Choice]:
    """The models among the files of a repository (name -> bytes), smallest first."""
    vision: dict[str, str] = {}
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for name in sorted(sizes):
        base = name.rpartition("/")[2].lower()
        if not base.endswith(".gguf") or "imatrix" in base:
            continue
        kinds = _TYPE.findall(base)
        kind = kinds[-1].upper().replace("FP", "F") if kinds else ""
        if "mmproj" in base:
            vision.setdefault(kind, name)
        else:
            groups.setdefault((kind, _SHARD.sub("", name)), {})[name] = sizes[name]
    best = next((vision[kind] for kind in (*_VISION_TYPES, *vision) if kind in vision), None)
    beside = {} if best is None else {best: sizes[best]}
    found = []
    for (kind, _), files in groups.items():
        shards = _SHARD.search(next(iter(files)))
        if shards is None or int(shards[1]) == len(files):  # a set of shards that is not complete is not offered
            found.append(Choice(kind, files, beside))
    return sorted(found, key=lambda choice: choice.n_bytes)


def pick(found: list[Choice], wanted: Wanted, choose: Choose) -> Choice:
    """The model that is wanted. Raises BadRequest "hub.type" and "hub.no_model"."""
    if not found:
        raise BadRequest(
            f"{wanted.repository}: holds no GGUF file of a model: name a repository of GGUF files, or download the "
            "checkpoint and convert it",
            "hub.no_model",
        )
    if wanted.type:
        found = [choice for choice in found if choice.type == wanted.type] or _no_type(found, wanted)
    return found[0] if len(found) == 1 else choose(found)


def _no_type(found: list[Choice], wanted: Wanted) -> NoReturn:
    there = ", ".join(dict.fromkeys(choice.type or "without a type" for choice in found))
    raise BadRequest(f"{wanted.repository}: has no file of type {wanted.type}, there are {there}", "hub.type")


class Hub:
    """The hub as huggingface_hub reaches it.

    endpoint, cache_dir: None: as HF_ENDPOINT, HF_HUB_CACHE and HF_HOME say. offline: no request is made; None: as
    HF_HUB_OFFLINE says. token: None: HF_TOKEN, or what `hf auth login` stored.

    Raises Unsupported "unsupported.extra" where huggingface_hub is not installed.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        offline: bool | None = None,
    ) -> None:
        try:
            self._hub: Any = importlib.import_module("huggingface_hub")
            self._downloads: Any = importlib.import_module("huggingface_hub.file_download")
            self._utils: Any = importlib.import_module("huggingface_hub.utils")
        except ModuleNotFoundError:
            raise Unsupported(
                "models from the hub need huggingface_hub: pip install 'kimi-vl-cpp[hub]'", "unsupported.extra"
            ) from None
        self._endpoint = endpoint
        self._cache = Path(cache_dir or self._hub.constants.HF_HUB_CACHE)
        self._token = token
        self.offline = bool(self._hub.constants.HF_HUB_OFFLINE) if offline is None else offline

    def cached(self, wanted: Wanted, choose: Choose) -> Path | None:
        """The text model's (first) file where the whole model is in the cache already, else None. No request."""
        root = self._folder(wanted.repository)
        try:
            commit = (root / "refs" / "main").read_text().strip()
        except OSError:
            return None
        snapshot = root / "snapshots" / commit
        there = [path for path in snapshot.rglob("*.gguf") if path.is_file()] if commit else []
        sizes = {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in there}
        found = [one for one in choices(sizes) if not wanted.type or one.type == wanted.type]
        return snapshot / next(iter(pick(found, wanted, choose).files)) if found else None

    def local_path(self, wanted: Wanted, choose: Choose, progress: Progress | None = None) -> Path:
        """As `cached`, and as `pull` what is not there yet. Raises what `pull` raises, BadModelFile "hub.offline"."""
        there = self.cached(wanted, choose)
        return there if there is not None else self.pull(wanted, choose, progress)

    def sizes(self, repository: str) -> dict[str, int]:
        """The files of a repository: name -> bytes. Raises as `pull`."""
        with self._explained(repository):
            api = self._hub.HfApi(endpoint=self._endpoint, token=self._token)
            info = api.model_info(repository, files_metadata=True)
            return {file.rfilename: int(file.size or 0) for file in info.siblings or ()}

    def pull(self, wanted: Wanted, choose: Choose, progress: Progress | None = None) -> Path:
        """Downloads what is missing or has changed; the text model's (first) file, the vision file beside it.

        Raises BadRequest ("hub.not_found", "hub.type", "hub.no_model", "hub.access"), BadModelFile ("hub.offline",
        "hub.checksum"), KimiVLError "hub.connection" (the same call goes on where this one ended).
        """
        if self.offline:
            raise BadModelFile(
                f"{wanted}: is not in the cache {self._cache}, and HF_HUB_OFFLINE allows no download: unset it, or "
                "copy the cache from a machine that has the model",
                "hub.offline",
            )
        chosen = pick(choices(self.sizes(wanted.repository)), wanted, choose)
        paths = [self._file(wanted.repository, name, progress) for name in (*chosen.vision, *chosen.files)]
        return paths[len(chosen.vision)]

    def _folder(self, repository: str) -> Path:
        name: str = self._downloads.repo_folder_name(repo_id=repository, repo_type="model")
        return self._cache / name

    def _file(self, repository: str, name: str, progress: Progress | None) -> Path:
        """Puts the content where the cache keeps it; then huggingface_hub finds it there and adds the names."""
        with self._explained(repository):
            url = self._hub.hf_hub_url(repository, name, endpoint=self._endpoint)
            found = self._hub.get_hf_file_metadata(url, token=self._token, endpoint=self._endpoint)
        if not found.etag or found.size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found.etag):
            raise BadModelFile(f"{repository}/{name}: the hub names no hash for it", "hub.checksum")
        blob = self._folder(repository) / "blobs" / found.etag
        if not blob.exists():
            self._collect(f"{repository}/{name}", url, blob, found.size, progress)
        with self._explained(repository):
            path = self._hub.hf_hub_download(
                repository, name, endpoint=self._endpoint, cache_dir=self._cache, token=self._token
            )
        return Path(path)

    def _collect(self, name: str, url: str, blob: Path, size: int, progress: Progress | None) -> None:
        """The whole, verified file at `blob`, which does not exist before."""
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(blob.name + ".incomplete")
        with open(partial, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of two processes, the second waits and finds the first one's file
            if blob.exists():
                return
            self._receive(name, url, file, size, progress)
            os.fsync(file.fileno())
            if _digest(partial, blob.name) != blob.name:
                partial.unlink()
                raise BadModelFile(
                    f"{name}: what arrived is not what the hub says that the file is: it was thrown away; try again",
                    "hub.checksum",
                )
            os.replace(partial, blob)

    def _receive(self, name: str, url: str, file: BinaryIO, size: int, progress: Progress | None) -> None:
        """Appends to `file` until it has `size` bytes, over as many connections as it takes."""
        headers = self._utils.build_hf_headers(token=self._token)
        failures = 0
        while (start := file.seek(0, os.SEEK_END)) != size:
            if start > size:
                file.truncate(0)
                continue
            reason = "it ended early"
            try:
                for data in _stream(url, headers, start, lambda: file.truncate(0)):
                    file.write(data)
                    if progress is not None:
                        progress(name, file.tell(), size)
            except (OSError, http.client.HTTPException) as failure:
                _refused(name, failure)
                reason = _first_line(failure)
            failures = 0 if file.tell() > start else failures + 1
            if failures >= MOST_FAILURES:
                raise KimiVLError(
                    f"{name}: the connection broke {failures} times in a row without bringing anything ({reason}): the "
                    f"same command goes on at byte {file.tell()}",
                    "hub.connection",
                )
            if failures:
                time.sleep(min(2**failures, 10))
        file.flush()

    @contextmanager
    def _explained(self, repository: str) -> Iterator[None]:
        """Around requests: their failures in the words of this package."""
        try:
            yield
        except KimiVLError:
            raise
        except Exception as failure:
            _refused(repository, failure)
            if isinstance(failure, (json.JSONDecodeError, AttributeError, KeyError, TypeError)):  # from reading it
                endpoint = self._endpoint or self._hub.constants.ENDPOINT
                raise KimiVLError(
                    f"{repository}: {endpoint} did not answer as the Hugging Face hub does: check HF_ENDPOINT",
                    "hub.connection",
                ) from None
            raise KimiVLError(
                f"{repository}: the hub cannot be reached ({_first_line(failure)}): check the network and HF_ENDPOINT, "
                "and run the same command again",
                "hub.connection",
            ) from None


def _stream(url: str, headers: Mapping[str, str], start: int, restart: Callable[[], object]) -> Iterator[bytes]:
    """The bytes of a file from `start` on, as they arrive, until the connection ends or breaks; from the beginning,
    after `restart`, where the server cannot continue a file.

    Every attempt begins at the hub, since the addresses that it redirects to expire; those do not see the token.
    """
    request = urllib.request.Request(url)
    for key, value in headers.items():
        request.add_unredirected_header(key, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        if start and response.status != 206:
            restart()
        while data := response.read1(_PIECE_BYTES):
            yield data


def _refused(what: str, failure: Exception) -> None:
    """Raises for an answer that asking again will not change."""
    status = getattr(failure, "code", None) or getattr(getattr(failure, "response", None), "status_code", None)
    if status in (401, 403) and type(failure).__name__ == "GatedRepoError":
        raise BadRequest(
            f"{what}: access has to be granted: accept the terms on its page, then give a token (HF_TOKEN, or "
            "hf auth login)",
            "hub.access",
        ) from None
    if status in (401, 403, 404):
        raise BadRequest(
            f"{what}: the hub has no such repository or file, or shows it to those with a token only (HF_TOKEN, or "
            "hf auth login)",
            "hub.not_found",
        ) from None


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0]}"[:200] if lines else type(failure).__name__


def _digest(path: Path, etag: str) -> str:
    """SHA-256 for a file in large storage, Git's hash for a small one: whichever `etag` is."""
    is_git = len(etag) == 40
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if is_git else hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_HASHED_BYTES):
            digest.update(data)
    return digest.hexdigest()
