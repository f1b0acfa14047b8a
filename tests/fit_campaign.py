"""`kimi-vl fit` against what is measured: sizes of files, and memory of a process that fills its context.

    python tests/fit_campaign.py [MODEL.gguf ...] [-c 2048] [--lora ADAPTER]

Without models: two made here and the built-in one. Each is opened in a process of its own, which encodes a picture of
the largest size and then computes a prompt that fills the context: its peak of resident memory is compared with what
`fit` says. Files of the other types that `quantize` writes, of a made model alone, are compared with the sizes that
`fit` gives. Fails where one is more than 3 % away. Where memory is short, the system takes pages of the file away
again, and less than a model needs is found: run it where nothing else does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kimi_vl_cpp import builtin
from kimi_vl_cpp.adapters.card import read_cards
from kimi_vl_cpp.quantize import fit, quantize
from kimi_vl_cpp.testing import ROWS_OF_256, make_tiny_model

MOST_AWAY = 0.03
PROGRAM = """
import json, sys
import numpy as np
from kimi_vl_cpp import KimiVL
path, n_ctx, rows, columns, lora = json.loads(sys.argv[1])
with KimiVL(path, n_ctx=n_ctx, lora=lora) as model:
    rng = np.random.default_rng(0)
    if model.has_vision:
        model.encode_image(rng.integers(0, 256, (14 * rows, 14 * columns, 3), np.uint8))
    ids = rng.integers(0, model.loaded.tokenizer.n_vocab // 2, n_ctx - 8)
    list(model.generate([ids.tolist()], max_new_tokens=4, temperature=0))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def measured(path: Path, n_ctx: int, n_patches: int, lora: str | None) -> int:
    """Peak of resident memory, in bytes."""
    rows = int(n_patches**0.5) // 2 * 2
    given = json.dumps([str(path), n_ctx, rows, n_patches // rows // 2 * 2, lora])
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def row(what: str, estimate: int, found: int) -> bool:
    """Prints a comparison; whether it is close enough."""
    away = estimate / found - 1
    print(f"{what:44} {estimate / 1e6:10.2f} {found / 1e6:10.2f} {100 * away:+6.1f} %", flush=True)
    return abs(away) <= MOST_AWAY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("-c", "--ctx", type=int, default=2048)
    parser.add_argument("--lora")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        models: list[Path] = given.models
        good = True
        print(f"{'':44} {'fit, MB':>10} {'found, MB':>10}")
        if not models:
            made = make_tiny_model(Path(work) / "tiny", text_type="F16")
            larger = make_tiny_model(Path(work) / "larger", text_type="F16", **ROWS_OF_256)
            models = [made.text, larger.text, Path(builtin.model_path())]
            for kind in fit.TYPES:
                shape, _ = fit.shape_of(larger.text)
                written = quantize(larger.text, Path(work) / f"{kind}.gguf", kind).n_bytes
                good &= row(f"size of {kind}", fit.file_bytes(shape, fit.types_of(shape, kind)), written)
        for model in models:
            shape, types = fit.shape_of(model)
            if given.lora:
                shape = shape.with_adapters(read_cards([(given.lora, 1.0)], shape.matrices, shape.projector))
            size = fit.file_bytes(shape, types)
            files = [model] if model.name.startswith("model") else [model, *model.parent.glob(f"mmproj*{model.name}")]
            if not given.models:
                good &= row(f"size of {model.name}", size, sum(file.stat().st_size for file in files))
            estimate = fit.memory_bytes(shape, size, given.ctx)
            good &= row(f"memory of {model.name}", estimate, measured(model, given.ctx, shape.n_patches, given.lora))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
