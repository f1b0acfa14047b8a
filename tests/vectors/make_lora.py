"""Writes lora/: an adapter that PEFT made for a tiny checkpoint, and the weights that PEFT merges it into.

    python make_lora.py CHECKPOINT lora      # CHECKPOINT: a folder with model.safetensors of float32; needs torch, peft

`lora_checkpoint` in tests/quantize/test_lora.py makes the checkpoint.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.numpy import load_file

MODULES = (
    r".*(q_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|gate_proj|up_proj|down_proj|wqkv|wo|fc0|fc1|linear_1|linear_2)"
)


def as_module(weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """Linear modules under the names of the checkpoint."""
    root = torch.nn.Module()
    for name, values in weights.items():
        path, _, last = name.rpartition(".")
        if last != "weight" or not re.fullmatch(MODULES, path):
            continue
        parent = root
        *above, own = path.split(".")
        for part in above:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        linear = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
        linear.weight.data = torch.from_numpy(values)
        parent.add_module(own, linear)
    return root


def main(checkpoint: Path, out: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=MODULES,
        rank_pattern={"kv_b_proj": 3, r"experts\.1\.up_proj": 2},
        alpha_pattern={"vision_tower.*wqkv": 3, "o_proj": 5},
        use_rslora=True,
    )
    model = peft.get_peft_model(as_module(load_file(checkpoint / "model.safetensors")), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(out)
    merged = model.merge_and_unload()
    changed = {name: p.detach().numpy() for name, p in merged.named_parameters()}
    np.savez_compressed(out / "merged.npz", **changed)
    (out / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
