"""The activation `mish` (Misra 2019, arXiv:1908.08681) as a contributor would add it, and what it must then do.

fastgan has none. `add_to` adds it to a copy of the sources, by these two edits and nothing else; run as a program, on
that copy, this file holds it against PyTorch's: `python tests/mish.py reference` or, on the compiled module, `auto`.
"""

from __future__ import annotations

import sys
from pathlib import Path

TABLE_ENTRY = """\
    "mish": Activation(lambda x, slope: F.mish(x), nn.Mish, ((F, "mish"),), {"inplace": False}),
"""
COMPILED_ENTRY = """\
template <>
struct Act<Activation::mish> {  // z tanh(softplus(z))
  template <class C>
  static FASTGAN_INLINE C squashed(C z, C slope) {
    return tanh_(Act<Activation::softplus>::value(z, slope));
  }
  template <class C>
  static FASTGAN_INLINE C value(C z, C slope) {
    return z * squashed(z, slope);
  }
  template <class C>
  static FASTGAN_INLINE C d(C z, C slope) {
    const C t = squashed(z, slope);
    return t + z * (C(1) - t * t) * sigmoid_(z);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C z, C slope) {
    const C t = squashed(z, slope), s = sigmoid_(z);
    return (C(1) - t * t) * s * (C(2) + z * (C(1) - s - C(2) * t * s));
  }
  static constexpr Saved saved(double) { return Saved::argument; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return mish(z);
  }
};

"""


def insert(file: Path, text: str, before: str, after: str) -> None:
    """Puts text into a file, before the first `before` that follows the first `after`."""
    old = file.read_text()
    place = old.index(before, old.index(after))
    file.write_text(old[:place] + text + old[place:])


def add_to(checkout: Path) -> None:
    """The two edits."""
    insert(checkout / "fastgan" / "reference.py", TABLE_ENTRY, before="}\n\n", after="\nACTIVATIONS")
    header = checkout / "csrc" / "core" / "activation.h"
    insert(header, " X(mish)", before="\n\n", after="#define FASTGAN_ACTIVATIONS(X)")
    insert(header, COMPILED_ENTRY, before="// The gradient by z of", after="struct Act<")


def check(backend: str) -> None:
    """Everything that is public knows it, and value and derivatives are PyTorch's."""
    import torch
    import torch.nn.functional as F
    from conformance import ACTIVATIONS, assert_close_in_float64, check_against_torch, in_double
    from plain_step import Plain, adam, inputs, state_of, twin
    from torch import nn

    import fastgan
    from fastgan import functional
    from fastgan.nn import MLP, fuse

    assert "mish" in ACTIVATIONS
    torch.manual_seed(0)
    with fastgan.use_backend(backend):
        for dtype in (torch.float32, torch.float64):
            tensors = [3 * torch.randn(9, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype), torch.randn(4, dtype=dtype)]
            check_against_torch(
                lambda x, w, b: functional.linear_act(x, w, b, "mish"),
                lambda x, w, b: F.mish(F.linear(x, w, b)),
                tensors,
                (9, 4),
            )
            more = [*tensors, torch.randn(2, 4, dtype=dtype)]
            check_against_torch(
                lambda x, w, b, v: functional.mlp(x, [w, v], [b, None], ["mish", "mish"]),
                lambda x, w, b, v: F.mish(F.linear(F.mish(F.linear(x, w, b)), v)),
                more,
                (9, 2),
            )
        small = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (2, 2))]
        third = []
        for function in (functional.linear_act, lambda x, w, *_: F.mish(F.linear(x, w))):
            value = function(*small, None, "mish")
            for _ in range(3):
                (value,) = torch.autograd.grad(value.square().sum(), small[0], create_graph=True)
            third.append(value)
        assert_close_in_float64([third[0]], [third[1]])

        network = MLP([5, 4, 3], "mish", "mish", dtype=torch.float64)
        assert [type(m) for m in network] == [nn.Linear, nn.Mish, nn.Linear, nn.Mish]
        plain = nn.Sequential(*network)
        x = torch.randn(7, 5, dtype=torch.float64)
        assert_close_in_float64([network(x), fuse(in_double(plain))(x)], [plain(x)] * 2)

        pair = MLP([3, 8, 4], "mish", dtype=torch.float64), MLP([4, 8, 1], "mish", dtype=torch.float64)
        ours, plain_loop = (twin(kind, *pair, adam) for kind in (fastgan.TrainStep, Plain))
        for _ in range(3):
            given = inputs({})
            assert_close_in_float64(tuple(ours.step(*given)), tuple(plain_loop.step(*given)))
        assert_close_in_float64(state_of(ours), state_of(plain_loop), bound=1e-8)
        assert ours.plan.startswith("composed" if backend == "reference" else "the whole step as one native call")

        if backend != "reference":  # nothing fell back
            assert functional.ACTIVATION["mish"] == len(ACTIVATIONS) - 1
            y = functional.linear_act(*small, None, "mish")
            assert type(y.grad_fn).__name__ == type(functional.linear_act(*small, None, "silu").grad_fn).__name__
            assert "Mish" not in type(y.grad_fn).__name__


if __name__ == "__main__":
    check(sys.argv[1])
