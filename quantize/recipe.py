"""Which tensor gets which type: the mixes by their common names, recipes of our own, and rules by tensor pattern.

The mixes follow llama-quantize type for type (its defaults), so that a file says what its
name says everywhere; tests hold the totals of the full-size model to them. A new recipe is one entry in
`RECIPES` or a TOML file:

    base = "Q4_K_M"                        # a mix or a recipe
    reason = "one sentence"
    vision = "F16"                         # optional
    [types]                                # the last pattern that fits wins
    "blk.*.ffn_down_exps" = "Q6_K"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files import file_types
from kimi_vl_cpp.files.input_file import read_small

from .blocks import blocks, fits, writable


@dataclass(frozen=True)
class Mix:
    """A type mix of a known name. base: of every matrix that no rule of `mix_type` treats otherwise."""

    name: str
    base: str

    @property
    def file_type(self) -> int:
        """The number in general.file_type."""
        return file_types.NUMBERS[self.name]


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix("F32", "F32"),
        Mix("F16", "F16"),
        Mix("BF16", "BF16"),
        Mix("Q8_0", "Q8_0"),
        Mix("Q6_K", "Q6_K"),
        Mix("Q5_K_M", "Q5_K"),
        Mix("Q5_K_S", "Q5_K"),
        Mix("Q5_0", "Q5_0"),
        Mix("Q4_K_M", "Q4_K"),
        Mix("Q4_K_S", "Q4_K"),
        Mix("Q4_0", "Q4_0"),
        Mix("IQ4_NL", "IQ4_NL"),
        Mix("IQ4_XS", "IQ4_XS"),
        Mix("Q3_K_L", "Q3_K"),
        Mix("Q3_K_M", "Q3_K"),
        Mix("Q3_K_S", "Q3_K"),
        Mix("Q2_K", "Q2_K"),
    )
}


@dataclass(frozen=True)
class Recipe:
    """A mix, changed by rules. types: (pattern, type), the last that fits wins. reason: why, in one sentence."""

    base: str
    reason: str = ""
    types: tuple[tuple[str, str], ...] = ()
    vision: str | None = None
    name: str = field(default="")


_EVERY_TOKEN = ("attn_q", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", "ffn_*_shexp")


def _every_token(type_name: str) -> tuple[tuple[str, str], ...]:
    """The matrices that every token passes, and the whole of the dense first layer."""
    names = (*(f"blk.*.{part}" for part in _EVERY_TOKEN), "blk.*.ffn_gate", "blk.*.ffn_up", "blk.*.ffn_down")
    return tuple((name, type_name) for name in names)


RECIPES: dict[str, Recipe] = {
    "shared-q8-experts-q4": Recipe(
        "Q4_K_S",
        "Attention, shared experts and the dense layer are 6 % of the weights but serve every token, while a routed "
        "expert serves one token in eleven: the few bits that they cost go where every token feels them.",
        _every_token("Q8_0"),
    ),
    "shared-q6-experts-q3": Recipe(
        "Q3_K_S",
        "The smallest file that still keeps what every token passes at six bits: only the routed experts, whose errors "
        "are averaged over the six that answer, go down to three.",
        _every_token("Q6_K"),
    ),
    "vocab-q8-rest-q4": Recipe(
        "Q4_K_M",
        "Rows of the vocabulary matrices belong to single tokens, so rare ones (a character of another script on a "
        "photographed sign) have nothing that averages their error: both stay at eight bits.",
        (("token_embd", "Q8_0"), ("output", "Q8_0")),
    ),
}


def is_fixed(name: str, shape: Sequence[int]) -> bool:
    """Vectors, norms, routers and the position table stay F32: they are small and their errors are not."""
    return (
        len(shape) < 2
        or not name.endswith(".weight")
        or any(part in name for part in ("_norm.weight", "ffn_gate_inp", "position_embd"))
    )


def _more_bits(layer: int, n_layers: int) -> bool:
    """The layers that the _M mixes favour: the first and last eighth, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def mix_type(
    mix: str, name: str, n_cols: int, n_layers: int, *, is_output: bool = False, has_imatrix: bool = False
) -> str:
    """The type that a mix means for a matrix of the text model, before its fallback for the row length.

    is_output: the matrix makes the logits (token_embd does in a file without output.weight). has_imatrix: importance of
    columns is known, which some mixes trust more than bits and some less.
    """
    base = MIXES[mix].base
    if base in ("F32", "F16", "BF16", "Q8_0"):
        return base
    if name == "output.weight" or is_output:
        return "Q6_K" if fits("Q6_K", n_cols) else "Q8_0"
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    first_eighth, more = layer < n_layers // 8, _more_bits(layer, n_layers)
    if "attn_kv_b" in name:  # of files that do not split it
        in_front = {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K", "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K"}
        if mix == "Q4_K_S" and layer < 4:
            return "Q5_K"
        return "Q6_K" if mix in ("Q4_K_M", "Q5_K_M") and more else in_front.get(mix, base)
    if "ffn_down" in name:
        if mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else base
        if mix == "Q3_K_M":
            return "Q5_K" if layer < n_layers // 16 else "Q4_K"
        if first_eighth and (mix == "Q4_K_S" or (mix in ("IQ4_NL", "IQ4_XS") and not has_imatrix)):
            return "Q5_K"
        if first_eighth and mix in ("Q4_0", "Q5_0") and has_imatrix:
            return "Q4_1" if mix == "Q4_0" else "Q5_1"
        return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    if "attn_output" in name:
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    return base


def fallback(type_name: str, n_cols: int) -> str:
    """The type for rows of `n_cols`: the one asked for, or the next that has whole blocks."""
    while not fits(type_name, n_cols):
        type_name = file_types.FALLBACK[type_name]
    return type_name


@dataclass
class Chooser:
    """The types of one output file. Rules that matched nothing are errors, raised by `finish`."""

    recipe: Recipe
    vision: str
    n_layers: int
    has_output: bool
    has_imatrix: bool = False
    notices: list[str] = field(default_factory=list)
    _used: set[str] = field(default_factory=set)

    def type_of(self, name: str, shape: Sequence[int], is_vision: bool) -> str:
        """The type of a tensor; shape in NumPy order."""
        patterns = [pattern for pattern, _ in self.recipe.types if matches(pattern, name)]
        if is_fixed(name, shape):
            return "F32"
        self._used.update(patterns)
        wanted = self._wanted(name, shape, is_vision)
        if "patch_embd" in name and wanted not in ("F16", "F32"):
            return "F32"  # the convolution: rows of 14
        chosen = fallback(wanted, shape[-1])
        if patterns and chosen != wanted:
            self.notices.append(f"{name}: rows of {shape[-1]} are not whole blocks of {wanted}: {chosen} instead")
        return chosen

    def has_rule(self, name: str) -> bool:
        """Whether a rule is about a tensor."""
        return any(matches(pattern, name) for pattern, _ in self.recipe.types)

    def _wanted(self, name: str, shape: Sequence[int], is_vision: bool) -> str:
        for pattern, type_name in reversed(self.recipe.types):
            if matches(pattern, name):
                return type_name
        if is_vision:
            return self.vision
        is_output = name == "token_embd.weight" and not self.has_output
        return mix_type(
            self.recipe.base, name, shape[-1], self.n_layers, is_output=is_output, has_imatrix=self.has_imatrix
        )

    def finish(self, names: Sequence[str]) -> None:
        """Raises BadRequest "quantize.pattern" for a rule that fits none of `names`, or only what stays F32."""
        for pattern, _ in self.recipe.types:
            if pattern in self._used:
                continue
            fixed = [name for name in names if matches(pattern, name)]
            if fixed:
                why = f"fits only {fixed[0]}{' and others' if len(fixed) > 1 else ''}, which stay F32"
            else:
                bare = sorted({re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight")) for name in names})
                near = difflib.get_close_matches(re.sub(r"\.\d+\.", ".*.", pattern), bare, n=1, cutoff=0.5)
                why = "fits no tensor" + (f"; did you mean {near[0]}?" if near else "; `kimi-vl inspect` lists them")
            raise BadRequest(f"type rule {shown(pattern)} {why}", "quantize.pattern")


def matches(pattern: str, name: str) -> bool:
    """Whether a rule is about a tensor; ".weight" may be left out."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def check_type(type_name: object, where: str) -> str:
    """The name of a tensor type that can be written. Raises BadRequest "quantize.type"."""
    wanted = type_name.upper() if isinstance(type_name, str) else type_name
    if isinstance(wanted, str) and wanted in writable():
        return wanted
    expected = f"expected one of {', '.join(writable())}"
    if isinstance(wanted, str) and wanted in blocks():
        raise BadRequest(f"{where}: tensors of type {wanted} are read, but not written: {expected}", "quantize.type")
    raise BadRequest(f"{where}: {shown(type_name)} is not a tensor type: {expected}", "quantize.type")


def named_recipe(name: object) -> Recipe:
    """A mix or a recipe by its name, in any case. Raises BadRequest "quantize.type"."""
    if isinstance(name, str):
        if name.upper() in MIXES:
            return Recipe(name.upper(), name=name.upper())
        if name.lower() in RECIPES:
            found = RECIPES[name.lower()]
            return Recipe(found.base, found.reason, found.types, found.vision, name.lower())
    raise BadRequest(
        f"type: {shown(name)} is not a type: expected one of {', '.join([*MIXES, *RECIPES])}", "quantize.type"
    )


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file (see above). Raises BadRequest "quantize.recipe", BadModelFile when it cannot be
    read."""
    raw, _ = read_small(path, "recipe", 1 << 20, advice="")

    def bad(problem: str) -> BadRequest:
        return BadRequest(f"{path}: {problem}", "quantize.recipe")

    try:
        values = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        raise bad(f"is not TOML: {error}") from None
    unknown = values.keys() - {"base", "reason", "vision", "types"}
    if unknown:
        raise bad(f"{shown(sorted(unknown)[0])} is not a key of a recipe: expected base, reason, vision, types")
    if "base" not in values:
        raise bad('base is missing, for example base = "Q4_K_M"')
    try:
        base = named_recipe(values["base"])
        types = values.get("types", {})
        if not isinstance(types, dict):
            raise bad(f"types is {shown(types)}, expected a table of patterns")
        rules = tuple((pattern, check_type(kind, f"types.{pattern}")) for pattern, kind in types.items())
        vision = check_type(values["vision"], "vision") if "vision" in values else base.vision
    except BadRequest as error:
        raise error if str(error).startswith(str(path)) else bad(str(error)) from None
    reason = values.get("reason", "")
    return Recipe(base.base, str(reason) or base.reason, base.types + rules, vision, path.stem)


def with_rules(recipe: Recipe, rules: Mapping[str, str] | Sequence[tuple[str, str]]) -> Recipe:
    """The recipe with rules put after its own. Raises BadRequest "quantize.type"."""
    pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise BadRequest(f"types: {shown(pair)} is not a pair of a pattern and a type", "quantize.type")
    checked = tuple((pattern, check_type(kind, f"type rule {pattern}")) for pattern, kind in pairs)
    return Recipe(recipe.base, recipe.reason, recipe.types + checked, recipe.vision, recipe.name)
