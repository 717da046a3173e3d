"""The cases of verification: what each family of kernels computes from fixed numbers, and what it should."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import backend, functional, reference
from fastgan.verification_bounds import as_exact, derivatives, grid, layer_parameters

_SEED = 20140610
_SLOPE = 0.2  # of leaky_relu


class Case(NamedTuple):
    """A comparison with the reference.

    Attributes:
        kernel: what is compared.
        shape: on what, in words.
        terms: of the longest sum.
        exact: the reference's results in float64.
        torchs: the same by PyTorch, in the dtype and on the device.
        ours: by the compiled kernels, in each way that they have; of some ways the first few results alone.
    """

    kernel: str
    shape: str
    terms: int
    exact: Callable[[], list[Tensor]]
    torchs: Callable[[], list[Tensor]]
    ours: Callable[[], list[list[Tensor]]]


def generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(_SEED)


@contextlib.contextmanager
def on_path(path: str) -> Iterator[None]:
    """Layers of this thread by one kind of kernels (csrc/bindings/layer_path.h)."""
    backend.module.set_thread_layer_path(path)
    try:
        yield
    finally:
        backend.module.set_thread_layer_path("")


def paths(device: torch.device) -> tuple[str, ...]:
    """The kinds of kernels that a device has; on the CPU, narrow and tiled are one."""
    is_cpu = device.type == "cpu" and hasattr(backend.module, "set_verified")  # the host model of CUDA has no such
    return ("tiled", "library") if is_cpu else ("narrow", "tiled", "library")


# ---------------------------------------------------------------------------------------------------------- the losses

_REDUCTIONS = {"mean": 1, "none": 0, "sum": 2}


def cross_entropy(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """bce_with_logits, by its logits and its targets."""
    draw = generator()
    shapes = [(33, 5), (129,)] if is_quick else [(1,), (7,), (8, 1), (17, 3), (33, 5), (129,), (65, 129), (0,), (0, 3)]
    for shape in shapes:
        for reduction in _REDUCTIONS if not is_quick or shape == (33, 5) else ("mean",):
            logits, target = 4 * grid(draw, shape, 32), (grid(draw, shape, 16) + 1) / 2
            weights: list[Tensor | None] = [None, None]
            if len(shape) > 1:
                weights = [1 + grid(draw, shape[-1:], 8) / 2, 2 + grid(draw, shape[-1:], 4)]
            yield _loss_case(
                "cross-entropy" + (" with weights" if weights[0] is not None else ""),
                functools.partial(_cross_entropy, reduction=reduction),
                functools.partial(_cross_entropy_reference, reduction=reduction),
                [logits, target],
                weights,
                reduction,
                device,
                dtype,
            )


def _cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None, scale: Tensor | None, reduction: str) -> Tensor:
    loss: Tensor = backend.ops.bce_with_logits(x, target, weight, scale, _REDUCTIONS[reduction])
    return loss


def _cross_entropy_reference(
    x: Tensor, target: Tensor, weight: Tensor | None, scale: Tensor | None, reduction: str
) -> Tensor:
    return reference.binary_cross_entropy_with_logits(x, target, weight, reduction, scale)


def gan_losses(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """The discriminator's loss, and the generator's: each term, and pairs."""
    draw = generator()
    ops = backend.ops
    # Targets within what the logits' grid may be: of the hinge and the linear term, those of the table.
    targets = {"cross_entropy": (0.9, 0.1), "hinge": (1.0, -1.0), "linear": (1.0, -1.0), "square": (0.75, -0.5)}
    sizes = [(33, 129)] if is_quick else [(1, 1), (7, 8), (17, 17), (33, 129), (1025, 65), (0, 0), (0, 5)]

    def case(
        kernel: str,
        ours: Callable[..., Tensor],
        theirs: Callable[..., Tensor],
        reduction: str,
        *shapes: tuple[int, ...],
    ) -> Case:
        ours = functools.partial(_last, ours, _REDUCTIONS[reduction])
        theirs = functools.partial(_last, theirs, reduction)
        inputs = [4 * grid(draw, shape, 32) for shape in shapes]
        return _loss_case(kernel, ours, theirs, inputs, [], reduction, device, dtype)

    for term, (a, b) in targets.items():
        number = functional.LOSS_TERM[term]
        for sums in ("mean",) if is_quick else ("mean", "sum"):
            for real, fake in sizes:
                yield case(
                    f"discriminator's loss, {term}",
                    lambda r, f, last, a=a, b=b, number=number: ops.discriminator_loss(r, f, number, a, b, last),
                    lambda r, f, last, a=a, b=b, term=term: reference.discriminator_loss(r, f, term, a, b, last),
                    sums,
                    (real, 1),
                    (fake, 1),
                )
    shapes: Sequence[tuple[int, ...]] = [(33, 3)] if is_quick else [(1,), (7, 1), (33, 3), (129,), (1025,), (0,)]
    for reduction in _REDUCTIONS:
        for shape in shapes:
            for term, of in targets.items():
                if is_quick and term != "cross_entropy" and reduction != "none":
                    continue
                number = functional.LOSS_TERM[term]
                for target, sign in ((of[0], 1.0), (of[1], -1.0))[: 1 if is_quick else 2]:
                    yield case(
                        f"generator's loss, {term}",
                        lambda x, last, t=target, s=sign, number=number: ops.logits_loss(x, number, t, s, last),
                        lambda x, last, t=target, s=sign, term=term: reference.logits_loss(x, term, t, s, last),
                        reduction,
                        shape,
                    )
            yield case(
                "loss of pairs",
                lambda x, y, last: ops.paired_loss(x, y, 1.0, last),
                lambda x, y, last: reference.paired_loss(x, y, 1.0, last),
                reduction,
                shape,
                shape,
            )


def _last(function: Callable[..., Tensor], last: Any, *inputs: Tensor) -> Tensor:
    return function(*inputs, last)


def _loss_case(
    kernel: str,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: list[Tensor],
    constants: Sequence[Tensor | None],
    reduction: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Case:
    """By the inputs; matrices of more than one column lie in memory column by column."""
    draw = generator()
    value = inputs[0].shape if reduction == "none" else ()
    cotangents = [1 + grid(draw, value, 8) / 2, *(grid(draw, x.shape, 8) for x in inputs)]

    def run(function: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        def there(t: Tensor) -> Tensor:
            t = t.to(device, dtype)
            return t.t().contiguous().t() if t.dim() == 2 and t.shape[1] > 1 else t

        fixed = [None if c is None else c.to(device, dtype) for c in constants]
        return derivatives(
            lambda *x: function(*x, *fixed), [there(x) for x in inputs], [c.to(device, dtype) for c in cotangents]
        )

    return Case(
        f"{kernel}, {reduction}",
        " and ".join("x".join(map(str, x.shape)) for x in inputs[: 1 if constants else 2]),
        max(x.numel() for x in inputs),
        functools.partial(run, theirs, torch.device("cpu"), torch.float64),
        functools.partial(run, theirs, device, dtype),
        lambda: [run(ours, device, dtype)],
    )


# ---------------------------------------------------------------------------------------------------------- the layers

# Widths and batch. Every number of rows and columns leaves a rest.
_QUICK = [((7, 33, 9, 1), 33), ((33, 65, 17, 7), 65), ((65, 17, 33, 5), 1)]
_ALONE = [(1, 1, 1), (7, 8, 17), (33, 17, 7), (8, 65, 33), (65, 7, 129), (129, 33, 65), (17, 129, 8), (64, 64, 64)]


@functools.cache
def _kinds() -> tuple[list[str], list[str], list[str]]:
    """The activations with a kink at zero, in the value or a derivative; those that are straight; and the smooth."""
    kinked: list[str] = []
    straight: list[str] = []
    smooth: list[str] = []
    for name, activation in reference.ACTIVATIONS.items():
        z = torch.tensor([-1e-6, 1e-6], dtype=torch.float64, device="cpu")
        _, slope, _, bend = derivatives(lambda z, f=activation: f(z, _SLOPE), [z], [torch.ones_like(z)] * 2)[:4]
        if max(abs(d[0] - d[1]) for d in (slope, bend)) > 0.1:
            kinked.append(name)
        else:
            (smooth if bend.any() else straight).append(name)
    return kinked, straight, smooth


def _networks(is_quick: bool) -> Iterable[tuple[Sequence[int], Sequence[str], int]]:
    """Widths, activations and batch of networks that have every activation.

    Only a first layer may have a kink (see layer_parameters). The last is curved, so that every second gradient has a
    path.
    """
    kinked, straight, smooth = _kinds()
    half = (len(smooth) - len(straight)) // 2
    slots = kinked, straight + smooth[:half], smooth[half:]
    for i in range(max(map(len, slots))):
        widths, batch = _QUICK[i % len(_QUICK)]
        yield widths, [slot[i % len(slot)] for slot in slots], batch
    if is_quick:
        return
    for i, name in enumerate(reference.ACTIVATIONS):
        batch, width_in, width_out = _ALONE[i % len(_ALONE)]
        yield (width_in, width_out), [name], batch  # one layer alone: linear_act
    yield (2, 128, 128, 2), [kinked[0], smooth[-1], smooth[0]], 129
    yield (129, 257, 129, 65, 33, 17, 1), [kinked[-1], *[smooth[0]] * 4, smooth[1]], 7
    yield (5, 3), [smooth[0]], 0


def layers(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """mlp and linear_act, by their input, weights and biases, on each kind of kernels."""
    draw = generator()
    for widths, names, batch in _networks(is_quick):
        inputs = [grid(draw, (batch, widths[0]), 2)]
        made = [layer_parameters(draw, a, b, i == 0) for i, (a, b) in enumerate(pairwise(widths))]
        inputs += [weight for weight, _ in made] + [bias for _, bias in made]
        cotangents = [1 + grid(draw, (batch, widths[-1]), 8) / 2, *(grid(draw, t.shape, 8) for t in inputs)]

        @functools.cache
        def run(
            device: torch.device,
            dtype: torch.dtype,
            inputs: tuple[Tensor, ...] = tuple(inputs),
            cotangents: tuple[Tensor, ...] = tuple(cotangents),
            names: Sequence[str] = names,
        ) -> list[Tensor]:
            return derivatives(
                functools.partial(_layers_reference, names),
                [t.to(device, dtype) for t in inputs],
                [t.to(device, dtype) for t in cotangents],
            )

        for path in paths(device):
            yield Case(
                f"{'mlp' if len(names) > 1 else 'linear_act'} with {', '.join(dict.fromkeys(names))}: {path}",
                f"{batch}x{'-'.join(map(str, widths))}",
                max(batch, *widths),
                functools.partial(run, torch.device("cpu"), torch.float64),
                functools.partial(run, device, dtype),
                functools.partial(_layers, path, names, inputs, cotangents, device, dtype),
            )


def _layers_reference(names: Sequence[str], x: Tensor, *parameters: Tensor) -> Tensor:
    count = len(names)
    return reference.mlp(x, parameters[:count], parameters[count:], names, [_SLOPE] * count)


def _layers(
    path: str,
    names: Sequence[str],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> list[list[Tensor]]:
    """As `derivatives`, by the ops themselves: autograd would run them in a thread of its own, on another path."""
    count = len(names)
    x, *parameters = (t.to(device, dtype) for t in inputs)
    x = x.t().contiguous().t() if x.shape[0] % 2 == 1 else x  # in memory column by column, once
    weights, biases = parameters[:count], parameters[count:]
    at, *others = (t.to(device, dtype) for t in cotangents)
    call: tuple[Any, ...] = [functional.ACTIVATION[name] for name in names], [_SLOPE] * count
    ops, all_of = backend.ops, [1] * (1 + 2 * count)
    with on_path(path), torch.no_grad():
        value = ops.mlp(x, weights, biases, *call)
        outputs = ops.mlp_forward(x, weights, biases, *call)
        first = ops.mlp_backward(at, x, weights, outputs, *call, all_of, False)
        packed = ops.mlp_backward(at, x, weights, outputs, *call, all_of, True)
        again, kept = packed[: len(all_of)], packed[len(all_of) :]

        def double_backward(given: list[int], others: Sequence[Tensor]) -> list[Tensor]:
            return as_exact(ops.mlp_double_backward(others, given, x, weights, outputs, kept, *call, [1, *all_of]))

        second = double_backward(all_of, others)
        results = [as_exact([value, *first]), [*as_exact([outputs[count - 1], *again]), *second]]
        # As of a gradient penalty, which may have kernels of its own: second gradients are linear in the cotangents.
        if dtype in (torch.float32, torch.float64):
            none = [0] * len(all_of)
            parts = double_backward([1, *none[1:]], others[:1]), double_backward([0, *all_of[1:]], others[1:])
            results.append([*results[1][: -len(second)], *(a + b for a, b in zip(*parts, strict=True))])
    return results


# -------------------------------------------------------------------------------------------------------- the segments

_TAU = 0.5
# Widths and kinds, and rows. Wide runs may be another way than narrow ones; neighbours of one kind are one run.
_TABLES: list[tuple[list[tuple[int, str]], int]] = [
    (
        [
            (1, "tanh"),
            (7, "gumbel_softmax"),
            (65, "softmax"),
            (3, "identity"),
            (33, "softmax"),
            (1, "tanh"),
            (2, "tanh"),
        ],
        33,
    ),
    ([(129, "gumbel_softmax"), (1, "softmax"), (17, "gumbel_softmax"), (1, "gumbel_softmax"), (5, "identity")], 7),
]
_MORE_TABLES: list[tuple[list[tuple[int, str]], int]] = [
    ([(9, "tanh")], 65),
    ([(1, "identity")], 1),
    ([(2049, "softmax"), (2, "gumbel_softmax")], 3),
    ([(3, "gumbel_softmax"), (1, "tanh")] * 130, 17),
    ([(2, "softmax"), (1, "tanh")], 0),
]


def segments(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """The segmented activation, by its input."""
    draw = generator()
    for table, rows in _TABLES if is_quick else _TABLES + _MORE_TABLES:
        widths, kinds = [width for width, _ in table], [kind for _, kind in table]
        gumbel = sum(width for width, kind in table if kind == "gumbel_softmax")
        x, noise = 2 * grid(draw, (rows, sum(widths)), 32), 2 * grid(draw, (rows, gumbel), 32)
        cotangents = [1 + grid(draw, x.shape, 8) / 2, grid(draw, x.shape, 8)]

        def run(
            device: torch.device,
            dtype: torch.dtype,
            x: Tensor = x,
            noise: Tensor = noise,
            cotangents: Sequence[Tensor] = cotangents,
            widths: Sequence[int] = widths,
            kinds: Sequence[str] = kinds,
        ) -> list[Tensor]:
            draws = noise.to(device, reference.arithmetic_dtype(dtype))
            return derivatives(
                lambda x: reference.segmented_activation(x, widths, kinds, _TAU, draws),
                [x.to(device, dtype)],
                [c.to(device, dtype) for c in cotangents],
            )

        yield Case(
            f"segmented activation of {', '.join(dict.fromkeys(kinds))}",
            "x".join(map(str, x.shape)),
            max(widths),
            functools.partial(run, torch.device("cpu"), torch.float64),
            functools.partial(run, device, dtype),
            functools.partial(_segments, x, noise, cotangents, widths, kinds, device, dtype),
        )


def _segments(
    x: Tensor,
    noise: Tensor,
    cotangents: Sequence[Tensor],
    widths: Sequence[int],
    kinds: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> list[list[Tensor]]:
    """As `derivatives`, by the ops themselves."""
    x = x.to(device, dtype).t().contiguous().t()  # in memory column by column
    noise = noise.to(device, reference.arithmetic_dtype(dtype))
    at, other = (c.to(device, dtype) for c in cotangents)
    call = widths, [functional.SEGMENT_KIND[kind] for kind in kinds], _TAU
    ops = backend.ops
    with torch.no_grad():
        value = ops.segmented_activation(x, noise, *call)
        first = ops.segmented_activation_backward(at, value, *call)
        by_cotangent, by_output = ops.segmented_activation_double_backward(other, at, value, *call)
        second = ops.segmented_activation_backward(by_output, value, *call)
    return [as_exact([value, first, by_cotangent, second])]
