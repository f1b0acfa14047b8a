"""Deprecated: the names of this module are in kimi_vl_cpp.evaluation (questions, judge, run)."""

import warnings

from .evaluation.judge import *  # noqa: F403
from .evaluation.questions import *  # noqa: F403
from .evaluation.run import *  # noqa: F403

warnings.warn("kimi_vl_cpp.evaluate has moved: import from kimi_vl_cpp.evaluation", DeprecationWarning, stacklevel=2)
