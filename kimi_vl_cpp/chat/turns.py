"""A question and its answer, and how both are written into JSON and read back."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..checks import check_int
from ..errors import BadRequest, KimiVLError, shown
from ..media.processor import ImageProcessor, ProcessedImage
from ..text.thinking import join_thinking

if TYPE_CHECKING:
    from ..generation.loaded import LoadedModel

FORMAT = "kimi_vl_cpp.conversation"
FORMAT_VERSION = 1


@dataclass
class Turn:
    """A question and its answer. token_ids: the answer as it was produced, reasoning included; None when it was cut by
    a stop string or comes from another vocabulary, and its text (with the reasoning in its marks) stands for it."""

    text: str
    images: list[ProcessedImage] = field(default_factory=list)
    answer: str = ""
    thinking: str = ""
    token_ids: tuple[int, ...] | None = None

    @property
    def spoken(self) -> str:
        """The answer as the model wrote it."""
        return join_thinking(self.thinking, self.answer)


def shown_content(turn: Turn) -> Any:
    if not turn.images:
        return turn.text
    pictures = [
        {
            "type": "image",
            "width": image.original_size[0],
            "height": image.original_size[1],
            "n_tokens": image.n_tokens,
        }
        for image in turn.images
    ]
    return [*pictures, {"type": "text", "text": turn.text}]


def turn_to_dict(turn: Turn) -> dict[str, Any]:
    """The turn, fit for JSON; pictures as their processed pixels (PNG, base64)."""
    return {
        "text": turn.text,
        "images": [_image_to_dict(image) for image in turn.images],
        "answer": turn.answer,
        "thinking": turn.thinking,
        "token_ids": None if turn.token_ids is None else list(turn.token_ids),
    }


def _image_to_dict(image: ProcessedImage) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.pixels).save(buffer, "PNG")
    return {
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "original_size": list(image.original_size),
        "resized_size": list(image.resized_size),
        "notices": list(image.notices),
        "label": image.label,
        "caption": image.caption,
    }


def invalid(where: str, got: Any, expected: str) -> BadRequest:
    return BadRequest(f"conversation: {where}: got {shown(got)}, expected {expected}", "conversation.invalid")


def text_field(data: Mapping[str, Any], name: str, where: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}{name}", value, "a string")
    return value


def turn_from_dict(model: LoadedModel, where: str, data: Any, *, same_ids: bool) -> Turn:
    """same_ids: whether the token ids are those of the model's vocabulary; others are dropped, and the text stands."""
    if not isinstance(data, Mapping):
        raise invalid(where.rstrip("."), data, "a dict")
    images, ids = data.get("images", []), data.get("token_ids")
    if not isinstance(images, list):
        raise invalid(f"{where}images", images, "a list")
    if ids is not None:
        if not isinstance(ids, list):
            raise invalid(f"{where}token_ids", ids, "a list of token ids or null")
        if not same_ids:
            ids = []
        ids = tuple(
            check_int(f"{where}token_ids[{index}]", token, 0, model.n_vocab - 1) for index, token in enumerate(ids)
        )
    return Turn(
        text=text_field(data, "text", where),
        images=[_image_from_dict(model, f"{where}images[{index}].", image) for index, image in enumerate(images)],
        answer=text_field(data, "answer", where),
        thinking=text_field(data, "thinking", where),
        token_ids=ids if same_ids else None,
    )


def _image_from_dict(model: LoadedModel, where: str, data: Any) -> ProcessedImage:
    if not isinstance(data, Mapping):
        raise invalid(where.rstrip("."), data, "a dict")
    encoded = text_field(data, "png", where)
    try:
        png = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise invalid(f"{where}png", encoded, f"base64 ({error})") from None
    # Pixels that were processed once pass through unchanged when no limit scales them down again.
    processor = ImageProcessor(
        patch_size=model.processor.patch_size,
        merge=model.processor.merge,
        in_token_limit=model.processor.max_grid_side**2,
        max_grid_side=model.processor.max_grid_side,
    )
    try:
        image = processor(png)
    except KimiVLError as error:
        raise BadRequest(f"conversation: {where}png: {error}", "conversation.invalid") from None
    notices = data.get("notices", [])
    if not isinstance(notices, list) or not all(isinstance(notice, str) for notice in notices):
        raise invalid(f"{where}notices", notices, "a list of strings")
    return replace(
        image,
        original_size=_size_field(data, "original_size", where),
        resized_size=_size_field(data, "resized_size", where),
        notices=list(notices),
        label=text_field(data, "label", where) if "label" in data else "",
        caption=text_field(data, "caption", where) if "caption" in data else "",
    )


def _size_field(data: Mapping[str, Any], name: str, where: str) -> tuple[int, int]:
    value = data.get(name)
    if not isinstance(value, list) or len(value) != 2:
        raise invalid(f"{where}{name}", value, "[width, height]")
    width, height = (check_int(f"{where}{name}[{index}]", side, 1, 1 << 31) for index, side in enumerate(value))
    return width, height
