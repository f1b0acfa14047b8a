"""What every environment offers. Places come as shares of the screen; an environment turns them into its own pixels."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..actions import Action

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Observation:
    """A screenshot. png: its bytes. where: the address or the window. at: time.time()."""

    png: bytes = field(repr=False)
    size: tuple[int, int]
    where: str = ""
    at: float = field(default_factory=time.time)

    @property
    def digest(self) -> str:
        """SHA-256 of the screenshot's bytes: the same digest, the same screen."""
        return hashlib.sha256(self.png).hexdigest()

    def picture(self) -> Image.Image:
        """The screenshot."""
        from PIL import Image

        return Image.open(io.BytesIO(self.png)).convert("RGB")


@dataclass(frozen=True)
class Outcome:
    """What came of an action. text: what the screen does not show, such as the words of an alert; "" for nothing."""

    text: str = ""
    performed: bool = True


class Environment(Protocol):
    """Something with a screen."""

    def observe(self) -> Observation:
        """The screen as it is now. Raises AgentStopped."""
        ...

    def perform(self, action: Action) -> Outcome:
        """Does it, and waits until the screen has settled. Raises AgentStopped for what must not or cannot be done."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


class DryRun:
    """Looks at a real environment and performs nothing."""

    def __init__(self, real: Environment) -> None:
        self._real = real

    def observe(self) -> Observation:
        """The real screen."""
        return self._real.observe()

    def perform(self, action: Action) -> Outcome:
        """Nothing."""
        return Outcome("not performed: this is a dry run", performed=False)

    def close(self) -> None:
        """Closes the real environment."""
        self._real.close()


def pixel(share: float, n: int) -> int:
    """The pixel that a share of n pixels means."""
    return max(0, min(n - 1, round(share * n)))
