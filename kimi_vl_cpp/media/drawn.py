"""Pictures that have no pixels of their own and are drawn at the size that the model sees: pages of a document."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class Drawn(ABC):
    """A picture that is drawn as large as the patch budget allows, so that nothing is scaled twice."""

    @property
    @abstractmethod
    def size(self) -> tuple[float, float]:
        """Width and height in any unit; only their ratio matters. Raises BadImage when it cannot be drawn."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The text that stands before the picture in a prompt; "" for none."""

    @property
    def caption(self) -> str:
        """The text that stands behind the picture in a prompt; "" for none."""
        return ""

    @property
    def native_size(self) -> tuple[int, int] | None:
        """Width and height in pixels above which there is nothing more to see; None for what is sharp at any size."""
        return None

    @abstractmethod
    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3]. Raises BadImage, OutOfMemory."""


def text_around(image: object) -> tuple[str, str]:
    """The label and the caption of anything that a request takes as a picture; "" where it has none."""
    label, caption = (getattr(image, name, "") for name in ("label", "caption"))
    return label if isinstance(label, str) else "", caption if isinstance(caption, str) else ""


class Part(Drawn):
    """A strip of a picture across its whole width: shares of its height from top to bottom."""

    def __init__(self, whole: Drawn, top: float, bottom: float) -> None:
        self.whole = whole
        self.top, self.bottom = top, bottom

    @property
    def size(self) -> tuple[float, float]:
        width, height = self.whole.size
        return width, height * (self.bottom - self.top)

    @property
    def native_size(self) -> tuple[int, int] | None:
        size = self.whole.native_size
        return None if size is None else (size[0], max(1, round(size[1] * (self.bottom - self.top))))

    @property
    def label(self) -> str:
        return self.whole.label

    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        all_of_it = round(height / (self.bottom - self.top))
        start = min(round(all_of_it * self.top), all_of_it - height)
        return self.whole.draw(width, all_of_it)[start : start + height]


class Turned(Drawn):
    """A picture turned counter-clockwise by quarters."""

    def __init__(self, whole: Drawn, turns: int) -> None:
        self.whole = whole
        self.turns = turns % 4

    @property
    def size(self) -> tuple[float, float]:
        width, height = self.whole.size
        return (height, width) if self.turns % 2 else (width, height)

    @property
    def native_size(self) -> tuple[int, int] | None:
        size = self.whole.native_size
        return size[::-1] if size is not None and self.turns % 2 else size

    @property
    def label(self) -> str:
        return self.whole.label

    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        size = (height, width) if self.turns % 2 else (width, height)
        return np.ascontiguousarray(np.rot90(self.whole.draw(*size), self.turns))
