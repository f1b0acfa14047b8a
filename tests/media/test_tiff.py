"""TIFF files of several pages: each page is the picture that it would be alone."""

from __future__ import annotations

import io

import documents
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp.errors import BadDocument, KimiVLError
from kimi_vl_cpp.media.documents import is_document, open_document, open_pages
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.media.tiff import TiffDocument

ORIENTATION, SUBFILE = 274, 254
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40 + 30 * seed, 90, 3), np.uint8))
    for seed in range(4)
]


def tiff(pictures, big=False, orientation=1, **options):
    file = io.BytesIO()
    first, *others = (picture.copy() for picture in pictures)
    for picture in (first, *others):
        picture.encoderinfo = {"tiffinfo": {ORIENTATION: orientation}}
    save = {"tiffinfo": {ORIENTATION: orientation}, "big_tiff": big, **options}
    first.save(file, "TIFF", save_all=True, append_images=others, **save)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"big": True}, {"compression": "tiff_lzw"}, {"orientation": 6}])
def test_a_page_is_seen_as_the_same_picture_alone(options):
    document = TiffDocument(tiff(PICTURES, **options), name="scan.tif")
    pages = document.pages("2-4")
    assert document.n_pages == 4 and pages[0].label == "Page 2 of 4:\n"
    processor = ImageProcessor(in_token_limit=16)
    for page, picture in zip(pages, PICTURES[1:], strict=True):
        alone = processor(tiff([picture], **options))
        seen = processor(page)
        assert seen == alone and seen.original_size == alone.original_size
    assert document.notices == [] and document.text(1) == ""


def test_of_a_file_of_one_picture_nothing_changes():
    for data, expected in ((tiff(PICTURES), True), (tiff(PICTURES[:1]), False), (documents.pdf(["a"]), True)):
        assert is_document(io.BytesIO(data)) == expected
    assert not is_document(io.BytesIO(b"II*\0")) and not is_document(io.BytesIO(b""))
    assert isinstance(open_document(documents.pdf(["a"])), Document)
    assert TiffDocument(tiff(PICTURES[:1])).n_pages == 1


def test_previews_and_masks_are_no_pages():
    data = bytearray(tiff(PICTURES[:3], tiffinfo={SUBFILE: 0}))
    document = TiffDocument(bytes(data))
    at = document._pages[1].at
    entry = next(at + 2 + 12 * n for n in range(40) if data[at + 2 + 12 * n : at + 4 + 12 * n] == b"\x00\x01")
    data[entry : entry + 12] = b"\xfe\x00\x04\x00\x01\x00\x00\x00\x01\x00\x00\x00"  # its width becomes NewSubfileType 1
    assert TiffDocument(bytes(data)).n_pages == 2


def test_a_path_with_pages_is_opened_like_that_of_a_pdf(tmp_path):
    (tmp_path / "scan.pdf").write_bytes(tiff(PICTURES))  # the bytes decide
    pages, _ = open_pages([f"{tmp_path}/scan.pdf#last,1"])
    assert [page.number for page in pages] == [4, 1]
    with pytest.raises(BadDocument, match=r"scan\.pdf has 4 pages") as caught:
        open_pages([f"{tmp_path}/scan.pdf#5"])
    assert caught.value.code == "document.pages"


def test_a_chain_that_runs_in_a_circle_ends_and_what_is_damaged_is_named():
    data = bytearray(tiff(PICTURES))
    document = TiffDocument(bytes(data), name="scan.tif")
    data[document._pages[1].link : document._pages[1].link + 4] = data[4:8]
    circle = TiffDocument(bytes(data), name="scan.tif")
    assert circle.n_pages == 2 and "scan.tif: cut off or damaged behind page 2" in circle.notices[0]
    short = TiffDocument(tiff(PICTURES)[: document._pages[3].at + 20])
    assert short.n_pages == 3 and "behind page 3" in short.notices[0]
    cut = TiffDocument(tiff(PICTURES, compression="tiff_lzw"), name="scan.tif")
    cut._data = cut._data[: len(cut._data) // 4] + bytes(len(cut._data) - len(cut._data) // 4)
    with pytest.raises(BadDocument, match=r"scan\.tif, page 4: ") as caught:
        cut.draw(4, 10, 10)
    assert caught.value.code == "image.truncated"
    cut.close()
    with pytest.raises(BadDocument, match="closed"):
        cut.draw(1, 10, 10)
    with pytest.raises(BadDocument, match="no page in it"):
        TiffDocument(b"II*\0\x08\0\0\0")


def test_directories_that_lie_over_each_other_are_not_read_for_ever():
    width = 12 * 65535
    heads = [8 + 2 * number for number in range(1000)]
    data = bytearray(heads[-1] + 2 + width + 4)
    data[:8] = b"II*\0" + heads[0].to_bytes(4, "little")
    for at, follows in zip(heads, [*heads[1:], 0], strict=True):
        data[at : at + 2] = b"\xff\xff"
        data[at + 2 + width : at + 6 + width] = follows.to_bytes(4, "little")
    with pytest.raises(KimiVLError):
        TiffDocument(bytes(data)).native_size(1)


SMALL = tiff([picture.resize((9, 7)) for picture in PICTURES[:3]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 1000))
def test_any_damage_gives_pages_or_a_typed_error(changes, cut):
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    try:
        for page in open_document(bytes(data[: len(data) - cut])).pages():
            page.draw(8, 8)
    except KimiVLError:
        pass
