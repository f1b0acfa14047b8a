"""`_core.pyi` names every public attribute of the extension, and nothing that it lacks."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import kimi_vl_cpp
from kimi_vl_cpp import _core

STUB = Path(kimi_vl_cpp.__file__).with_name("_core.pyi")


def written(body: list[ast.stmt], prefix: str = "") -> dict[str, str]:
    """Public name, dotted within a class -> kind, as the stub has it. A private class stands for the type of a module's
    attribute, as that of `bench`, and its members are found there."""
    private = {node.name: node for node in body if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[prefix + node.name] = "class"
            found |= written(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            is_property = any(ast.unparse(one) == "property" for one in node.decorator_list)
            found[prefix + node.name] = "value" if is_property else "function"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            inside = private.get(ast.unparse(node.annotation))
            found[prefix + node.target.id] = "class" if inside else "value"
            found |= written(inside.body, f"{prefix}{node.target.id}.") if inside else {}
    return found


def present(owner: Any, prefix: str = "") -> dict[str, str]:
    """The same of the extension itself."""
    found: dict[str, str] = {}
    for name, value in vars(owner).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type | ModuleType):
            found[prefix + name] = "class"
            found |= present(value, f"{prefix}{name}.")
        else:
            callable_here = inspect.isroutine(value) or type(value).__name__ == "instancemethod"
            found[prefix + name] = "function" if callable_here else "value"
    return found


def test_the_stub_names_what_there_is_and_nothing_more() -> None:
    stub, here = written(ast.parse(STUB.read_text()).body), present(_core)
    assert stub.pop("ops") == "value"  # left open: its functions are for tests
    here = {name: kind for name, kind in here.items() if name != "ops" and not name.startswith("ops.")}
    assert len(here) > 40
    assert sorted(here.items() - stub.items()) == [], "in the extension and not in _core.pyi"
    assert sorted(stub.items() - here.items()) == [], "in _core.pyi and not in the extension"
