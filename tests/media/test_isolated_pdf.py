"""PDF documents in a process of their own: the same pages, and what the file can do to us."""

from __future__ import annotations

import documents
import pytest

from kimi_vl_cpp.errors import BadDocument, Cancelled, Unsupported
from kimi_vl_cpp.media import isolated
from kimi_vl_cpp.media.isolated import IsolatedDocument
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor, LimitedImage

THREE = documents.pdf(["one", "two", "three"])


def test_pages_are_those_that_this_process_would_draw():
    with IsolatedDocument(THREE, name="x.pdf") as apart, Document(THREE, name="x.pdf") as here:
        assert (apart.n_pages, apart.notices, len(apart)) == (here.n_pages, here.notices, 3)
        assert apart.page_size(2) == here.page_size(2) and apart.text(3) == here.text(3) == "three"
        pages = [document.pages("2")[0] for document in (apart, here)]
        first, second = (ImageProcessor()(LimitedImage(page, 512)) for page in pages)
        assert first == second and first.label == second.label == "Page 2 of 3:\n"
        with pytest.raises(BadDocument) as caught:
            apart.pages("4")
        assert caught.value.code == "document.pages"
        # The process is killed by the file, as far as anybody can tell from here.
        apart._child.kill()
        with pytest.raises(BadDocument, match=r"x\.pdf: drawing page 1 crashed the PDF reader") as caught:
            apart.draw(1, 10, 10)
        assert caught.value.code == "document.crashed"
        apart.close()
        with pytest.raises(Cancelled):
            apart.draw(1, 10, 10)


def test_what_is_wrong_with_a_file_is_said_in_the_same_words(monkeypatch):
    monkeypatch.setenv("KIMI_VL_API_KEY", "secret")
    assert "KIMI_VL_API_KEY" not in isolated._environment()
    cut = THREE[: len(THREE) // 3]
    errors = []
    for opened in (Document, IsolatedDocument):
        with pytest.raises(BadDocument) as caught:
            opened(cut, name="cut.pdf")
        errors.append((str(caught.value), caught.value.code))
    assert errors[0] == errors[1] and errors[0][1] == "document.damaged"


def test_a_step_that_takes_too_long_is_given_up_and_its_process_is_gone():
    started = []

    class Watched(IsolatedDocument):
        def _step(self, *arguments, **options):
            started.append(self._child)
            return super()._step(*arguments, **options)

    with pytest.raises(BadDocument, match="opening it took longer than 0 s") as caught:
        Watched(THREE, limit_s=0)
    assert caught.value.code == "document.timeout" and started[0].returncode is not None


def test_without_pypdfium2_no_process_is_started(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(Unsupported, match=r"kimi-vl-cpp\[pdf\]"):
        IsolatedDocument(THREE)
