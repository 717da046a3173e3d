"""Checks an installed CUDA build of fastgan, with or without a GPU; tools/cuda_check.sh runs it from another folder."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import fastgan
from fastgan.functional import discriminator_loss
from fastgan.nn import MLP, unfuse


def main() -> None:
    """Print what was checked; an AssertionError or any other error is a failure."""
    installed = Path(fastgan.__file__).resolve()
    checkout = Path(__file__).resolve().parent.parent
    assert not installed.is_relative_to(checkout / "fastgan"), f"{installed} is the checkout, not what was installed"

    facts = fastgan.info()
    assert facts["build"] is not None, "there is no compiled module"
    assert facts["build"]["cuda"], f"the compiled module was built without CUDA: {facts['build']}"
    assert facts["backends"]["cpu"] == "available", facts["backends"]["cpu"]
    with fastgan.use_backend("cpu"):
        check_loss()
        check_mlp()
    if torch.cuda.is_available():
        print(f"there is a GPU, so only the build and the CPU were checked: {facts['devices']}")
    else:
        check_refusal(facts)
    print(
        f"{installed.parent}: CUDA {facts['build']['cuda']} for {facts['build']['cuda_architectures']}, "
        f"PyTorch {torch.__version__}; the CPU's ops agree with PyTorch's"
    )


def check_loss() -> None:
    """The loss and its gradients against PyTorch's expression."""
    torch.manual_seed(0)
    logits = [torch.randn(64, 3, requires_grad=True) for _ in range(2)]
    ours = discriminator_loss(*logits)
    theirs = sum(
        F.binary_cross_entropy_with_logits(x, torch.full_like(x, target))
        for x, target in zip(logits, (1.0, 0.0), strict=True)
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def check_mlp() -> None:
    """Forward and backward of a stack of layers against the equal nn.Sequential."""
    fused = MLP([16, 32, 8], activation="relu", output_activation="tanh")
    plain = unfuse(copy.deepcopy(fused))
    x = torch.randn(24, 16)
    ours, theirs = fused(x), plain(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), list(fused.parameters())),
        torch.autograd.grad(theirs.square().sum(), list(plain.parameters())),
    )


def check_refusal(facts: dict) -> None:
    """Without a GPU, the CUDA backend is refused with the reason, and `fastgan doctor` shows the same."""
    refusal = "accepted"
    try:
        fastgan.set_backend("cuda")
    except RuntimeError as error:
        refusal = str(error)
    assert "no CUDA device" in refusal, f"set_backend('cuda') without a GPU: {refusal}"
    assert "no CUDA device" in facts["backends"]["cuda"], facts["backends"]["cuda"]
    assert set(facts["devices"]) == {"cpu"}, facts["devices"]


if __name__ == "__main__":
    sys.exit(main())
