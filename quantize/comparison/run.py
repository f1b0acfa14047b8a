"""One comparison under way: what each model is asked, one model after another, and what is remembered in between."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kimi_vl_cpp import _core
from kimi_vl_cpp.cache.keys import Picture
from kimi_vl_cpp.errors import BadModelFile, BadRequest
from kimi_vl_cpp.generation.raw import RawSession
from kimi_vl_cpp.media.processor import ProcessedImage
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.types import Progress

from ..importance.data import picture_pixels
from ..source.gguf import GGUFSource
from .data import Before, Item, Items, Prompts, load_items
from .report import ModelFacts, Speed
from .rows import RowFile, judge, log_softmax
from .weights import WeightErrors, file_facts, weight_errors

STAGE_DATA, STAGE, STAGE_WEIGHTS = "compare_data", "compare", "compare_weights"
_THUMBNAIL = 320
_CHUNK = 64  # places whose logits are in memory at once: 42 MB of Kimi-VL's
_FEWEST = 8  # tokens whose speed is worth telling
_COST_PATCH, _COST_ANSWER = 0.25, 4.0  # beside a token of text


@dataclass
class Remembered:
    """What the reference thought of one prompt. first_row: in the row file. inputs, targets: ids of the scored places
    and what follows them. answer: the greedy one. embeddings: where they begin in their file."""

    first_row: int
    inputs: NDArray[np.int32]
    targets: NDArray[np.int64]
    tops: NDArray[np.int64]
    target_logs: NDArray[np.float64]
    answer: str = ""
    embeddings: int | None = None


@dataclass
class Found:
    """What a candidate thought of one prompt. squared, reference: sums of squares of the error of the picture's
    embeddings and of the reference's; comparable: whether both have one shape."""

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    target_logs: NDArray[np.float64]
    answer: str = ""
    squared: float = 0.0
    reference: float = 0.0
    comparable: bool = False


@dataclass
class Clock:
    """Tokens and seconds of two kinds of work."""

    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("prefill", "decode"), 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("prefill", "decode"), 0.0))

    def count(self, kind: str, n: int, began: float) -> None:
        self.tokens[kind] += n
        self.seconds[kind] += time.perf_counter() - began

    def speed(self) -> Speed:
        return Speed(self._rate("prefill"), self._rate("decode"))

    def _rate(self, kind: str) -> float | None:
        return self.tokens[kind] / self.seconds[kind] if self.tokens[kind] >= _FEWEST else None


