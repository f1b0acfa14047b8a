"""`_core.pyi` names every public attribute of the extension and every parameter, and nothing that it lacks."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import kimi_vl_cpp
from kimi_vl_cpp import _core

STUB = Path(kimi_vl_cpp.__file__).with_name("_core.pyi")


def written(body: list[ast.stmt], prefix: str = "") -> dict[str, str]:
    """Public name, dotted within a class -> kind, as the stub has it. A private class stands for the type of a module's
    attribute, as those of `bench` and `ops`, and its members are found there."""
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
    assert len(here) > 80
    assert sorted(here.items() - stub.items()) == [], "in the extension and not in _core.pyi"
    assert sorted(stub.items() - here.items()) == [], "in _core.pyi and not in the extension"


def written_parameters(body: list[ast.stmt], prefix: str = "") -> dict[str, list[str]]:
    """Function, dotted within a class -> names of its parameters, as the stub has them; `self` is left out."""
    owners = {
        ast.unparse(node.annotation): ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)
    }
    found: dict[str, list[str]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= written_parameters(node.body, f"{owners.get(node.name, node.name)}.")
        elif isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = [arg.arg for arg in node.args.args if arg.arg != "self"]
    return found


def signatures(owner: Any, prefix: str = "") -> dict[str, list[str]]:
    """The same from the first lines of the docstrings that pybind11 writes."""
    found: dict[str, list[str]] = {}
    for name, value in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, type | ModuleType):
            found |= signatures(value, f"{prefix}{name}.")
        elif not isinstance(value, property):
            line = (getattr(value, "__doc__", None) or "").partition("\n")[0]
            if match := re.match(rf"{name}\((.*)\) -> ", line):
                names = re.findall(r"(?:^|, )(\w+): ", re.sub(r"\[[^\]]*\]", "", match[1]))
                found[prefix + name] = [one for one in names if one != "self"]
    return found


def test_the_stub_names_parameters_as_they_are() -> None:
    stub, here = written_parameters(ast.parse(STUB.read_text()).body), signatures(_core)
    assert len(here) > 60
    assert {name: (names, stub.get(name)) for name, names in here.items() if stub.get(name) != names} == {}
