"""The arrows between the rooms (docs/architecture.md): the #include lines of csrc/, the imports of Python."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CPP_SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}

# room -> rooms that it may include. Longer paths win.
ALLOWED = {
    "base": {"base"},
    "quant": {"quant", "base"},
    "gguf": {"gguf", "quant", "base"},
    "backend": {"backend", "quant", "base"},
    "backend/plugin": {"backend", "backend/plugin", "base"},
    "backend/cuda": {"backend", "backend/cuda", "backend/plugin", "quant", "base"},
    "backend/cpu": {"backend", "backend/cpu", "backend/cpu/ops", "backend/cpu/kernels", "quant", "base"},
    "backend/cpu/ops": {"backend", "backend/cpu", "backend/cpu/ops", "backend/cpu/kernels", "quant", "base"},
    "backend/cpu/kernels": {"backend", "backend/cpu/kernels", "quant", "base"},
    "backend/cpu/kernels/loops": {"backend", "backend/cpu/kernels", "backend/cpu/kernels/loops", "quant", "base"},
    "model": {"model", "backend", "gguf", "quant", "base"},
    "engine": {"engine", "model", "backend", "gguf", "quant", "base"},
}
KERNELS = CSRC / "backend" / "cpu" / "kernels"
ISA_FOLDERS = sorted(path.name for path in KERNELS.iterdir() if path.is_dir() and path.name != "loops")
for isa in ISA_FOLDERS:  # operations see the table of kernels, no instruction set sees another
    ALLOWED[f"backend/cpu/kernels/{isa}"] = {*ALLOWED["backend/cpu/kernels/loops"], f"backend/cpu/kernels/{isa}"}


def room_of(path: str) -> str:
    return next(room for room in sorted(ALLOWED, key=len, reverse=True) if path.startswith(room + "/"))


def includes(text: str) -> list[str]:
    return re.findall(r'^\s*#include\s+"([^"]+)"', text, flags=re.M)


def violations(files: dict[str, str]) -> list[str]:
    wrong = []
    for path, text in files.items():
        for name in includes(text):
            if room_of(name) not in ALLOWED[room_of(path)]:
                wrong.append(f"{path} includes {name}: {room_of(path)} may include {sorted(ALLOWED[room_of(path)])}")
        if re.search(r"Python\.h|pybind11", text):
            wrong.append(f"{path}: the core never sees Python")
    return wrong


def test_arrows_between_rooms_go_one_way() -> None:
    sources = [p for p in CSRC.rglob("*") if p.suffix in CPP_SUFFIXES]
    files = {str(p.relative_to(CSRC)): p.read_text() for p in sources}
    assert len(files) > 30
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("base/x.h", "quant/format.h"),
        ("model/x.cpp", "backend/cpu/cpu_backend.h"),
        ("gguf/x.h", "model/config.h"),
        ("backend/cpu/ops/x.cpp", "backend/cpu/kernels/avx2/int8.h"),
        ("backend/cpu/kernels/avx2_vnni/x.cpp", "backend/cpu/kernels/avx2/int8.h"),
    ],
)
def test_the_check_sees_a_wrong_arrow(path: str, include: str) -> None:
    assert violations({path: f'#include "{include}"\n'})


def model_violations(files: dict[str, str]) -> list[str]:
    """What model/ does with a backend beyond what backend.h offers, and with memory that is the backend's."""
    wrong = []
    for path, text in files.items():
        if room_of(path) != "model":
            continue
        wrong += [
            f"{path} includes {name}: of a backend, model/ sees backend/backend.h"
            for name in includes(text)
            if room_of(name).startswith("backend") and name != "backend/backend.h"
        ]
        calls = re.findall(
            r"\b(?:memcpy|memmove|memset)\b|\.floats\(\)\s*\[|\*\s*[\w.>-]+floats\(\)|\bdata_\s*\[", text
        )
        wrong += [f"{path} has {call}: memory is the backend's, let it do that" for call in calls]
    return wrong


def test_the_model_never_follows_a_pointer_into_a_buffer() -> None:
    files = {str(p.relative_to(CSRC)): p.read_text() for p in (CSRC / "model").iterdir()}
    assert len(files) > 10
    assert model_violations(files) == []


@pytest.mark.parametrize(
    "text",
    [
        '#include "backend/registry.h"',
        '#include "backend/kv_view.h"',
        "std::memcpy(out, x_.floats(), n);",
        "std::memmove(x, x + 1, n);",
        "if (x_.floats()[0] > 0) return;",
        "const float first = *pass->x_.floats();",
        "page->data_[0] = 0;",
    ],
)
def test_the_check_sees_a_model_that_follows_pointers(text: str) -> None:
    assert model_violations({"model/x.cpp": text + "\n"})