class Run:
    """One comparison under way."""

    def __init__(
        self,
        prompts: Prompts,
        in_token_limit: int | None,
        options: dict[str, Any],
        store: Literal["auto", "float32", "float16"],
        scratch: Path,
        n_models: int,
        progress: Progress | None,
    ) -> None:
        self.prompts, self.in_token_limit, self.options = prompts, in_token_limit, options
        self.store, self.scratch = store, scratch
        self.n_models, self.progress = n_models, progress
        self.items = Items((), (), 0)
        self.remembered: list[Remembered] = []
        self.thumbnails: dict[str, bytes] = {}
        self.warnings: list[str] = []
        self.stored_as = ""
        self._rows: RowFile | None = None
        self._embeddings = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  nameless, as the rows are
        self._done = self._total = 0.0
        self._n_weights = 0

    def close(self) -> None:
        """Idempotent."""
        self._embeddings.close()
        if self._rows is not None:
            self._rows.close()

    # The models

    def reference(self, path: Path, label: str) -> ModelFacts:
        """Runs the reference and remembers what it thought."""
        with self._open(path) as model:
            self.in_token_limit = model.loaded.processor.in_token_limit
            self.items = load_items(model, self.prompts, self._tick(STAGE_DATA, self.progress))
            n_rows = sum(self.prompts.n_answer if item.is_picture else len(item.scored) for item in self.items.items)
            self._rows = RowFile(self.scratch, n_rows, model.n_vocab, self.store)
            self.stored_as = self._rows.dtype.name
            self._total = self.n_models * sum(self._cost(item) for item in self.items.items)
            scorer = Scorer(model, self._advance)
            session = self._session(model)
            row = 0
            for item in self.items.items:
                self.remembered.append(self._remember(scorer, session, item, row))
                row += len(self.remembered[-1].inputs)
            return self._facts(path, label, model, scorer.clock)

    def _remember(self, scorer: Scorer, session: RawSession, item: Item, first_row: int) -> Remembered:
        assert self._rows is not None
        began = self._done
        embeddings = scorer.embeddings(item)
        scorer.read(session, item.before, embeddings)
        inputs, targets, text = item.scored, item.targets, ""
        if item.is_picture:
            assert embeddings is not None
            self.thumbnails[item.name] = thumbnail(scorer.model.loaded.processor(item.prompt.source))
            answer, stop = scorer.answer(session, item.scored[0], self.prompts.n_answer)
            text = scorer.model.loaded.tokenizer.decode(answer)
            targets = (*answer, *stop)
            inputs = (*item.scored, *targets[:-1])
            session.truncate(item.n_before)
        want = np.asarray(targets, np.int64)
        tops, logs = [], []
        for at, logits in scorer.score(session, np.asarray(inputs, np.int32)):
            found = log_softmax(logits)
            self._rows.write(found)
            tops.append(np.argmax(found, 1))
            logs.append(found[np.arange(len(found)), want[at : at + len(found)]])
        where = None
        if embeddings is not None:
            where = self._embeddings.tell()
            np.save(self._embeddings, embeddings)
        self._done = began + self._cost(item)
        self._advance(0)
        return Remembered(
            first_row,
            np.asarray(inputs, np.int32),
            want,
            np.concatenate(tops).astype(np.int64),
            np.concatenate(logs).astype(np.float64),
            text,
            where,
        )

    def candidate(self, path: Path, label: str) -> tuple[ModelFacts, list[Found]]:
        """Runs a candidate over the same places."""
        with self._open(path) as model:
            if any(item.is_picture for item in self.items.items) and not model.has_vision:
                raise BadRequest(
                    f"{path}: has no vision part, but there are pictures to compare on. {model.files.why_no_mmproj}",
                    "compare.no_vision",
                )
            scorer = Scorer(model, self._advance)
            session = self._session(model)
            found = [
                self._judge(scorer, session, item, known)
                for item, known in zip(self.items.items, self.remembered, strict=True)
            ]
            return self._facts(path, label, model, scorer.clock), found

    def _judge(self, scorer: Scorer, session: RawSession, item: Item, known: Remembered) -> Found:
        assert self._rows is not None
        began = self._done
        embeddings = scorer.embeddings(item)
        scorer.read(session, item.before, embeddings)
        text = ""
        if item.is_picture:
            answer, _ = scorer.answer(session, item.scored[0], self.prompts.n_answer)
            text = scorer.model.loaded.tokenizer.decode(answer)
            session.truncate(item.n_before)
        judged = []
        for at, logits in scorer.score(session, known.inputs):
            places = slice(at, at + len(logits))
            rows = self._rows.read(known.first_row + at, len(logits))
            judged.append(judge(rows, known.tops[places], logits, known.targets[places]))
        squared, norm, comparable = 0.0, 0.0, False
        if embeddings is not None and known.embeddings is not None:
            self._embeddings.seek(known.embeddings)
            expected = np.load(self._embeddings)
            comparable = expected.shape == embeddings.shape
            if comparable:
                norm = float((expected * expected).sum(dtype=np.float64))
                expected -= embeddings
                squared = float((expected * expected).sum(dtype=np.float64))
        self._done = began + self._cost(item)
        self._advance(0)
        return Found(
            np.concatenate([one.kl for one in judged]),
            np.concatenate([one.same_top for one in judged]),
            np.concatenate([one.target for one in judged]),
            text,
            squared,
            norm,
            comparable,
        )

    def weights(self, a: Path, b: Path) -> WeightErrors:
        """The errors of the weights of two files."""
        with closing(GGUFSource(a, None)) as one, closing(GGUFSource(b, None)) as two:
            total = sum(tensor.n_elems for tensor in one.tensors.values())
            done = 0

            def advance(n: int) -> None:
                nonlocal done
                done += n
                if self.progress is not None:
                    self.progress(STAGE_WEIGHTS, done, total)

            return weight_errors(one, two, advance)

    # Small things

    def _open(self, path: Path) -> KimiVL:
        model = KimiVL(
            path,
            n_ctx=64,  # of conversations, which there are none of
            in_token_limit=self.in_token_limit,
            image_cache_bytes=0,
            progress=self.progress,
            **self.options,
        )
        model.progress = None
        return model

    def _session(self, model: KimiVL) -> RawSession:
        longest = max(item.prompt.n_tokens for item in self.items.items) + self.prompts.n_answer + 1
        room = model.context_length
        if longest > room:
            raise BadRequest(
                f"{model.files.text}: the longest prompt and its answer have {longest} tokens, more than the model's "
                f"context of {room}: make ctx or answer smaller, or the pictures (in_token_limit)",
                "compare.option",
            )
        return model.raw.session(longest)

    def _facts(self, path: Path, label: str, model: KimiVL, clock: Clock) -> ModelFacts:
        with closing(GGUFSource(path, None)) as source:
            types = Counter(tensor.type for tensor in source.tensors.values())
            ordered = dict(sorted(types.items(), key=lambda item: (-item[1], item[0])))
            return ModelFacts(path, model.name, label, file_facts(source), ordered, clock.speed())

    def _cost(self, item: Item) -> float:
        answer = 2 * self.prompts.n_answer * _COST_ANSWER if item.is_picture else 0.0
        return item.prompt.n_tokens + item.prompt.n_patches * _COST_PATCH + answer

    def _advance(self, cost: float) -> None:
        self._done += cost
        if self.progress is not None:
            self.progress(STAGE, min(round(self._done), round(self._total)), round(self._total))

    @staticmethod
    def _tick(stage: str, progress: Progress | None) -> Callable[[int, int], None]:
        return (lambda done, total: None) if progress is None else (lambda done, total: progress(stage, done, total))


