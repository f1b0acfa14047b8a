"""The safetensors format, treated as untrusted.

No length, offset or name is believed before it was checked: headers are limited to 2 MiB (Kimi-VL's are below 1 MiB),
and the data must be covered by the tensors without holes or overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import shown
from .input_file import DOWNLOAD_AGAIN, InputFile, bad_file, parse_json
from .stored import SourceTensor

MAX_HEADER_BYTES = 2 << 20

Complain = Callable[[str], NoReturn]

_ELEMENT_BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32},
    **{"U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64},
}


def read_header(file: InputFile) -> Iterator[SourceTensor]:
    """The tensors of a safetensors file, in the order of their data. Raises BadModelFile, Unsupported."""

    def complain(problem: str) -> NoReturn:
        bad_file(file.path, f"{problem}: {DOWNLOAD_AGAIN}", "safetensors")

    if file.n_bytes < 8:
        complain(f"has {file.n_bytes} bytes, expected a safetensors file of at least 8")
    start = file.read(0, 8).tobytes()
    if start.lstrip()[:1] == b"<" and any(start[4:]):  # not the length of a header
        complain("is a web page, not a safetensors file: the download went wrong")
    if start[:4] == b"GGUF":
        bad_file(
            file.path,
            "is a GGUF file under the name of a safetensors file: give it as the source itself",
            "safetensors",
        )
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > file.n_bytes - 8:
        complain(f"bytes 0 to 8: the header claims {length} bytes, the file has {file.n_bytes - 8} after them")
    if length > MAX_HEADER_BYTES:
        complain(f"bytes 0 to 8: the header has {length} bytes, expected at most {MAX_HEADER_BYTES}")
    header = parse_json(file.read(8, length).tobytes(), lambda problem: complain(f"header {problem}"))
    begin = 8 + length
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        complain("header: __metadata__ is not an object")
    found = [(_entry(file, name, entry, complain), name) for name, entry in header.items()]
    found.sort(key=lambda item: item[0][2:])
    end = 0
    for (dtype, shape, first, last), name in found:
        if first != end:
            what = "overlaps the tensor before it" if first < end else f"leaves {first - end} bytes before it unused"
            complain(f"tensor {shown(name)}: its data from {first} to {last} {what}")
        end = last
        yield SourceTensor(name, dtype, shape, file, begin + first, last - first)
    if end != file.n_bytes - begin:
        complain(f"the tensors end at byte {begin + end}, the file has {file.n_bytes} bytes")


def _entry(file: InputFile, name: str, entry: Any, complain: Complain) -> tuple[str, tuple[int, ...], int, int]:
    where = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        complain(f"{where}: expected an object of dtype, shape and data_offsets, got {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BITS:
        complain(f"{where}: dtype {shown(dtype)} is unknown")
    if not _natural_numbers(shape) or len(shape) > 8:
        complain(f"{where}: shape {shown(shape)}, expected up to 8 integers that are not negative")
    if not _natural_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        complain(f"{where}: data_offsets {shown(offsets)}, expected [begin, end]")
    n_bits = _ELEMENT_BITS[dtype]
    for side in shape:
        n_bits *= side
    n_bytes = (n_bits + 7) // 8
    if n_bytes != offsets[1] - offsets[0]:
        complain(
            f"{where}: {dtype} of shape {shape} has {n_bytes} bytes, data_offsets {offsets} are "
            f"{offsets[1] - offsets[0]}"
        )
    if offsets[1] > file.n_bytes:
        complain(f"{where}: data_offsets {offsets} lie beyond the end of the file of {file.n_bytes} bytes")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _natural_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)
