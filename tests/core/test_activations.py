"""Float activations: the slow twin of int8 arithmetic, at the surface of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.testing import ROWS_OF_256, make_tiny_model


def test_float_activations_are_nearer_to_the_file_than_int8(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, seed=4, text_type="Q4_K", vision="none", **ROWS_OF_256)
    ids = np.arange(40) * 7 % 500
    error = {}
    with KimiVL(tiny.text, n_ctx=256, kv_type="f32", activations="float") as exact:
        want = exact.logits([ids])
    for activations, kv_type in (("float", "f16"), ("int8", "f32")):
        with KimiVL(tiny.text, n_ctx=256, kv_type=kv_type, activations=activations) as model:
            error[activations] = float(np.linalg.norm(model.logits([ids]) - want) / np.linalg.norm(want))
    # An f16 cache keeps 11 bits of each value; int8 activations keep 7.
    assert error["float"] < 3e-3 < error["int8"] < 5e-2


def test_unknown_activations_are_a_request_error(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, vision="none")
    with pytest.raises(BadRequest, match="int8 or float") as error:
        KimiVL(tiny.text, activations="int4")
    assert error.value.code == "request.activations"
