"""Writes seeds for fuzz_gguf: the files that the tests of the reader are made of, good and bad, and one of every type.

python tests/fuzz/make_corpus.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gguf_bad import BAD
from gguf_bytes import ARR, SCALARS, STR, U32, Gguf, array, key, pad, small_model, tensor, u32, u64

# id: elements and bytes of a block, from the definition of GGUF
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{
        16: (256, 66),
        20: (32, 18),
        21: (256, 110),
        23: (256, 136),
        28: (1, 8),
        30: (1, 2),
        35: (256, 66),
        39: (32, 17),
    },
}


def seeds() -> dict[str, Gguf | bytes]:
    scalars = [key(f"k{kind}", kind, 1) for kind in SCALARS] + [key("text", STR, "words")]
    arrays = [array(f"a{kind}", kind, [0, 1]) for kind in SCALARS] + [array("texts", STR, ["", "one", "two"])]
    made: dict[str, Gguf | bytes] = {
        "small": small_model(),
        "version_2": Gguf(version=2),
        "nothing": Gguf([]),
        "scalars": Gguf(scalars),
        "arrays": Gguf(arrays),
        "empty_array": Gguf([key("k", ARR, u32(U32) + u64(0))]),
        "trailing": small_model().bytes() + b"garbage",
        "hole": Gguf(tensors=[tensor("b", [8], 0, 128), tensor("a", [8], 0, 32)], data=bytes(160)),
    }
    for kind, (elems, n_bytes) in BLOCKS.items():
        made[f"type_{kind}"] = Gguf(tensors=[tensor("w", [2 * elems, 2], kind, 0)], data=pad(bytes(4 * n_bytes)))
    for alignment in (8, 64, 256):
        keys = [key("general.alignment", U32, alignment)]
        two = [tensor("a", [2, 2, 2, 1], 0, 0), tensor("b", [2], 0, max(32, alignment))]
        made[f"alignment_{alignment}"] = Gguf(keys, two, bytes(max(32, alignment) + alignment), alignment=alignment)
    return made | {f"bad_{name}": case[0] for name, case in BAD.items()}


def main(folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    n_written = 0
    for name, made in seeds().items():
        raw = made.bytes() if isinstance(made, Gguf) else made
        if len(raw) <= 4096 + 512:  # small seeds mutate better; a few of the bad ones are large
            (target / name).write_bytes(raw)
            n_written += 1
    print(f"{n_written} seeds in {target}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
