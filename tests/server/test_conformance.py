"""The checks of conformance.py, each against `kimi-vl serve` with the built-in model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from server_support import RunningServer

from kimi_vl_cpp.model import KimiVL

spec = importlib.util.spec_from_file_location("conformance", Path(__file__).with_name("conformance.py"))
assert spec is not None and spec.loader is not None
conformance = importlib.util.module_from_spec(spec)
sys.modules["conformance"] = conformance
spec.loader.exec_module(conformance)


@pytest.fixture(scope="module")
def asked():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=2048), aliases=("kimi",)) as server:
        yield conformance.Asked(server.url)


@pytest.mark.parametrize("sentence", conformance.CHECKS)
def test_what_clients_may_rely_on(asked, sentence):
    conformance.CHECKS[sentence](asked)


def test_there_are_fifty_checks():
    assert len(conformance.CHECKS) >= 50
