"""The built-in model's file: the converted model with what it says of itself.

python -m demo.card converted.gguf card.md kimi_vl_cpp/builtin/model.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, ReaderField

from kimi_vl_cpp.variants import KEY_CARD, KEY_DEMO, KEY_MAX_NEW_TOKENS, KEY_TEMPERATURE

NAME = "Kimi-VL demonstration model"
LONGEST_ANSWER = 48


def add_card(source: Path, card: str, target: Path) -> None:
    """Copies a GGUF file and adds the card, greedy sampling and a limit of answers to its metadata."""
    reader = GGUFReader(source)
    writer = GGUFWriter(None, reader.fields["general.architecture"].contents())
    ours = {
        "general.name": (NAME, GGUFValueType.STRING),
        "general.description": (card.strip().splitlines()[0].lstrip("# "), GGUFValueType.STRING),
        KEY_DEMO: (True, GGUFValueType.BOOL),
        KEY_CARD: (card, GGUFValueType.STRING),
        KEY_TEMPERATURE: (0.0, GGUFValueType.FLOAT32),
        KEY_MAX_NEW_TOKENS: (LONGEST_ANSWER, GGUFValueType.UINT32),
    }
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in (*ours, "general.architecture"):
            _copy(writer, key, field)
    for key, (value, kind) in ours.items():
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(target)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy(writer: GGUFWriter, key: str, field: ReaderField) -> None:
    kind = field.types[0]
    element = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(key, field.contents(), kind, sub_type=element)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    add_card(args.source, args.card.read_text(), args.target)


if __name__ == "__main__":
    main()
