"""What the endpoints of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from .attachments import Attachments
from .errors import Refused, unavailable
from .logs import Log
from .metrics import Metrics
from .pictures import PictureSources
from .settings import Settings

if TYPE_CHECKING:
    from ..model import KimiVL
    from .engine import Engine

KEY = "kimi_vl.state"


@dataclass
class State:
    """settings: what the server was started with. engine: the model, None while it loads. draining: the server is
    ending and takes no new requests."""

    settings: Settings
    log: Log
    metrics: Metrics
    engine: Engine | None = None
    draining: bool = False
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.pictures = PictureSources(self.settings.image_hosts, self.settings.image_dirs)
        self.attachments = Attachments()

    def check_ready(self) -> None:
        """Raises Refused (503) while the model loads or the server ends: before a body is read."""
        assert self.ready

    @property
    def ready(self) -> Engine:
        """The engine. Raises Refused (503) while the model loads or the server ends."""
        if self.draining:
            raise unavailable("the server is shutting down", "serve.shutdown", 5)
        if self.engine is None:
            raise unavailable("the model is being loaded", "serve.loading", 5)
        return self.engine

    @property
    def model(self) -> KimiVL:
        """The model. Raises like `ready`."""
        return self.ready.model

    @property
    def names(self) -> list[str]:
        """The names of the model, the first of which answers carry, then those of its adapters."""
        return [*(self.settings.aliases or [self.model.files.text.stem]), *self.model.adapters]

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a request's `model` means."""
        return name if name in self.model.adapters else None

    def answer_name(self, name: str | None) -> str:
        """What the answer to a request for a model calls it."""
        return self.adapter_of(name) or self.names[0]

    def check_name(self, name: str | None) -> None:
        """With --strict, and where there are adapters to choose from, raises Refused (404) for a name that is not the
        model's or an adapter's."""
        if (self.settings.strict or self.model.adapters) and name is not None and name not in self.names:
            message = f"model: there is no {name[:100]!r} here, only {', '.join(self.names)}"
            raise Refused(404, message, "serve.unknown_model", param="model")


def state_of(request: Request) -> State:
    """The state of the server that a request came to."""
    state: State = request.scope[KEY]
    return state