def test_the_backend_names_no_backend() -> None:
    """Outside their folders and the registry, nothing of a backend's own."""
    for path in [*(CSRC / "backend").glob("*"), *(CSRC / "engine").glob("*"), *(CSRC / "model").glob("*")]:
        if path.is_file() and path.stem != "registry":
            assert not re.search(r"(?i)\bcpu_|\bcpuoptions|cuda", path.read_text()), path.name


def test_every_file_opens_with_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in CSRC.rglob("*.h") if not p.read_text().startswith("//")]
    assert silent == []


def test_per_isa_files_are_kept_free_of_heavy_headers() -> None:
    # A std header whose inline functions are compiled with AVX-512 flags could be the copy that the linker keeps.
    heavy = re.compile(r"#include <(vector|string|algorithm|functional|map|memory|iostream|thread|mutex|cmath)>")
    wrong = []
    compiled_with_flags = [f"backend/cpu/kernels/{name}" for name in [*ISA_FOLDERS, "loops"] if name != "generic"]
    for folder in [*compiled_with_flags, "quant/encode"]:
        for path in (CSRC / folder).rglob("*"):
            wrong += [f"{path.name}: {m.group(0)}" for m in heavy.finditer(path.read_text())]
    assert wrong == []


def test_cited_headings_of_the_model_description_exist() -> None:
    headings = set(re.findall(r"^##+ (.*)$", (ROOT / "docs" / "model.md").read_text(), flags=re.M))
    cited = {}
    for folder in ("csrc", "python", "kimi_vl_cpp", "quantize", "demo", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".h", ".cpp", ".py"} and path != Path(__file__):
                for name in re.findall(r'docs/model\.md, "([^"]+)"', path.read_text()):
                    cited[name] = str(path.relative_to(ROOT))
    assert cited and {name: path for name, path in cited.items() if name not in headings} == {}


# What only the command line knows. The core's messages name files, fields and parameters; cli/failures.py adds options.
COMMAND_LINE = re.compile(r"kimi-vl|(?<![\w-])--\w|\(-\w\)|(?:^|\s)(?<!ulimit )-[a-z]\b")


def texts(source: str) -> list[str]:
    """The string literals of C++."""
    literal_or_comment = re.compile(r"//[^\n]*|/\*.*?\*/|'(?:[^'\\\n]|\\.)+'|\"((?:[^\"\\\n]|\\.)*)\"", flags=re.S)
    return [m.group(1) for m in literal_or_comment.finditer(source) if m.group(1)]


def test_the_core_does_not_know_the_command_line() -> None:
    found = {path: texts(path.read_text()) for path in CSRC.rglob("*") if path.suffix in CPP_SUFFIXES}
    assert sum(map(len, found.values())) > 500
    assert [
        (str(path.relative_to(ROOT)), t) for path, all_ in found.items() for t in all_ if COMMAND_LINE.search(t)
    ] == []


@pytest.mark.parametrize(
    "text", ["take less context (-c)", "choose a smaller --ctx", "see kimi-vl inspect", "give -c 4096"]
)
def test_the_check_sees_an_option_in_a_message(text: str) -> None:
    assert [one for one in texts(f'fail("{text}");  // "-x"') if COMMAND_LINE.search(one)] == [text]


# Python. Room -> what it may import of the package, beside itself. A room is a folder, or a file of the package's root.
GROUND = {"errors", "types", "checks", "wording", "version"}
LOWER = GROUND | {"_core", "text", "media", "files", "machine", "cache"}
PYTHON_ARROWS = {
    "errors": set(),
    "types": set(),
    "version": set(),
    "wording": {"errors"},
    "checks": {"errors"},
    "builtin": GROUND,
    "text": GROUND,
    "media": GROUND,
    "files": GROUND | {"_core", "text"},
    "machine": GROUND | {"files", "_core"},
    "adapters": GROUND | {"files"},
    "cache": GROUND | {"_core"},
    "scheduler": GROUND | {"_core", "cache"},
    "generation": LOWER | {"adapters", "scheduler"},
    "chat": LOWER - {"_core"} | {"generation"},
    "openai": GROUND | {"text", "media", "generation"},
    "grounding": GROUND | {"media"},
    "model": LOWER - {"_core"} | {"builtin", "generation", "chat", "openai", "grounding"},
    "tasks": GROUND | {"text", "media", "generation", "chat", "model"},
    "agent": GROUND | {"text", "media", "grounding", "model"},
    "evaluation": GROUND | {"media", "grounding", "generation", "model"},
    "prompt": {"text"},  # deprecated names
    "evaluate": {"evaluation"},
    "bench": GROUND | {"_core", "files", "machine", "generation"},
    "server": GROUND | {"builtin", "text", "media", "files", "generation", "openai", "model"},
    "testing": GROUND | {"_core", "files"},
    "quantize": LOWER | {"adapters", "builtin", "generation", "chat", "model", "evaluation", "bench"},
    "cli": LOWER
    | {"adapters", "builtin", "generation", "chat", "openai", "model", "grounding", "tasks", "agent", "evaluation"}
    | {"bench", "quantize", "testing", "server"},
    "__init__": {"errors", "types", "version", "media", "generation", "chat", "model"},  # the lazy names of the face
    "__main__": {"cli"},
}
MOST_PARAMETERS = 8
LONG_FILE, LONGEST_FILE = 350, 500
LONGEST_FUNCTION = 80
LONGER_FUNCTIONS = {
    "kimi_vl_cpp/cli/serve.py command": "the declaration of its options",
    "kimi_vl_cpp/cli/quantize.py command": "the declaration of its options",
    "kimi_vl_cpp/cli/evaluate.py command": "the declaration of its options",
    "kimi_vl_cpp/cli/bench/command.py command": "the declaration of its options",
    "kimi_vl_cpp/testing/__init__.py make_tiny_model": "a public function: most of its lines say what its options do",
}


