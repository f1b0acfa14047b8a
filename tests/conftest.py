"""What all tests share: where the package and the reference vectors are, small models, instruction sets.

Nothing skips but tests of an instruction set that this processor lacks and of a CUDA library that is not named: a
missing extension fails the run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Workers beside each other (`-n`): each keeps to processors of its own, with as many threads, or all wait for one
# another. Before the import of whatever starts threads.
_worker, _n_workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _worker and hasattr(os, "sched_setaffinity"):
    _processors = sorted(os.sched_getaffinity(0))
    _mine = int(_worker.removeprefix("gw")) % min(_n_workers, len(_processors))
    os.sched_setaffinity(0, _processors[_mine::_n_workers])

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from reference import Network  # noqa: E402
from vectors import VECTORS  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout before the installed package; without the extension in it, the latter is meant,
# here and in the processes that tests start.
if not list((ROOT / "kimi_vl_cpp").glob("_core*.so")):
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    os.environ["PYTHONSAFEPATH"] = "1"

try:
    from kimi_vl_cpp import _core
except ImportError as error:  # never a reason to skip
    raise pytest.UsageError(f"kimi_vl_cpp._core cannot be imported ({error}): build it with `pip install .`") from error

import fake_core  # noqa: E402

from kimi_vl_cpp import KimiVL  # noqa: E402
from kimi_vl_cpp.testing import TinyModel, make_tiny_model  # noqa: E402

# No example is timed, nor how long one takes to draw: machines are slow and busy.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# A shell that starts a job in the background has it ignore Ctrl-C, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ISAS = [row["name"] for row in _core.isas()]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda-library", help="the CUDA backend that tests/cuda runs on: one for a GPU, or emulated")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set in turn; skips those that this processor lacks."""
    supported = [row["name"] for row in _core.isas() if row["supported"]]
    if request.param not in supported:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Models of this test have the fake core; what it says and what was asked of it."""
    return fake_core.install(monkeypatch)


@pytest.fixture
def model(script: Any) -> Iterator[KimiVL]:
    """An Instruct model with the fake core."""
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint_dir("a" or "d"): the folder of the checkpoint that the stored reference vectors are about."""
    made: dict[str, Path] = {}

    def get(config: str) -> Path:
        if config not in made:
            out = tmp_path_factory.mktemp(f"checkpoint-{config}")
            command = [sys.executable, "-B", str(VECTORS / "make_tiny.py"), "--config", config, "--out", str(out)]
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
            subprocess.run(command, check=True, capture_output=True, cwd=out, env=environment)
            assert json.loads((out / "tiny.json").read_text())["config"] == config
            made[config] = out
        return made[config]

    return get


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """tiny_model(**arguments of make_tiny_model): made once for all who ask for the same: leave its files alone."""
    made: dict[str, TinyModel] = {}

    def get(**arguments: Any) -> TinyModel:
        if "edit" in arguments:  # functions cannot be told apart
            return make_tiny_model(tmp_path_factory.mktemp("tiny"), **arguments)
        key = repr(sorted(arguments.items()))
        if key not in made:
            made[key] = make_tiny_model(tmp_path_factory.mktemp("tiny"), **arguments)
        return made[key]

    return get


@pytest.fixture(scope="session")
def network_of() -> Callable[[TinyModel], Network]:
    """network_of(model): the NumPy network over what the model's files hold, in float64."""
    made: dict[Path, Network] = {}

    def get(model: TinyModel) -> Network:
        if model.text not in made:
            made[model.text] = Network(model.weights, model.config)
        return made[model.text]

    return get
