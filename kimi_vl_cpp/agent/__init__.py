"""An agent at a screen: looks at it, asks a policy (a model) for the next step, and performs it after the user agreed.

    from kimi_vl_cpp import KimiVL
    from kimi_vl_cpp.agent import Browser, ModelPolicy, run
    with KimiVL("kimi.gguf", n_ctx=16384) as model, Browser("shop.html") as browser:
        for taken in run("Order two tickets", browser, ModelPolicy(model)):
            print(taken.step.action_text)

What a model writes is parsed and never executed (agent/code.py). Needs the extra `agent`.
"""

from __future__ import annotations

from .confirm import ask, everything, relaxed
from .environment.base import DryRun, Environment, Observation, Outcome
from .environment.browser import Browser
from .environment.x11 import X11
from .loop import Taken, run
from .policy import HumanPolicy, ModelPolicy, Policy, ScriptedPolicy, Step
from .trace import Trace, replay

__all__ = [
    "X11",
    "Browser",
    "DryRun",
    "Environment",
    "HumanPolicy",
    "ModelPolicy",
    "Observation",
    "Outcome",
    "Policy",
    "ScriptedPolicy",
    "Step",
    "Taken",
    "Trace",
    "ask",
    "everything",
    "relaxed",
    "replay",
    "run",
]