def python_files() -> dict[str, str]:
    """Module name as installed -> source."""
    found = {}
    for top, name in (("kimi_vl_cpp", "kimi_vl_cpp"), ("quantize", "kimi_vl_cpp.quantize")):
        for path in (ROOT / top).rglob("*.py"):
            inside = path.relative_to(ROOT / top).with_suffix("").parts
            module = ".".join((name, *inside))
            found[module] = path.read_text()
    return found


def imports_of(module: str, source: str, modules: set[str]) -> set[str]:
    """The modules of the package that one imports anywhere, for type checking too."""
    found = set()
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            continue
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        base = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            name = f"{base}.{alias.name}"
            file = name in modules or f"{name}.__init__" in modules or name == "kimi_vl_cpp._core"
            found.add(name if file else base)
    names = {name for name in found if name == "kimi_vl_cpp" or name.startswith("kimi_vl_cpp.")}
    return {f"{name}.__init__" if f"{name}.__init__" in modules else name for name in names}


def python_room(module: str) -> str:
    return module.split(".")[1]


def python_violations(files: dict[str, str]) -> list[str]:
    wrong = []
    for module, source in files.items():
        room = python_room(module)
        for target in sorted(imports_of(module, source, set(files))):
            if python_room(target) not in PYTHON_ARROWS[room] | {room}:
                wrong.append(f"{module} imports {target}: {room} may import {sorted(PYTHON_ARROWS[room])}")
    return wrong


def test_python_arrows_go_one_way() -> None:
    files = python_files()
    assert len(files) > 100
    assert python_violations(files) == []


def test_the_table_of_python_arrows_has_no_circle() -> None:
    assert list(TopologicalSorter(PYTHON_ARROWS).static_order())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kimi_vl_cpp.text.x", "from ..generation import sampling"),
        ("kimi_vl_cpp.openai.x", "from kimi_vl_cpp.model import KimiVL"),
        ("kimi_vl_cpp.quantize.comparison.x", "def f():\n    from kimi_vl_cpp.cli import terminal"),
        ("kimi_vl_cpp.generation.x", "if TYPE_CHECKING:\n    from ..chat.conversation import Conversation"),
    ],
)
def test_the_check_sees_a_wrong_python_arrow(module: str, source: str) -> None:
    assert python_violations({**python_files(), module: source})


def test_no_module_is_part_of_an_import_circle() -> None:
    """At run time: imports under TYPE_CHECKING and inside functions do not count."""
    files = python_files()
    graph = {}
    for module, source in files.items():
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[module] = imports_of(module, ast.unparse(tree), set(files)) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"import circle: {' -> '.join(circle.args[1])}")


