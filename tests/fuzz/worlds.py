"""Three trainers of the same networks: the engine, the composed step and the loop in plain PyTorch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from plain_step import Plain
from torch import Tensor, nn

import fastgan
from fastgan.nn import unfuse
from fastgan.step import average_of

from .networks import build, optimizer
from .statements import NotHere

RELATIVE, ABSOLUTE = 1e-9, 1e-12  # of values in float64, whose rounding is 1e-16 a sum


class Loop(Plain):
    """The loop in plain PyTorch, which knows where BCELoss has lost the precision that the folded loss keeps."""

    lost = False

    def criterion(self, output: Tensor, target: float) -> Tensor:
        if self.is_probability(output) and torch.minimum(output, 1 - output).min() < 1e-5:
            self.lost = True
        return super().criterion(output, target)


class World:
    """One of the three, and what the statements keep beside it."""

    def __init__(self, name: str, trainer: Any) -> None:
        self.name, self.trainer = name, trainer
        self.kept: dict[str, Any] = {}  # handles, schedulers, saved states
        self.is_plain = isinstance(trainer, Plain)

    @property
    def networks(self) -> list[tuple[str, nn.Module]]:
        return [("G", self.trainer.generator), ("D", self.trainer.discriminator)]

    @property
    def optimizers(self) -> list[tuple[str, Any]]:
        return [("g_optimizer", self.trainer.g_optimizer), ("d_optimizer", self.trainer.d_optimizer)]

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Both networks' modules, by path, the networks themselves among them."""
        return [(f"{name}.{path}", m) for name, net in self.networks for path, m in net.named_modules()]

    def slots(self) -> list[tuple[str, nn.Module, str]]:
        """(path, module, name) of each parameter of both networks, shared ones as often as they are held."""
        return [
            (f"{path}.{name}", module, name)
            for path, module in self.modules()
            for name, value in module._parameters.items()
            if value is not None
        ]

    def is_native(self) -> bool:
        return getattr(self.trainer, "_plan", None) is not None


def worlds(description: dict[str, Any]) -> tuple[list[World], dict[str, Any]]:
    """The three, over copies of the same networks."""
    generator, discriminator, full = build(description)
    made = []
    for name in ("engine", "composed", "plain"):
        g, d = copy.deepcopy(generator), copy.deepcopy(discriminator)
        options = dict(full["options"])
        if options.pop("ema", False):
            options["ema"] = average_of(g)
        given = (g, d, optimizer(g.parameters(), full["g_optimizer"]), optimizer(d.parameters(), full["d_optimizer"]))
        if name == "plain":
            unfuse(g)
            unfuse(d)
            made.append(World(name, Loop(*given, **options)))
        else:
            made.append(World(name, fastgan.TrainStep(*given, engine=name == "engine", **options)))
    return made, full


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """("returned", value), or ("raised", "type: message") without addresses and counts of versions."""
    try:
        return "returned", call()
    except NotHere:
        raise
    except Exception as error:
        return "raised", f"{type(error).__name__}: {re.sub(r'0x[0-9a-f]+|[0-9]{9,}|version [0-9]+', '#', str(error))}"


def picture(world: World, in_order: bool = True) -> Iterator[tuple[str, Any]]:
    """Everything that a step may change, by name, in an order that is part of the result.

    That of the optimizers' states is only where asked for.
    """
    trainer = world.trainer
    names: dict[int, str] = {}
    for net_name, net in (*world.networks, ("EMA", trainer.ema)):
        if net is None:
            continue
        for path, module in net.named_modules(remove_duplicate=False):
            yield f"{net_name}.{path}.training", module.training
            for kind, held in (("parameter", module._parameters), ("buffer", module._buffers)):
                yield f"{net_name}.{path} {kind}s", list(held)
                for name, value in held.items():
                    yield f"{net_name}.{path}.{name}", value
                    if value is not None and kind == "parameter":
                        names.setdefault(id(value), f"{net_name}.{path}.{name}")
    for optimizer_name, of in world.optimizers:
        held_parameters: list[Tensor] = []
        for i, group in enumerate(of.param_groups):
            for key, value in group.items():
                if key != "params":
                    yield f"{optimizer_name} group {i} {key}", value
                    continue
                for k, parameter in enumerate(value):
                    # a parameter that no network has any more
                    names.setdefault(id(parameter), f"{optimizer_name}.param_groups[{i}][{k}]")
                    held_parameters.append(parameter)
                    yield f"{names[id(parameter)]} held by {optimizer_name} group {i}", parameter
        states = list(of.state.items())
        if not in_order:
            states.sort(key=lambda item: names.get(id(item[0]), "unknown"))
        yield f"{optimizer_name} state", [names.get(id(p), "unknown") for p, _ in states]
        for parameter, state in states:
            name = names.get(id(parameter), "unknown")
            yield f"{optimizer_name} state of {name}", list(state) if isinstance(state, dict) else type(state).__name__
            for key, value in state.items() if isinstance(state, dict) else ():
                if key == "max_exp_avg_sq" and any(group.get("fused") for group in of.param_groups):
                    value = _with_its_nan(value, state.get("exp_avg_sq"))
                yield f"{optimizer_name} state of {name}: {key}", value
    for key, value in sorted(world.kept.get("counts", {}).items()):
        yield f"calls of {key}", value


