"""Deprecated: the names of this module are in kimi_vl_cpp.text.chat_template."""

import warnings

from .text.chat_template import *  # noqa: F403

warnings.warn(
    "kimi_vl_cpp.prompt has moved: import from kimi_vl_cpp.text.chat_template", DeprecationWarning, stacklevel=2
)
