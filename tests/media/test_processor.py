"""The geometry and the bytes of processed pictures, held to the Hugging Face processor's definition.

Everything here is exact: the processor's bytes are integers, so there are no tolerances.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from picture_files import encoded, scene
from PIL import Image
from vectors import VECTORS

from kimi_vl_cpp.errors import BadImage, BadRequest
from kimi_vl_cpp.files.variants import default_in_token_limit
from kimi_vl_cpp.media.decode import pillow_at_work
from kimi_vl_cpp.media.processor import ImageProcessor, ProcessedImage

LIMITS = (4096, 16384)


def hugging_face(image: Image.Image, limit: int) -> NDArray[np.uint8]:
    """The definition, spelled again: scale in the picture's own mode, pad right and below with black, then RGB.

    For pictures at most twice as high as wide: beyond, Pillow 13 and later scale in another order than Pillow before.
    """
    w, h = image.size
    if (w // 14) * (h // 14) > limit:
        scale = math.sqrt(limit / ((w // 14) * (h // 14)))
        image = image.resize((int(w * scale), int(h * scale)), Image.Resampling.BICUBIC)
    rgb = np.asarray(image.convert("RGB"))
    down, right = -rgb.shape[0] % 28, -rgb.shape[1] % 28
    return np.pad(rgb, ((0, down), (0, right), (0, 0)))


def bicubic(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The slow twin of Pillow's bicubic filter (a = -0.5, 22-bit weights, 8 bits between the passes)."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (1.5 * x - 2.5) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0

    def along_first_axis(a: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
        if a.shape[0] == n:
            return a
        out = np.empty((n, *a.shape[1:]), np.uint8)
        ratio = a.shape[0] / n
        stretch = max(ratio, 1.0)
        for i in range(n):
            centre = (i + 0.5) * ratio
            first = max(int(centre - 2 * stretch + 0.5), 0)
            last = min(int(centre + 2 * stretch + 0.5), a.shape[0])
            weights = [kernel((x + first - centre + 0.5) * (1 / stretch)) for x in range(last - first)]
            total = sum(weights)
            fixed = [math.trunc(w / total * (1 << 22) + (0.5 if w >= 0 else -0.5)) for w in weights]
            taps = a[first:last].astype(np.int64)
            out[i] = np.clip((np.tensordot(fixed, taps, 1) + (1 << 21)) >> 22, 0, 255)
        return out

    wide = along_first_axis(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return along_first_axis(wide, height)


# width, height -> for each limit: scaled size, grid (rows, columns), positions in the context
GEOMETRY = {
    (448, 448): [((448, 448), (32, 32), 256)] * 2,
    (640, 480): [((640, 480), (36, 46), 414)] * 2,
    (896, 896): [((896, 896), (64, 64), 1024)] * 2,
    (897, 897): [((897, 897), (66, 66), 1089)] * 2,
    (1008, 1008): [((896, 896), (64, 64), 1024), ((1008, 1008), (72, 72), 1296)],
    (1024, 768): [((1024, 768), (56, 74), 1036)] * 2,
    (1280, 720): [((1202, 676), (50, 86), 1075), ((1280, 720), (52, 92), 1196)],
    (1920, 1080): [((1196, 672), (48, 86), 1032), ((1920, 1080), (78, 138), 2691)],
    (1792, 1792): [((896, 896), (64, 64), 1024), ((1792, 1792), (128, 128), 4096)],
    (100, 100): [((100, 100), (8, 8), 16)] * 2,
    (50, 2000): [((50, 2000), (144, 4), 144)] * 2,
    (1, 1): [((1, 1), (2, 2), 1)] * 2,
    (13, 13): [((13, 13), (2, 2), 1)] * 2,
    (27, 29): [((27, 29), (4, 2), 2)] * 2,
    (7140, 1): [((7140, 1), (2, 510), 255)] * 2,
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("size", GEOMETRY, ids=lambda size: f"{size[0]}x{size[1]}")
def test_geometry_is_that_of_the_hugging_face_processor(size: tuple[int, int], limit: int) -> None:
    processed = ImageProcessor(in_token_limit=limit)(Image.new("RGB", size))
    resized, grid, tokens = GEOMETRY[size][LIMITS.index(limit)]
    assert (processed.resized_size, processed.grid_hw, processed.n_tokens) == (resized, grid, tokens)
    assert processed.pixels.shape == (grid[0] * 14, grid[1] * 14, 3)
    assert processed.original_size == size


def test_a_large_picture_is_scaled_to_the_stored_size_under_both_limits() -> None:
    assert ImageProcessor().plan(3840, 2160) == ((1196, 672), (1204, 672))
    assert ImageProcessor(in_token_limit=16384).plan(3840, 2160)[1] == (2408, 1372)


def test_sizes_agree_with_preproc_json() -> None:
    cases = json.loads((VECTORS / "preproc.json").read_text())["cases"]
    assert len(cases) >= 14
    for case in cases:
        size = (case["w"], case["h"])
        resized, padded = ImageProcessor().plan(*size)
        assert list(padded) == case["hf"], case
        assert list(ImageProcessor(in_token_limit=16384).plan(*size)[1]) == case["hf_limit16384"], case
        # The pictures are not stored, nor how to make them. So their hashes can only say that bytes pass unchanged
        # exactly when nothing is to be done; the bytes of scaled pictures are held to the two twins above and STORED.
        assert (case["hf_u8_sha256"] == case["input_sha256"]) == (resized == padded == size), case


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "size", [(56, 56), (300, 200), (13, 40), (700, 28), (1344, 1008), (1920, 1080), (897, 897), (3000, 200)]
)
def test_bytes_are_those_of_the_hugging_face_processor(size: tuple[int, int], limit: int) -> None:
    image = Image.fromarray(scene(*size))
    processed = ImageProcessor(in_token_limit=limit)(image)
    np.testing.assert_array_equal(processed.pixels, hugging_face(image, limit))


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_bytes_of_grey_and_opaque_pictures_too(mode: str) -> None:
    image = Image.fromarray(scene(300, 220)).convert(mode)
    if mode == "1":  # scaling two-valued pictures gives greys only after the conversion that the model sees
        np.testing.assert_array_equal(ImageProcessor()(image).pixels, hugging_face(image, 4096))
        return
    np.testing.assert_array_equal(ImageProcessor(in_token_limit=64)(image).pixels, hugging_face(image, 64))


# The last three are higher than twice their width, like the screenshot of a phone.
SCALED = [((301, 203), 100), ((640, 100), 16), ((200, 210), 30), ((97, 333), 40), ((60, 500), 50), ((90, 200), 40)]


@pytest.mark.parametrize(("size", "limit"), SCALED)
def test_scaling_is_the_bicubic_filter_of_the_specification(size: tuple[int, int], limit: int) -> None:
    pixels = scene(*size)
    processed = ImageProcessor(in_token_limit=limit)(pixels)
    width, height = processed.resized_size
    assert (width, height) != size
    np.testing.assert_array_equal(processed.pixels[:height, :width], bicubic(pixels, width, height))


def test_padding_is_black_on_the_right_and_below() -> None:
    pixels = np.full((30, 40, 3), 200, np.uint8)
    out = ImageProcessor()(pixels).pixels
    assert out.shape == (56, 56, 3)
    assert (out[:30, :40] == 200).all()
    assert not out[30:].any() and not out[:, 40:].any()


def test_a_picture_with_exactly_the_limit_is_not_scaled() -> None:
    processor = ImageProcessor(in_token_limit=16)
    assert processor.plan(56, 56)[0] == (56, 56)
    assert processor.plan(69, 69)[0] == (69, 69)  # whole patches count, not pixels
    assert processor.plan(70, 56)[0] == (62, 50)


@given(width=st.integers(1, 20000), height=st.integers(1, 20000), limit=st.sampled_from([4, 100, *LIMITS]))
@example(width=7140, height=14, limit=4096)
@example(width=14, height=10998, limit=4)
@settings(max_examples=300, deadline=None)
def test_every_size_gets_a_grid_within_the_limits_or_is_refused(width: int, height: int, limit: int) -> None:
    processor = ImageProcessor(in_token_limit=limit)
    try:
        resized, padded = processor.plan(width, height)
    except BadImage as error:
        assert error.code == "image.too_many_patches"
        assert f"{width} x {height}" in str(error) and "7168" in str(error)
        return
    assert all(side % 28 == 0 and 28 <= side < 7168 for side in padded)
    assert all(0 <= p - r < 28 for r, p in zip(resized, padded, strict=True))
    assert all(r <= o for r, o in zip(resized, (width, height), strict=True))
    patches = (width // 14) * (height // 14)
    if patches > limit and min(resized) > 1:  # no side is scaled to less than a pixel
        assert resized[0] * resized[1] * patches <= width * height * limit


@pytest.mark.parametrize("size", [(7141, 20), (20, 7141), (65535, 1), (1, 65535), (7168, 7)])
def test_a_side_of_512_patches_is_refused_with_its_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match=rf"{size[0]} x {size[1]} .*below 7168.*cut it") as caught:
        ImageProcessor()(Image.new("L", size))
    assert caught.value.code == "image.too_many_patches"


def test_a_strip_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadImage) as caught:
        ImageProcessor()(encoded(Image.new("1", (1_000_000, 28)))[:-100])  # cut: decoding would say so
    assert caught.value.code == "image.too_many_patches"


def test_the_longest_picture_passes() -> None:
    assert ImageProcessor()(Image.new("L", (7140, 28))).grid_hw == (2, 510)


def test_the_same_picture_by_any_door_has_the_same_digest(tmp_path: Path) -> None:
    pixels = scene()
    path = tmp_path / "scene.png"
    path.write_bytes(encoded(pixels))
    doors = [pixels, Image.fromarray(pixels), path, str(path), path.read_bytes(), bytearray(path.read_bytes())]
    assert len({ImageProcessor()(door).digest for door in doors}) == 1  # type: ignore[arg-type]


def test_the_same_bytes_in_another_shape_have_another_digest() -> None:
    flat = np.arange(28 * 112 * 3, dtype=np.uint8)
    shapes = [(28, 112, 3), (112, 28, 3), (56, 56, 3)]
    processed = [ImageProcessor()(flat.reshape(shape)) for shape in shapes]
    assert len({p.pixels.tobytes() for p in processed}) == 1
    assert len({p.digest for p in processed}) == 3


def test_the_digest_is_sha256_of_grid_and_pixels_and_stable() -> None:
    processed = ImageProcessor()(np.zeros((28, 56, 3), np.uint8))
    assert processed.digest == hashlib.sha256(b"2x4:" + bytes(28 * 56 * 3)).hexdigest()


def test_one_changed_pixel_changes_the_digest() -> None:
    pixels = scene(56, 56)
    before = ImageProcessor()(pixels).digest
    pixels[55, 55, 2] ^= 1
    assert ImageProcessor()(pixels).digest != before


def test_processed_pictures_are_read_only_equal_by_content_and_short_to_print() -> None:
    one, two = ImageProcessor()(scene()), ImageProcessor()(scene())
    assert one == two and hash(one) == hash(two)
    assert len(repr(one)) < 400
    with pytest.raises(ValueError, match="read-only"):
        one.pixels[0, 0, 0] = 1
    assert isinstance(ImageProcessor()(one), ProcessedImage) and ImageProcessor()(one) is one


def test_the_limit_follows_the_variant_unless_given() -> None:
    assert [default_in_token_limit(v) for v in ("instruct", "thinking", "thinking-2506", "unknown")] == [
        4096,
        4096,
        16384,
        4096,
    ]


@pytest.mark.parametrize("value", [0, -1, 3, 4096.0, "4096", None, True])
def test_a_wrong_limit_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="in_token_limit"):
        ImageProcessor(in_token_limit=value)  # type: ignore[arg-type]


def test_a_wrong_pixel_limit_is_refused() -> None:
    with pytest.raises(BadRequest, match="max_pixels"):
        ImageProcessor(max_pixels=0)


def test_the_processor_does_not_need_the_core() -> None:
    code = "import sys, kimi_vl_cpp.media.processor; sys.exit('kimi_vl_cpp._core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_see_the_same_picture() -> None:
    data, digests = encoded(scene(400, 300)), []

    def decode() -> None:
        digests.extend(ImageProcessor()(data).digest for _ in range(4))

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 32 and len(set(digests)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_decodes_does_not_hang() -> None:
    inside, leave = threading.Event(), threading.Event()

    def decode() -> None:
        with pillow_at_work():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=decode)
    thread.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        os._exit(0 if ImageProcessor()(scene()).n_tokens == 6 else 1)
    leave.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


# sha256 of the processed pixels of `noise`, made with Pillow 10.3, 11.3 and 12.0, which agree, in one call of resize.
STORED = {
    (1080, 2400): "d801fd074e2ea6ed978d347532ecd70f77a168653fe6882684096359687e79de",
    (2400, 1080): "339ef13304d9a6e1c39df237a88c0aa7396332998ccb9177875d24d1b2af4e45",
}


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", STORED)
def test_bytes_are_those_of_pillow_before_13_whatever_is_installed(size: tuple[int, int]) -> None:
    assert hashlib.sha256(ImageProcessor()(noise(*size)).pixels.tobytes()).hexdigest() == STORED[size]
