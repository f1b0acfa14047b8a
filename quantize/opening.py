"""An opened model: its source, the tensors that it becomes and the metadata that goes along.

Owns what differs between a checkpoint folder and a GGUF file. Knows nothing about types to be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files.variants import KEY_IN_TOKEN_LIMIT, variant_of_text

from .output.metadata import PREPROCESSOR_NAME, Metadata, checkpoint_metadata, copied, is_about_vision
from .source.checkpoint import Checkpoint
from .source.config import read_config
from .source.gguf import GGUFSource
from .source.source import Source
from .source.tensor_map import Target, map_checkpoint
from .source.tokenizer import read_tokenizer


@dataclass
class Model:
    """An opened source. targets: text before vision. text, vision: metadata; with general keys for a GGUF source."""

    source: Source
    targets: list[Target]
    text: Metadata
    vision: Metadata
    name: str
    n_layers: int
    notices: list[str]


def open_model(src: Path, mmproj: Path | None, name: str | None) -> Model:
    """Opens a checkpoint folder or a GGUF file. Raises BadModelFile, BadRequest."""
    if not src.is_dir():
        if src.suffix in (".safetensors", ".json", ".bin") and src.is_file():
            raise BadRequest(f"{src}: is one file of a checkpoint: give its folder {src.parent}", "quantize.source")
        return _open_gguf(src, mmproj, name)
    if mmproj is not None:
        raise BadRequest(
            f"mmproj: {mmproj} was given, but {src} is a checkpoint folder with a vision part of its own: leave it out",
            "quantize.mmproj",
        )
    checkpoint = Checkpoint(src)
    try:
        config = read_config(checkpoint.config, src / "config.json")
        targets, unused = map_checkpoint(checkpoint, config)
        keys, vision_keys = checkpoint_metadata(checkpoint, config, read_tokenizer(checkpoint, config.text.vocab_size))
    except BaseException:
        checkpoint.close()
        raise
    notices = []
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        notices.append(f"{src}: tensors that the model does not use are left out: {', '.join(unused[:3])}{more}")
    if KEY_IN_TOKEN_LIMIT not in vision_keys:
        notices.append(
            f"{src}: no {PREPROCESSOR_NAME} with in_token_limit: how large pictures may be will be guessed from the "
            "model's name"
        )
    if variant_of_text(name or checkpoint.name) == "unknown":
        notices.append(
            f"the model will call itself {shown(name or checkpoint.name)}, which does not say Instruct, Thinking or "
            "Thinking-2506: how to sample by default depends on it; --name (name=) gives it another one"
        )
    if "tokenizer.chat_template" not in keys:
        notices.append(f"{src}: no chat template in tokenizer_config.json: the output will have none")
    layers = config.text.num_hidden_layers
    return Model(checkpoint, targets, keys, vision_keys, name or checkpoint.name, layers, notices)


def _open_gguf(src: Path, mmproj: Path | None, name: str | None) -> Model:
    source = GGUFSource(src, mmproj)
    try:
        targets = source.targets()
        keys = copied(source.text)
        vision = {key: value for key, value in keys.items() if is_about_vision(key)}
        keys = {key: value for key, value in keys.items() if not is_about_vision(key)}
        if source.vision is not None:
            found = copied(source.vision)
            vision |= {key: value for key, value in found.items() if is_about_vision(key)}
    except BaseException:
        source.close()
        raise
    notices = []
    if not any(target.is_vision for target in targets):
        notices.append(f"the output answers texts only: {source.why_no_vision}")
    return Model(source, targets, keys, vision, name or source.name, source.n_layers, notices)
