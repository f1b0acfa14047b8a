"""Whether the runtime computes right on this computer.

The self-test makes a small random model and shows it a text and a picture through every instruction set that the
processor has. All of them must agree, and in each the tokens decoded one by one must be those that the whole sequence
predicts, which other kernels compute. Then the built-in model has to read the total of a receipt, through every
instruction set too: trained weights in the types and sizes of a real file, and an answer that is known. An installation
without the built-in model is reported, and does not count as a failure.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import errors
from . import exits
from .progress import Progress

_CANNOT_WRITE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

LOGITS_TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ by about 1e-6 in so small a model


@dataclass
class SelfTest:
    """What the self-test found. results: one row per instruction set. builtin: the same for the built-in model;
    builtin_missing: why there are none."""

    ok: bool = False
    seconds: float = 0.0
    chosen_isa: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    builtin: list[dict[str, Any]] = field(default_factory=list)
    builtin_missing: str = ""
    problems: list[str] = field(default_factory=list)
    unwritable: str = ""  # why the small model could not be written; nothing is known about the processor then


def self_test(progress: Progress) -> SelfTest:
    """Makes a tiny model in a temporary folder and runs it on every supported instruction set."""
    import tempfile

    started = time.monotonic()
    test = SelfTest()
    try:
        try:
            with tempfile.TemporaryDirectory(prefix="kimi-vl-doctor-") as folder:
                _compare_isas(Path(folder), test, progress)
        except OSError as failure:
            if failure.errno not in _CANNOT_WRITE or isinstance(failure, errors.KimiVLError):
                raise
            test.unwritable = exits.describe_os_error(failure)
        _ask_builtin(test, progress)
    except Exception as failure:
        test.problems.append(f"{type(failure).__name__}: {failure}")
    finally:
        progress.clear()
    test.ok = not test.problems and bool(test.results)
    test.seconds = time.monotonic() - started
    return test


def _compare_isas(folder: Path, test: SelfTest, progress: Progress) -> None:
    import numpy as np

    from .. import _core
    from ..model import KimiVL
    from ..testing import make_tiny_model

    progress.show("making a small model")
    tiny = make_tiny_model(folder, seed=0)
    rows, columns = np.mgrid[0:84, 0:112]
    picture = np.stack([rows * 3, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    reference: dict[str, Any] = {}
    result: dict[str, Any]
    supported = [isa["name"] for isa in _core.isas() if isa["supported"]]
    for isa in sorted(supported, key=lambda name: name != "generic"):  # the plainest code is the reference
        progress.show(f"testing {isa}")
        started = time.monotonic()
        with KimiVL(tiny.text, mmproj=tiny.mmproj, n_ctx=512, isa=isa) as model:
            embedding = model.encode_image(picture)
            parts: list[Any] = [model.tokenize("What is this?"), embedding, model.tokenize("Answer.")]
            logits = model.logits(parts)
            answer = list(model.generate(parts, max_new_tokens=8, temperature=0))
            whole = model.logits([*parts, answer])
        result = {"embedding": embedding, "logits": logits, "answer": answer}
        row = {"isa": isa, "seconds": time.monotonic() - started}
        test.results.append(row)
        if not all(np.isfinite(result[name]).all() for name in ("embedding", "logits")):
            test.problems.append(f"{isa}: the results are not finite numbers")
            continue
        for index, token in enumerate(answer):
            predicted = whole[len(logits) - 1 + index]
            if predicted.max() - predicted[token] > LOGITS_TOLERANCE * abs(predicted).max():
                test.problems.append(
                    f"{isa}: token {index} of the answer is {token}, but {predicted.argmax()} is likelier"
                )
                break
        if not reference:
            reference = {"isa": isa, **result}
            row["difference"] = 0.0
            continue
        differences = [_difference(result[name], reference[name]) for name in ("embedding", "logits")]
        row["difference"] = max(differences)
        if row["difference"] > LOGITS_TOLERANCE:
            by = f"{row['difference']:.1e} of the largest value, at most {LOGITS_TOLERANCE:.0e}"
            test.problems.append(f"{isa}: results differ from {reference['isa']} by {by}")
        if answer != reference["answer"]:
            test.problems.append(f"{isa}: answers {answer}, but {reference['isa']} answers {reference['answer']}")
    with KimiVL(tiny.text, mmproj=tiny.mmproj, n_ctx=512) as model:
        test.chosen_isa = model.isa


def _ask_builtin(test: SelfTest, progress: Progress) -> None:
    """Has the built-in model read a receipt on every supported instruction set."""
    from .. import _core, builtin
    from ..model import KimiVL

    try:
        picture = builtin.check_picture()
        builtin.model_path()
    except errors.BadModelFile as missing:
        test.builtin_missing = str(missing)
        return
    for isa in [isa["name"] for isa in _core.isas() if isa["supported"]]:
        progress.show(f"asking the built-in model on {isa}")
        started = time.monotonic()
        with KimiVL.builtin(isa=isa) as model:
            answer = model.chat(builtin.CHECK_QUESTION, images=[picture]).text.strip()
        right = answer == builtin.CHECK_ANSWER
        test.builtin.append({"isa": isa, "answer": answer, "right": right, "seconds": time.monotonic() - started})
        if not right:
            asked = f"asked for the total of a receipt, answers {errors.shown(answer)}"
            test.problems.append(f"{isa}: the built-in model, {asked}, expected {builtin.CHECK_ANSWER!r}")


def _difference(a: Any, b: Any) -> float:
    return float(abs(a - b).max() / abs(b).max()) if a.shape == b.shape and a.size else float("inf")
