"""The exceptions: what they are caught as, what survives pickling, which exit code each has."""

import pickle

import pytest

from kimi_vl_cpp import errors

ALL = [
    errors.BadModelFile,
    errors.BadImage,
    errors.BadRequest,
    errors.ContextFull,
    errors.OutOfMemory,
    errors.Cancelled,
    errors.Unsupported,
]


@pytest.mark.parametrize("cls", ALL)
def test_error_carries_message_and_code_also_through_pickle(cls):
    for error in (cls("what to do", "room.reason"), pickle.loads(pickle.dumps(cls("what to do", "room.reason")))):
        assert isinstance(error, errors.KimiVLError) and type(error) is cls
        assert (str(error), error.code) == ("what to do", "room.reason")
    assert cls("message").code.islower()


def test_errors_are_caught_as_the_builtin_ones_they_also_are():
    assert issubclass(errors.BadRequest, ValueError)
    assert issubclass(errors.OutOfMemory, MemoryError)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.BadRequest, 2),
        (errors.BadModelFile, 3),
        (errors.BadImage, 4),
        (errors.OutOfMemory, 5),
        (MemoryError, 5),
        (errors.Cancelled, 130),
        (KeyboardInterrupt, 130),
        (errors.ContextFull, 1),
        (errors.Unsupported, 1),
        (RuntimeError, 1),
    ],
)
def test_exit_code_of_every_class(cls, code):
    assert errors.exit_code(cls("message")) == code


def test_shown_is_short_and_never_fails():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, 10**10_000, Broken(), deep, [{}] * 10**5):
        assert len(errors.shown(value)) < 200