def _with_its_nan(largest: Any, squares: Any) -> Any:
    """The largest squares as torch's maximum leaves them: its fused kernel on the CPU takes C++'s std::max of the
    elements behind the last whole vector, which keeps the number where the square is NaN."""
    if not isinstance(largest, Tensor) or not isinstance(squares, Tensor) or largest.shape != squares.shape:
        return largest
    return largest.masked_fill(squares.isnan(), float("nan")) if squares.isnan().any() else largest


def gradients(world: World) -> Iterator[tuple[str, bool, Tensor | None]]:
    """Of each parameter of the networks: its name, whether its optimizer holds it, its gradient."""
    held = {id(p) for _, of in world.optimizers for g in of.param_groups for p in g["params"]}
    for path, module, name in world.slots():
        parameter = module._parameters[name]
        yield path, id(parameter) in held, parameter.grad


def rounding(world: World) -> float:
    """The largest rounding in a step: of the parameters' dtype, or of an optimizer's number that is a tensor."""
    tensors = [p for _, net in world.networks for p in net.parameters()]
    numbers = [n for _, of in world.optimizers for g in of.param_groups for k, n in g.items() if k != "params"]
    tensors += [torch.as_tensor(n) for n in _flat(numbers) if isinstance(n, (Tensor, numpy.generic, numpy.ndarray))]
    dtypes = {t.dtype if t.dtype.is_floating_point else torch.get_default_dtype() for t in tensors}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _flat(values: list[Any]) -> list[Any]:
    return [inner for value in values for inner in (_flat(value) if isinstance(value, (list, tuple)) else [value])]


def difference(ours: Any, theirs: Any, relative: float = RELATIVE) -> str | None:
    """How two values differ, in a few words; None where they do not. With `relative` 0, at all."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return _tensor_difference(ours, theirs, relative)
    if type(ours) is not type(theirs):
        return f"is {_short(ours)} and should be {_short(theirs)}"
    if isinstance(ours, (list, tuple)):
        if len(ours) != len(theirs):
            return f"is {_short(ours)} and should be {_short(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if found := difference(a, b, relative):
                return f"[{i}] {found}"
        return None
    if isinstance(ours, float):
        same = ours == theirs or (ours != ours and theirs != theirs) or abs(ours - theirs) <= 1e-12 * abs(theirs)
    else:
        try:
            same = bool(ours == theirs)
        except Exception:
            same = True
    return None if same else f"is {_short(ours)} and should be {_short(theirs)}"


def _short(value: Any) -> str:
    text = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) < 120 else text[:117] + "..."


def _tensor_difference(ours: Tensor, theirs: Tensor, relative: float) -> str | None:
    for what in ("dtype", "shape", "device", "requires_grad", "layout", "is_leaf"):
        if getattr(ours, what) != getattr(theirs, what):
            return f"has {what} {getattr(ours, what)} and should have {getattr(theirs, what)}"
    if type(ours) is not type(theirs):
        return f"is a {type(ours).__name__} and should be a {type(theirs).__name__}"
    a, b = ours.detach(), theirs.detach()
    if a.device.type == "meta" or a.layout is not torch.strided:
        return None
    if ours.stride() != theirs.stride():
        return f"has strides {ours.stride()} and should have {theirs.stride()}"
    if torch.equal(a, b) or a.numel() == 0:
        return None
    if a.dtype != torch.float64 and not a.dtype.is_floating_point:
        return f"is {_values(a)} and should be {_values(b)}"
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return f"is {_values(a)} and should be {_values(b)}"
    finite = b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return f"is {_values(a)} and should be {_values(b)}"
    if not finite.any():
        return None
    a, b = a[finite], b[finite]
    gap, size = (a - b).abs().max().item(), b.abs().max().item()
    allowed = relative * size + ABSOLUTE if relative else 0.0
    return None if gap <= allowed else f"differs by {gap:.3g} where the largest is {size:.3g}"


def _values(value: Tensor) -> str:
    return str(value.flatten()[:8].tolist())