class Scorer:
    """One model at its work. advance(cost): something was done."""

    def __init__(self, model: KimiVL, advance: Callable[[float], None]) -> None:
        self.model = model
        self.clock = Clock()
        self._advance = advance

    def embeddings(self, item: Item) -> NDArray[np.float32] | None:
        """The picture of a prompt as the decoder gets it."""
        if not item.is_picture:
            return None
        pixels = picture_pixels(self.model, item.prompt)
        found = self.model.raw.encode_image(pixels)
        self._advance(item.prompt.n_patches * _COST_PATCH)
        if not np.isfinite(found).all():
            raise BadModelFile(
                f"{self.model.files.mmproj or self.model.files.text}: the embeddings of {item.name} are not finite: "
                "the file is damaged (kimi-vl inspect --check lists its tensors)",
                "compare.not_finite",
            )
        return found

    def read(self, session: RawSession, parts: Before, embeddings: NDArray[np.float32] | None) -> None:
        """The parts on an emptied session."""
        session.truncate(0)
        arrays = [embeddings if isinstance(part, Picture) else np.asarray(part, np.int32) for part in parts]
        wanted = [array for array in arrays if array is not None and len(array)]
        if wanted:
            began = time.perf_counter()
            session.prefill(wanted, "none")
            self.clock.count("prefill", sum(len(array) for array in wanted), began)

    def answer(self, session: RawSession, last: int, n: int) -> tuple[list[int], list[int]]:
        """The greedy answer after the prompt's last token, and the token that ended it, if any did."""
        session.prefill([np.asarray([last], np.int32)], "last")
        sampler = _core.Sampler(temperature=0.0)
        ids: list[int] = []
        while True:
            token = session.sample(sampler)
            if token in self.model.loaded.tokenizer.stop_ids:
                return ids, [token]
            ids.append(token)
            if len(ids) == n:
                return ids, []
            began = time.perf_counter()
            session.decode(token)
            self.clock.count("decode", 1, began)
            self._advance(_COST_ANSWER)

    def score(self, session: RawSession, ids: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(place, logits [n, n_vocab]) after each of the ids, a few at a time."""
        for at in range(0, len(ids), _CHUNK):
            piece = ids[at : at + _CHUNK]
            began = time.perf_counter()
            logits = session.prefill([piece], "all")
            self.clock.count("prefill", len(piece), began)
            self._advance(len(piece))
            assert logits is not None
            if not np.isfinite(logits).all():
                raise BadModelFile(
                    f"{self.model.files.text}: computes numbers that are not finite: the file is damaged (kimi-vl "
                    "inspect --check lists its tensors)",
                    "compare.not_finite",
                )
            yield at, logits


def thumbnail(seen: ProcessedImage) -> bytes:
    """A picture as the tower sees it, small and without the padding: a PNG, or a JPEG where that is
    much smaller."""
    width, height = seen.resized_size
    small = Image.fromarray(np.ascontiguousarray(seen.pixels[:height, :width]))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    png, jpeg = BytesIO(), BytesIO()
    small.save(png, "PNG", optimize=True)
    small.save(jpeg, "JPEG", quality=88)
    return min((png.getvalue(), jpeg.getvalue()), key=lambda raw: len(raw) * (1 if raw[:1] == b"\x89" else 2))
