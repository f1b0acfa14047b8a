"""A Hugging Face checkpoint folder: config.json and safetensors, treated as untrusted.

Owns the index of shards. Knows neither what the tensors mean nor what becomes of them.

Nothing here believes a name before it was checked: an index can only name files of its own folder.
Symbolic links are followed: Hugging Face's cache is made of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kimi_vl_cpp.errors import BadModelFile, Unsupported, shown
from kimi_vl_cpp.files.input_file import DOWNLOAD_AGAIN, InputFile, bad_file, read_json
from kimi_vl_cpp.files.safetensors import MAX_HEADER_BYTES, read_header
from kimi_vl_cpp.files.stored import FLOAT_TYPES, SourceTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_SHARDS = 1024
MAX_TENSORS = 1 << 16


class Checkpoint:
    """The tensors of a checkpoint folder, its config.json, and the files they come from.

    Raises BadModelFile with codes "checkpoint.*" that name the file and what to do.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.name = model_name(self.folder)
        self.inputs: list[InputFile] = []
        self.tensors: dict[str, SourceTensor] = {}
        self._refuse_adapter()
        try:
            self.config, file = read_json(self.folder / "config.json", "config.json")
            self.inputs.append(file)
            if os.path.lexists(self.folder / INDEX_NAME):
                self._read_shards()
            else:
                self._read_single()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the shards. Idempotent."""
        for file in self.inputs:
            file.close()

    def _refuse_adapter(self) -> None:
        """An adapter's folder holds changes to a model and not the model."""
        path = self.folder / "adapter_config.json"
        if not path.is_file() or any((self.folder / name).exists() for name in (INDEX_NAME, SINGLE_NAME)):
            return
        base = read_json(path, path.name)[0].get("base_model_name_or_path")
        raise Unsupported(
            f"{self.folder}: is an adapter (PEFT, such as LoRA) of {shown(base)}, not a model: give the folder of that "
            "model as the source, and this one as lora (--lora)",
            "checkpoint.adapter",
        )

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder (which then is an input), or None when there is none."""
        path = self.folder / name
        if not os.path.lexists(path):
            return None
        value, file = read_json(path, name, MAX_HEADER_BYTES)
        self.inputs.append(file)
        return value

    def _read_single(self) -> None:
        path = self.folder / SINGLE_NAME
        if not os.path.lexists(path):
            others = sorted(entry.name for entry in self.folder.glob("*.safetensors"))[:3]
            if not others and next(self.folder.glob("*.bin"), None) is not None:
                bad_file(
                    self.folder,
                    "holds weights of PyTorch's own format (.bin) only: save the model as safetensors (save_pretrained "
                    "does) and give that folder",
                    "no_weights",
                )
            found = f"there are {', '.join(others)}" if others else "there are no weights"
            bad_file(
                self.folder,
                f"holds neither {SINGLE_NAME} nor {INDEX_NAME} ({found}): {DOWNLOAD_AGAIN}, with its index",
                "no_weights",
            )
        self._add_shard(path)

    def _read_shards(self) -> None:
        index_path = self.folder / INDEX_NAME
        index, file = read_json(index_path, INDEX_NAME, MAX_HEADER_BYTES)
        self.inputs.append(file)
        where = index.get("weight_map")
        if not isinstance(where, dict) or not where:
            bad_file(index_path, f"weight_map is missing, empty or no object: {DOWNLOAD_AGAIN}", "index")
        names = list(dict.fromkeys(_shard_name(index_path, tensor, name) for tensor, name in where.items()))
        if len(names) > MAX_SHARDS:
            bad_file(index_path, f"names {len(names)} shards, expected at most {MAX_SHARDS}", "index")
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            bad_file(
                self.folder,
                f"{len(missing)} of {len(names)} shards are missing: {', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}: download them into this folder",
                "missing_shard",
            )
        for name in names:
            self._add_shard(self.folder / name)
        for tensor, name in where.items():
            found = self.tensors.get(tensor)
            if found is None or found.file.path.name != name:
                held = "no shard holds it" if found is None else f"it is in {found.file.path.name}"
                bad_file(
                    index_path,
                    f"tensor {shown(tensor)} should be in {name}, but {held}: the shards and the index are not of "
                    "the same download; download all of them again",
                    "index",
                )

    def _add_shard(self, path: Path) -> None:
        file = InputFile(path, "shard")
        self.inputs.append(file)
        for tensor in read_header(file):
            before = self.tensors.get(tensor.name)
            if before is not None:
                bad_file(
                    path,
                    f"tensor {shown(tensor.name)} is also in {before.file.path.name}: the shards are of different "
                    "downloads; download all of them again",
                    "duplicate_tensor",
                )
            self.tensors[tensor.name] = tensor
        if len(self.tensors) > MAX_TENSORS:
            bad_file(path, f"{len(self.tensors)} tensors up to here, expected at most {MAX_TENSORS}", "safetensors")


def model_name(folder: Path) -> str:
    """What the checkpoint calls itself: its folder's name, or the repository's in Hugging Face's cache."""
    whole = Path(os.path.abspath(folder))
    if whole.parent.name == "snapshots" and "--" in whole.parent.parent.name:
        return whole.parent.parent.name.rpartition("--")[2]
    return "".join([c if c.isprintable() else "_" for c in whole.name])  # a file name may be any bytes


def _shard_name(index: Path, tensor: str, name: object) -> str:
    if not isinstance(name, str):
        bad_file(index, f"tensor {shown(tensor)}: got {shown(name)} for its shard, expected a file name", "index")
    outside = name != os.path.basename(name) or name in ("", ".", "..") or "\\" in name or "\0" in name
    if outside or not name.endswith(".safetensors"):
        bad_file(
            index,
            f"tensor {shown(tensor)}: got {shown(name)} for its shard, expected the name of a .safetensors file in "
            "the same folder. Do not use this checkpoint: an index that leads out of its folder is damaged or hostile",
            "index_path",
        )
    return name


def check_float(tensor: SourceTensor) -> None:
    """Raises Unsupported for weights that are not plain floats, BadModelFile for other numbers."""
    if tensor.type in FLOAT_TYPES:
        return
    message = f"{tensor.file.path}: tensor {tensor.name}: dtype {tensor.type}, expected one of {', '.join(FLOAT_TYPES)}"
    if tensor.type.startswith("F"):
        raise Unsupported(f"{message}: use the original bfloat16 checkpoint", "checkpoint.dtype")
    raise BadModelFile(f"{message}: {DOWNLOAD_AGAIN}", "checkpoint.dtype")