def test_importing_the_package_loads_no_room_and_no_library() -> None:
    libraries = ("numpy", "PIL", "typer")
    code = (
        "import sys; before = set(sys.modules); import kimi_vl_cpp; new = set(sys.modules) - before\n"
        f"print(sorted(n for n in new if n.startswith('kimi_vl_cpp.')), [n for n in {libraries} if n in new])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['kimi_vl_cpp.version'] []"


def test_a_room_says_what_it_is() -> None:
    silent = [module for module, source in python_files().items() if not ast.get_docstring(ast.parse(source))]
    assert silent == []


@cache
def python_functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every function of the package, with the file that it is in."""
    paths = [path for top in ("kimi_vl_cpp", "quantize") for path in (ROOT / top).rglob("*.py")]
    trees = [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in paths]
    return [(path, node) for path, tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_functions_are_short_enough_to_read() -> None:
    lengths = [(f"{path} {node.name}", (node.end_lineno or 0) - node.lineno + 1) for path, node in python_functions()]
    long = {name: n for name, n in lengths if n > LONGEST_FUNCTION}
    assert long.keys() <= LONGER_FUNCTIONS.keys(), f"cut where a stage has a name: {long}"
    assert LONGER_FUNCTIONS.keys() <= long.keys(), "an exception that is not needed"


def test_constructors_take_few_parameters() -> None:
    many = {}
    for path, node in python_functions():
        n = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) - 1
        if node.name == "__init__" and n > MOST_PARAMETERS:
            many[path] = n
    assert many.keys() == {"kimi_vl_cpp/model.py"}, f"put what belongs together into a record: {many}"


def test_files_are_short_enough_to_read() -> None:
    tops = (CSRC, ROOT / "kimi_vl_cpp", ROOT / "quantize", ROOT / "python")
    sources = [path for top in tops for path in top.rglob("*") if path.suffix in {*CPP_SUFFIXES, ".py"}]
    lines = {path: path.read_text().count("\n") for path in sources}
    assert len(lines) > 500
    assert sorted(lines.values())[len(lines) * 9 // 10] <= LONG_FILE
    longest = {str(path.relative_to(ROOT)) for path, n in lines.items() if n > LONGEST_FILE}
    assert longest == {"kimi_vl_cpp/model.py"}  # its first lines say why


def cpp_functions(source: str) -> list[tuple[str, int]]:
    """(name, lines) of every function body; lambdas and what else lies inside another count with it."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    skipped = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^\s*#(?:[^\n]*\\\n)*[^\n]*'
    source = re.sub(skipped, blank, source, flags=re.S | re.M)
    found: list[tuple[str, int]] = []
    stack: list[tuple[str, int] | None] = []  # of the open braces: the function that begins there
    start = 0
    for match in re.finditer(r"[{};]", source):
        if match[0] == "{":
            head = source[start : match.start()]
            name = re.search(r"(?!__)\b([\w:~]+|operator\S+)\s*\(", re.sub(r"__\w+__\s*\(+[\w, ]*\)+", "", head))
            other = re.search(r"=\s*$|\b(?:namespace|class|struct|enum|union)\b[^()]*$", head)
            first = source.count("\n", 0, start + len(head) - len(head.lstrip()))
            stack.append((name[1], first) if name and not other and not any(stack) else None)
        elif match[0] == "}" and stack and (function := stack.pop()):
            found.append((function[0], source.count("\n", 0, match.start()) - function[1] + 1))
        start = match.end()
    return found


def test_cpp_functions_are_short_enough_to_read() -> None:
    sources = [path for top in (CSRC, ROOT / "python") for path in top.rglob("*") if path.suffix in CPP_SUFFIXES]
    functions = {(path, *one) for path in sources for one in cpp_functions(path.read_text())}
    assert len(functions) > 1000
    long = {f"{path.relative_to(ROOT)} {name}": n for path, name, n in functions if n > LONGEST_FUNCTION}
    assert not long, f"cut where a stage has a name: {long}"


@pytest.mark.parametrize(
    "head", ["void f(int a) {", "Type C::f()\n    : a_(1) {", "KIMI_INLINE static int f(A<B>& a) noexcept {"]
)
def test_the_check_sees_a_long_function(head: str) -> None:
    body = "\n".join("  if (a) { call('{', \"}\"); }  // }" for _ in range(90))
    (found,) = cpp_functions(f"namespace kimi {{\nstruct S {{ int a; }};\n{head}\n{body}\n}}\n}}\n")
    assert found[1] == 91 + head.count("\n") + 1


def stations(text: str) -> list[tuple[Path, str]]:
    """The files of the section "The ways" with the name that stands behind each, "" for none."""
    section = text.split("## The ways\n")[1].split("\n## ")[0]
    found = []
    folder = ROOT
    for name, what in re.findall(r"`([\w/]+\.(?:py|cpp|h))(?:: ([\w.:]+))?`", section):
        if "/" in name or name == "model.py":
            base = ROOT if name.startswith(("csrc/", "python/", "tests/")) else ROOT / "kimi_vl_cpp"
            folder = base / Path(name).parent
        path = folder / Path(name).name
        found.append((path, what))
    return found


def defines(path: Path, what: str) -> bool:
    """Whether a file has a function or class of this name, the last of a dotted one."""
    *_, last = re.split(r"\.|::", what)
    before = r"(?:def|class) " if path.suffix == ".py" else r"[\w>&*:] ?|^"
    return re.search(rf"(?m)(?:{before}){last}\b", path.read_text()) is not None


def test_the_ways_name_stations_that_there_are() -> None:
    found = stations((ROOT / "docs" / "architecture.md").read_text())
    assert len(found) > 60
    missing = [f"{path.relative_to(ROOT)}: {what}" for path, what in found if not path.is_file()]
    assert missing == []
    assert [f"{path.name}: {what}" for path, what in found if what and not defines(path, what)] == []
    assert not defines(ROOT / "kimi_vl_cpp/model.py", "KimiVL.no_such_door")
