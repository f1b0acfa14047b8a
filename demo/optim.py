"""The optimizer: Muon for matrices, AdamW for everything else.

Muon orthogonalises the momentum of a matrix by Newton-Schulz iterations, so that all directions learn at one speed
(Jordan et al., 2024); the scale 0.2 * sqrt(larger side) gives its steps the size of AdamW's (Moonlight, arXiv
2502.16982).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# The quintic of five steps that Muon's authors publish: maps singular values from 0 to 1 to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(g: Tensor) -> Tensor:
    """[..., m, n] -> nearly orthogonal rows or columns, in bfloat16."""
    x = g.bfloat16()
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = _A * x + (_B * a + _C * (a @ a)) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; a 3-D parameter is a stack of matrices."""

    def __init__(self, params: Any, lr: float = 4e-3, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "m" not in state:
                    state["m"] = torch.zeros_like(p)
                state["m"].mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(state["m"], alpha=group["momentum"])  # Nesterov
                matrix = update.flatten(1) if p.dim() == 4 else update
                step = orthogonal(matrix).to(p.dtype).view_as(p)
                scale = 0.2 * max(matrix.shape[-2:]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * scale)


def is_matrix(name: str, p: nn.Parameter) -> bool:
    """Whether Muon trains it: a linear layer or a stack of experts, but not the router, the tables and the heads."""
    others = ("embed_tokens", "lm_head", "pos_emb", "gate.weight", "labels.", "patch_embed")
    return p.dim() >= 2 and not any(part in name for part in others)


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if is_matrix(name, p)]
    others = [p for name, p in model.named_parameters() if not is_matrix(name, p)]
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
