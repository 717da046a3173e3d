"""The statements that train: a step on usual inputs, unusual ones, wrong ones, and inside a mode."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .networks import DATA, LATENT
from .statements import STEPS, NotHere, pick, statement, values
from .worlds import World

Given = dict[str, Any]  # real, labels, noise


class OwnTensor(Tensor):
    """Somebody's own kind of tensor."""


class Passing(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class PassingDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def sizes(world: World) -> dict[str, Any]:
    trainer = world.trainer
    dtypes = [p.dtype for p in trainer.generator.parameters()]
    d_steps, classes = (int(v) if isinstance(v, Real) and v > 0 else 0 for v in (trainer.d_steps, trainer.num_classes))
    return {
        "d_steps": max(d_steps, 1),
        "rows": max(d_steps, 1) + (0 if trainer.reuse_fake else 1),
        "classes": classes,
        "dtype": dtypes[0] if dtypes else torch.float64,
    }


def usual(world: World, r: random.Random, batch: int) -> Given:
    """What the documentation asks for, the noise given."""
    of = sizes(world)
    labels = None
    if of["classes"]:
        source = torch.Generator().manual_seed(r.randrange(1 << 30))
        labels = torch.randint(of["classes"], (batch,), generator=source)
    # 2.5 times as large as weights are
    return {
        "real": 2.5 * values(r, batch, DATA, dtype=of["dtype"]),
        "labels": labels,
        "noise": 2.5 * values(r, of["rows"], batch, LATENT, dtype=of["dtype"]),
    }


def batch_of(world: World) -> int:
    return world.kept["batch"]


@statement(STEPS)
def step(world: World, r: random.Random) -> tuple[str, Given]:
    return "usual inputs", usual(world, r, batch_of(world))


def _strided(value: Tensor) -> Tensor:
    return torch.stack([value, value + 1], -1)[..., 0]


def _transposed(value: Tensor) -> Tensor:
    return value.transpose(-1, -2).contiguous().transpose(-1, -2)


def _from_larger(value: Tensor) -> Tensor:
    return torch.cat([value, value], -1)[..., : value.shape[-1]]


def _negative(value: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack([value, -value], -1)).conj().imag


def _repeated(value: Tensor) -> Tensor:
    return value[..., :1, :].expand(value.shape)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    _strided,
    _transposed,
    _from_larger,
    _negative,
    _repeated,
    lambda value: value.clone().requires_grad_(),
    lambda value: value.clone().requires_grad_() * 1.0,
    nn.Parameter,
    lambda value: value.clone().as_subclass(OwnTensor),
    lambda value: value.flip(-1),
    lambda value: value.to_sparse().to_dense(),
    lambda value: value.detach().clone().share_memory_(),
    lambda value: torch.from_numpy(value.float().numpy().copy()).to(value.dtype),
    lambda value: value.index_fill(-1, torch.tensor([0]), float("nan")),
    lambda value: value.index_fill(-1, torch.tensor([0]), float("inf")),
    lambda value: value * 1e-310,
    lambda value: value * 1e3,
    torch._neg_view,
]


def _in_inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value + 0


@statement(STEPS)
def step_on_unusual(world: World, r: random.Random) -> tuple[str, Given]:
    batch = r.choice([1, 2, 3, 7, 16, 33, batch_of(world), batch_of(world)])
    given = usual(world, r, batch)
    of = sizes(world)
    what = []
    if r.random() < 0.3:
        given["noise"] = None
        what.append("noise drawn")
    if r.random() < 0.3:
        given["real"] = torch.stack([given["real"] * (1 + i) for i in range(of["d_steps"])])
        what.append("real of d_steps batches")
    if given["labels"] is not None:
        if r.random() < 0.4:
            given["labels"] = torch.stack([given["labels"].roll(i) for i in range(of["d_steps"])])
            what.append("labels of d_steps batches")
        kind = r.choice(["int64", "int32", "uint8", "int16", "int8", "strided", "expanded"])
        if kind == "strided":
            given["labels"] = torch.stack([given["labels"], 1 + given["labels"]], -1)[..., 0]
        elif kind == "expanded":
            given["labels"] = given["labels"][..., :1].expand(given["labels"].shape)
        else:
            given["labels"] = given["labels"].to(getattr(torch, kind))
        what.append(f"labels {kind}")
    for name in ("real", "noise"):
        if given[name] is not None and r.random() < 0.5:
            i = r.randrange(len(LAYOUTS) + 1)
            given[name] = LAYOUTS[i](given[name]) if i < len(LAYOUTS) else _in_inference(given[name])
            what.append(f"{name} {'inference' if i == len(LAYOUTS) else LAYOUT_NAMES[i]}")
    return f"batch {batch}; {'; '.join(what) or 'as usual'}", given


LAYOUT_NAMES = [
    "strided",
    "transposed",
    "part of wider rows",
    "with a negative bit",
    "expanded",
    "requires grad",
    "of a graph",
    "a Parameter",
    "of a subclass",
    "flipped",
    "from sparse",
    "in shared memory",
    "from numpy",
    "with NaN",
    "with inf",
    "denormal",
    "large",
    "lazily negated",
]


