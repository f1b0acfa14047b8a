"""PDF documents for tests, written byte by byte: no library that writes them is needed."""

from __future__ import annotations

from collections.abc import Sequence

A4 = (595.28, 841.89)


def pdf(
    pages: Sequence[str], size: tuple[float, float] = A4, *, extra: str = "", font_size: int = 36, rotate: int = 0
) -> bytes:
    """A document with one line of text a page; an empty one is a blank page. extra: further keys of every page."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        line = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        stream = f"BT /F1 {font_size} Tf 40 {size[1] - 2 * font_size} Td ({line}) Tj ET" if text else ""
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {size[0]} {size[1]}]/Rotate {rotate}/Contents {len(objects)} 0 R"
            f"/Resources<</Font<</F1 3 0 R>>>>{extra}>>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(kids)}>>"
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj{body}endobj\n".encode("latin-1")
    start = len(out)
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    out += f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode()
    return bytes(out)
