"""Make your own weights: a Hugging Face checkpoint or a GGUF file of Kimi-VL into a quantized GGUF file.

    from kimi_vl_cpp.quantize import quantize
    report = quantize("Kimi-VL-A3B-Instruct", "kimi-Q4_K_M.gguf", "Q4_K_M")

`docs/quantize.md` lists the types, the recipes and what happens when a run is interrupted.
"""

from __future__ import annotations

from .comparison.compare import compare
from .comparison.report import CompareReport
from .convert import quantize
from .importance.run import ImatrixReport, make_imatrix
from .recipe import MIXES, RECIPES, Mix, Recipe
from .report import FileReport, Report, TensorReport

__all__ = [
    "MIXES",
    "RECIPES",
    "CompareReport",
    "FileReport",
    "ImatrixReport",
    "Mix",
    "Recipe",
    "Report",
    "TensorReport",
    "compare",
    "make_imatrix",
    "quantize",
]