@statement(STEPS)
def step_on_wrong(world: World, r: random.Random) -> tuple[str, Given]:
    """What must be refused, in the same words, nothing changed; or what torch has an answer of its own for."""
    given = usual(world, r, batch_of(world))
    of = sizes(world)
    real, noise, labels = given["real"], given["noise"], given["labels"]
    cases: list[tuple[str, str, Callable[[], Any]]] = [
        ("real", "a list", lambda: real.tolist()),
        ("real", "None", lambda: None),
        ("real", "numpy", lambda: real.numpy()),
        ("real", "of integers", lambda: real.long()),
        ("real", "complex", lambda: real.to(torch.complex128)),
        ("real", "of another dtype", lambda: real.float() if of["dtype"] == torch.float64 else real.double()),
        ("real", "empty", lambda: real[:0]),
        ("real", "of one dimension", lambda: real[0]),
        ("real", "(1, batch, data)", lambda: real[None]),
        ("real", "(d_steps + 1, batch, data)", lambda: real.expand(of["d_steps"] + 1, *real.shape)),
        ("real", "(0, batch, data)", lambda: real[None][:0]),
        ("real", "too narrow", lambda: real[:, :-1]),
        ("real", "too wide", lambda: torch.cat([real, real], 1)),
        ("real", "without columns", lambda: real[:, :0]),
        ("real", "bool", lambda: real > 0),
        ("noise", "a list", lambda: noise.tolist()),
        ("noise", "of another dtype", lambda: noise.float() if of["dtype"] == torch.float64 else noise.double()),
        ("noise", "of another batch", lambda: noise[:, :-1]),
        ("noise", "of one row more", lambda: torch.cat([noise, noise[:1]])),
        ("noise", "of one row", lambda: noise[:1]),
        ("noise", "of two dimensions", lambda: noise[0]),
        ("noise", "too narrow", lambda: noise[..., :-1]),
        ("noise", "too wide", lambda: torch.cat([noise, noise], -1)),
        ("noise", "of integers", lambda: noise.long()),
    ]
    batch = real.shape[0]
    if labels is None:
        cases.append(("labels", "where there are none", lambda: torch.zeros(batch, dtype=torch.long)))
    else:
        cases += [
            ("labels", "None", lambda: None),
            ("labels", "a list", lambda: labels.tolist()),
            ("labels", "of floats", lambda: labels.double()),
            ("labels", "bool", lambda: labels > 0),
            ("labels", "negative", lambda: labels - 5),
            ("labels", "too large", lambda: labels + of["classes"]),
            ("labels", "of another batch", lambda: labels[:-1]),
            ("labels", "one-hot", lambda: torch.nn.functional.one_hot(labels)),
            ("labels", "(1, batch)", lambda: labels[None]),
        ]
    name, what, make = r.choice(cases)
    try:
        given[name] = make()
    except Exception as error:  # e.g. numpy of bfloat16
        raise NotHere from error
    return f"{name} {what}", given


@statement(STEPS)
def step_without_memory(world: World, r: random.Random) -> tuple[str, Given]:
    """Tensors that hold no values, or hold them otherwise: torch's own answer is the answer."""
    given = usual(world, r, batch_of(world))
    name = pick(r, [key for key, value in given.items() if value is not None])
    value = given[name]
    makers: dict[str, Callable[[], Any]] = {
        "on meta": lambda: value.to("meta"),
        "sparse": value.to_sparse,
        "zero tensor": lambda: torch._efficientzerotensor(value.shape, dtype=value.dtype),
        "fake": lambda: FakeTensorMode().from_tensor(value),
        "nested": lambda: torch.nested.nested_tensor([value, value]),
        "masked": lambda: masked_tensor(value, torch.ones_like(value, dtype=torch.bool)),
        "functorch": lambda: _in_dim(value),
    }
    what = r.choice(list(makers))
    try:
        given[name] = makers[what]()
    except Exception as error:
        raise NotHere from error
    return f"{name} {what}", given


def _in_dim(value: Tensor) -> Tensor:
    """A wrapper that a transform of functorch has left behind."""
    held: list[Tensor] = []
    torch.func.vmap(lambda x: held.append(x) or x)(torch.stack([value, value]))  # type: ignore[func-returns-value]
    return held[0]


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast of another device": lambda: torch.autocast("cuda", torch.bfloat16, enabled=False),
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1.0, lambda t: t),
    "disable_saved_tensors_hooks": lambda: torch.autograd.graph.disable_saved_tensors_hooks("not here"),
    "allow_mutation_on_saved_tensors": torch.autograd.graph.allow_mutation_on_saved_tensors,
    "function mode": Passing,
    "dispatch mode": PassingDispatch,
    "device": lambda: torch.device("cpu"),
    "meta device": lambda: torch.device("meta"),
    "single-threaded autograd": lambda: torch.autograd.set_multithreading_enabled(False),
    "forward AD": torch.autograd.forward_ad.dual_level,
    "DisableTorchFunctionSubclass": torch._C.DisableTorchFunctionSubclass,
}


@statement(STEPS)
def step_in_mode(world: World, r: random.Random) -> tuple[str, Given, Callable[[], Any]]:
    name = r.choice(list(MODES))
    given = usual(world, r, batch_of(world))
    if r.random() < 0.3:
        given["noise"] = None
    return f"in {name}", given, MODES[name]


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call returns or raises in a thread of its own, where torch's modes are as at the start of a process."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@statement(STEPS)
def step_in_thread(world: World, r: random.Random) -> tuple[str, Given]:
    return "another thread", usual(world, r, batch_of(world))


@statement(STEPS)
def step_again(world: World, r: random.Random) -> tuple[str, Given]:
    """On tensors of the networks' own: views of a parameter, of the average, of a buffer."""
    given = usual(world, r, batch_of(world))
    held = [p for p in world.trainer.discriminator.parameters() if p.dim() == 2 and p.shape[1] == DATA and len(p) > 1]
    given["real"] = pick(r, held).data if r.random() < 0.5 else pick(r, held).detach()
    rows = len(given["real"])
    given["noise"] = given["noise"][:, :1].expand(-1, rows, -1)
    if given["labels"] is not None:
        given["labels"] = given["labels"][:1].expand(rows)
    return "real is D's weight", given
