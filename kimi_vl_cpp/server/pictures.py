"""Where the pictures of requests come from beside their own bytes: other hosts, folders, and requests before.

Owns what a URL of a picture means on this server, and the pictures of earlier requests. What may be fetched is
fetching.py's.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ..errors import BadImage, BadRequest
from ..media.processor import ProcessedImage
from ..openai.fields import about, shown
from ..openai.messages import Picture
from ..openai.videos import VideoPart, not_opened
from .fetching import Fetcher

DIGEST_SCHEME = "sha256:"
MAX_KEPT_BYTES = 256 << 20
"""Pixels of earlier pictures that are kept for references to them."""
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Remote:
    """A picture that is to be fetched."""

    url: str


class EarlierPictures:
    """Pictures of earlier requests by their owner and digest, the least recently used forgotten first. Thread-safe.

    owner: the API key and the cache_salt: nobody finds out what another has sent.
    """

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], ProcessedImage] = OrderedDict()

    def put(self, owner: tuple[str, str], image: ProcessedImage) -> None:
        """Keeps a picture."""
        with self._lock:
            self._drop((*owner, image.digest))
            self._kept[(*owner, image.digest)] = image
            self._n_bytes += image.pixels.nbytes
            while self._n_bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def get(self, owner: tuple[str, str], digest: str) -> ProcessedImage | None:
        """The picture, where it is still kept."""
        with self._lock:
            image = self._kept.get((*owner, digest))
            if image is not None:
                self._kept.move_to_end((*owner, digest))
            return image

    def _drop(self, key: tuple[str, str, str]) -> None:
        image = self._kept.pop(key, None)
        if image is not None:
            self._n_bytes -= image.pixels.nbytes


def _refused(url: str) -> BadImage:
    return BadImage(f"{shown(url)}: is not a file below a folder of pictures", "image.file_refused")


class PictureSources:
    """What URLs of pictures mean on one server. hosts: see Fetcher. folders: below which files may be named."""

    def __init__(self, hosts: Sequence[str] = (), folders: Sequence[str] = ()) -> None:
        self.earlier = EarlierPictures()
        self.fetcher = Fetcher(hosts)
        self._folders = [Path(folder).resolve() for folder in folders]

    def open_url(self, url: str, owner: tuple[str, str]) -> Any:
        """What a URL stands for: a picture, the bytes of one, or a Remote that `fetch` is to replace; None for a URL
        that this server does not know. Raises BadImage, BadRequest."""
        scheme = url.partition(":")[0].lower()
        if scheme == "sha256":
            image = self.earlier.get(owner, url[len(DIGEST_SCHEME) :].lower())
            if image is None:
                raise BadImage(f"{shown(url)}: no such picture is kept here: send it again", "image.unknown_digest")
            return image
        if scheme in ("http", "https"):
            if not self.fetcher:
                raise BadRequest(
                    f"{shown(url)}: this server does not fetch pictures: send a data: URL, or start the server with "
                    "--image-host NAME of the host to fetch from",
                    "request.image_url_remote",
                )
            self.fetcher.check(url)
            return Remote(url)
        return self._read_file(url) if scheme == "file" and self._folders else None

    def open_video(self, part: VideoPart) -> BinaryIO:
        """The file that a video's URL names, below one of the folders. Raises BadRequest, BadImage."""
        url = str(part.source)
        if url.partition(":")[0].lower() != "file" or not self._folders:
            hint = "send a data:video/mp4;base64,... URL"
            raise not_opened(part, hint if self._folders else f"{hint}, or start the server with --image-dir FOLDER")
        return self._open_file(url)

    def _read_file(self, url: str) -> bytes:
        with self._open_file(url) as file:
            try:
                data = file.read(MAX_FILE_BYTES + 1)
            except OSError:
                raise _refused(url) from None
        if len(data) > MAX_FILE_BYTES:
            raise BadImage(f"{shown(url)}: has more than {MAX_FILE_BYTES >> 20} MiB", "image.too_large")
        return data

    def _open_file(self, url: str) -> BinaryIO:
        refused = _refused(url)
        try:
            parts = urlsplit(url)
        except ValueError:  # brackets that hold no address
            raise refused from None
        if parts.netloc not in ("", "localhost") or "\0" in unquote(parts.path):
            raise refused
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not any(path.is_relative_to(folder) for folder in self._folders):
                raise refused
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                os.close(opened)
                raise refused
        except (OSError, RuntimeError):  # RuntimeError: links in a circle
            raise refused from None
        return open(opened, "rb")

    async def fetch(self, pictures: list[Picture]) -> None:
        """Replaces every Remote among the pictures by its bytes. Raises BadImage with the picture's place."""
        wanted = [(index, one) for index, one in enumerate(pictures) if isinstance(one.source, Remote)]
        tasks = [asyncio.ensure_future(self._fetch_one(one)) for _, one in wanted]
        try:
            fetched = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one that failed ends the others
                task.cancel()
        for (index, one), data in zip(wanted, fetched, strict=True):
            pictures[index] = replace(one, source=data)

    async def _fetch_one(self, picture: Picture) -> bytes:
        with about(picture.place):
            return await self.fetcher.fetch(picture.source.url)
