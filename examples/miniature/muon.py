"""Muon: momentum whose matrices are made orthogonal before each step (Jordan 2024, kellerjordan.github.io/posts/muon).

The miniature learns as much with it as with AdamW in 0.6 of the steps. `torch.optim.Muon` (2.13) computes in bfloat16,
which on CPUs without its instructions takes longer than the whole training step; there this one takes float32.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from examples.miniature.lesson import has_bfloat16

_A, _B, _C = 3.4445, -4.7750, 2.0315  # coefficients of the quintic Newton-Schulz iteration, as published
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only. A step has the size that AdamW's has at the same learning rate (arXiv 2502.16982)."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002, the base's signature
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                update = _orthogonal(p.grad.lerp(mean, momentum))
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update, alpha=-rate * 0.2 * max(p.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about 1."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.bfloat16() if has_bfloat16(matrix.device) else x
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
