"""The cases of verification that are whole steps of training: the engine against the plain loop in float64."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from fastgan import gate, reference
from fastgan.nn import SegmentedActivation
from fastgan.step import TrainStep, average_of
from fastgan.verification_bounds import as_exact, grid, layer_parameters
from fastgan.verification_cases import Case, generator, on_path, paths

_STEPS = 3  # the second and the third may run otherwise than the first: what it has set up, replayed
_LATENT, _DATA = 5, 9
# Of the data, where the generator ends in segments; the classes are the levels of the last one.
_WIDTHS, _SEGMENTS = (2, 3, 1, 1, 2), ("softmax", "gumbel_softmax", "tanh", "identity", "gumbel_softmax")
_CONDITION_WEIGHT = 0.5


class _Setting(NamedTuple):
    batch: int = 33
    d_steps: int = 1
    reuse_fake: bool = False
    loss: str = "non_saturating"
    classes: int = 2
    drop: float = 0.0
    sigmoid: bool = False
    penalty: float = 0.0  # of R1; R2 has half of it
    is_linear: bool = False  # D has no activation: penalties have no second derivatives
    pac: int = 1
    clip: float | None = None
    segments: bool = False

    def __str__(self) -> str:
        words = [f"{self.d_steps} updates of D" if self.d_steps > 1 else "", "fakes reused" if self.reuse_fake else ""]
        words += [self.loss if self.loss != "non_saturating" else "", "Sigmoid folded" if self.sigmoid else ""]
        words += ["labels" if self.classes else "", "dropout" if self.drop else ""]
        words += ["R1, R2" if self.penalty else "", "a linear D" if self.is_linear else ""]
        words += [f"{self.pac} samples at once" if self.pac > 1 else "", "clipped" if self.clip else ""]
        words += ["segments, one asked for" if self.segments else ""]
        return ", ".join(filter(None, ["batch norm, Adam, AdamW, average", *words]))


def _draws(setting: _Setting) -> bool:
    return setting.drop > 0 or setting.segments


class _Masks(nn.Module):
    """Dropout whose masks are drawn as torch's are, and kept for another run of the same."""

    def __init__(self, p: float, masks: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.p, self.masks, self.dtype = p, masks, dtype
        self.next: int | None = None  # of the masks, to be used again

    def forward(self, value: Tensor) -> Tensor:
        if self.next is None:
            drawn = torch.empty(value.shape, dtype=self.dtype, device=value.device).bernoulli_(1 - self.p)
            self.masks.append(drawn)
        else:
            drawn = self.masks[self.next]
            self.next += 1
        return value * drawn.to(value.device, value.dtype) / (1 - self.p)


class _Draws(nn.Module):
    """Segments whose Gumbel draws are kept, as _Masks does."""

    def __init__(self, draws: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.draws, self.dtype = draws, dtype
        self.next: int | None = None
        self.given = torch.empty(0)

    def forward(self, value: Tensor) -> Tensor:
        self.given = value = value.to(self.dtype)
        if self.next is None:
            columns = sum(w for w, kind in zip(_WIDTHS, _SEGMENTS, strict=True) if kind == "gumbel_softmax")
            drawn = reference.gumbel_noise(value, columns)
            self.draws.append(drawn)
        else:
            drawn = self.draws[self.next].to(value.device)
            self.next += 1
        return reference.segmented_activation(value, _WIDTHS, _SEGMENTS, 0.2, drawn)


class _Training:
    """Two networks, their optimizers, an average and the data of a few steps, from fixed numbers."""

    def __init__(self, setting: _Setting, device: torch.device, dtype: torch.dtype) -> None:
        draw, classes = generator(), setting.classes
        last: nn.Module = SegmentedActivation(_WIDTHS, _SEGMENTS) if setting.segments else nn.Tanh()
        g = _network(draw, (_LATENT + classes, 17, 33, _DATA), [nn.Tanh(), nn.Sigmoid(), last])
        g.insert(1, nn.BatchNorm1d(17, device="cpu", dtype=torch.float64))
        g[0].register_parameter("bias", None)  # it would cancel
        between: list[nn.Module] = [nn.Identity(), nn.Identity()] if setting.is_linear else [nn.Sigmoid(), nn.Tanh()]
        d = _network(draw, (setting.pac * (_DATA + classes), 33, 17, 1), between)
        if setting.drop:
            d.insert(2, nn.Dropout(setting.drop))
        if setting.sigmoid:
            d.append(nn.Sigmoid())
        self.g, self.d = g.to(device, dtype), d.to(device, dtype)
        self.ema = average_of(self.g)
        # An epsilon of the gradients' size: with the usual one, what rounding leaves of a zero is a full step.
        self.g_optimizer = Adam(self.g.parameters(), lr=0.05, betas=(0.5, 0.9), eps=0.01)
        self.d_optimizer = AdamW(self.d.parameters(), lr=0.05, betas=(0.5, 0.9), eps=0.01, weight_decay=0.1)
        self.begin = copy.deepcopy(self._tensors())
        rows = setting.d_steps + (0 if setting.reuse_fake else 1)
        self.data: list[tuple[Tensor, Tensor | None, Tensor]] = []
        for _ in range(_STEPS):
            labels = torch.randint(max(classes, 1), (setting.batch,), generator=draw, device="cpu")
            real, noise = grid(draw, (setting.batch, _DATA), 32), 2 * grid(draw, (rows, setting.batch, _LATENT), 32)
            self.data.append((real.to(device, dtype), labels.to(device) if classes else None, noise.to(device, dtype)))

    def _tensors(self) -> list[Tensor]:
        return [t.detach() for module in (self.g, self.d, self.ema) for t in module.state_dict().values()]

    def results(self, statistics: list[Tensor]) -> list[Tensor]:
        """The statistics, what has changed, and the optimizers' state."""
        changes = [now.double() - then.double() for now, then in zip(self._tensors(), self.begin, strict=True)]
        states = [optimizer.state[p] for optimizer in (self.g_optimizer, self.d_optimizer) for p in optimizer.state]
        return as_exact([*statistics, *changes, *(t for state in states for t in state.values())])


def _network(draw: torch.Generator, widths: tuple[int, ...], activations: list[nn.Module]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        # Without its initialisation, which would draw from the user's generator.
        linear = nn.utils.skip_init(nn.Linear, width_in, width_out, device="cpu", dtype=torch.float64)
        with torch.no_grad():
            weight, bias = layer_parameters(draw, width_in, width_out)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        modules += [linear, *activations[i : i + 1]]
    return nn.Sequential(*modules)


def _plain(
    setting: _Setting, masks: list[Tensor], device: torch.device, dtype: torch.dtype, bf16: bool
) -> list[Tensor]:
    """The loop that TrainStep stands for, in torch alone (Goodfellow et al. 2014, algorithm 1)."""
    training = _Training(setting, device, dtype)
    g, d = training.g, training.d
    for i, module in enumerate(d):
        if isinstance(module, nn.Dropout):
            d[i] = dropout = _Masks(module.p, masks, dtype)
            dropout.next = 0 if masks else None
    segments = _Draws(masks, dtype)
    if setting.segments:
        g[-1] = segments
        segments.next = 0 if masks else None
    statistics: list[Tensor] = []

    def packed(rows: Tensor, label: list[Tensor]) -> Tensor:
        return torch.cat([rows, *label], 1).view(setting.batch // setting.pac, -1)

    def penalty(output: Tensor, at: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(output.sum(), at, create_graph=True)
        return setting.penalty / 2 * gradient.square().sum() * setting.pac / setting.batch

    def loss(output: Tensor, target: float) -> Tensor:
        if setting.sigmoid:
            with torch.autocast(device.type, enabled=False):
                return F.binary_cross_entropy(output.to(dtype), torch.full_like(output, target, dtype=dtype))
        return F.binary_cross_entropy_with_logits(output, torch.full_like(output, target))

    def clip(network: nn.Module) -> None:
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), setting.clip)

    def score(output: Tensor) -> Tensor:
        return (output if setting.sigmoid else output.sigmoid()).mean()

    with _drawing_from(7, device) if _draws(setting) and not masks else contextlib.nullcontext():
        for real, labels, noise in training.data:
            label = [F.one_hot(labels, setting.classes).to(dtype)] if labels is not None else []
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                for i in range(setting.d_steps):
                    fake = g(torch.cat([noise[i], *label], 1))
                    real, at = (rows.detach().requires_grad_(setting.penalty > 0) for rows in (real, fake))
                    of_real, of_fake = d(packed(real, label)), d(packed(at, label))
                    d_loss = whole = loss(of_real, 0.9) + loss(of_fake, 0.0)
                    if setting.penalty:
                        whole = d_loss + penalty(of_real, real) + penalty(of_fake, at) / 2
                    training.d_optimizer.zero_grad()
                    whole.backward(inputs=list(d.parameters()))
                    clip(d)
                    training.d_optimizer.step()
                if not setting.reuse_fake:
                    fake = g(torch.cat([noise[-1], *label], 1))
                output = d(packed(fake, label))
                g_loss = total = loss(output, 1.0) if setting.loss == "non_saturating" else -loss(output, 0.0)
                if setting.segments and labels is not None:
                    total = g_loss + _CONDITION_WEIGHT * F.cross_entropy(segments.given[:, -setting.classes :], labels)
                training.g_optimizer.zero_grad()
                total.backward(inputs=list(g.parameters()))
                clip(g)
                training.g_optimizer.step()
            with torch.no_grad():
                for average, current in zip(training.ema.parameters(), g.parameters(), strict=True):
                    average.lerp_(current, 0.25)
                for kept, buffer in zip(training.ema.buffers(), g.buffers(), strict=True):
                    kept.copy_(buffer)
            statistics += [d_loss, g_loss, score(of_real), score(of_fake)]
    return training.results(statistics)


def _engine(setting: _Setting, path: str, device: torch.device, dtype: torch.dtype, bf16: bool) -> list[list[Tensor]]:
    training = _Training(setting, device, dtype)
    step = TrainStep(
        training.g,
        training.d,
        training.g_optimizer,
        training.d_optimizer,
        loss=setting.loss,
        real_target=0.9,
        d_steps=setting.d_steps,
        reuse_fake=setting.reuse_fake,
        r1_gamma=setting.penalty,
        r2_gamma=setting.penalty / 2,
        r1_every=1,
        pac=setting.pac,
        clip_grad_norm=setting.clip,
        num_classes=setting.classes,
        ema=training.ema,
        ema_decay=0.75,
        precision="bf16" if bf16 else "fp32",
        condition_weight=_CONDITION_WEIGHT if setting.segments else 0.0,
    )
    step._take_the_default()
    statistics: list[Tensor] = []
    with on_path(path), _drawing_from(7, device) if _draws(setting) else contextlib.nullcontext():
        for inputs in training.data:
            found = step._planned_step(*inputs)
            if found is None:
                raise gate.Inconclusive(
                    step.plan.partition("not one call, because ")[2] or "the engine refused its input"
                )
            statistics += found
    return [training.results(statistics)]


@contextlib.contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generator of a device, which draws the masks, begins at a seed and goes on afterwards where it was.

    Another thread that draws meanwhile gets numbers of that seed. Hence steps that draw nothing do without this.
    """
    drawn: Any = torch.default_generator
    if device.type == "cuda":
        drawn = torch.cuda.default_generators[torch.cuda.current_device()]
    before = drawn.get_state()
    drawn.manual_seed(seed)
    try:
        yield
    finally:
        drawn.set_state(before)


def _cases(settings: list[_Setting], device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    bf16 = dtype is torch.bfloat16
    of_parameters = torch.float32 if bf16 else dtype
    for setting in settings:
        masks: list[Tensor] = []
        theirs = functools.cache(functools.partial(_plain, setting, masks, device, of_parameters, bf16))

        @functools.cache
        def exactly(setting: _Setting = setting, masks: list[Tensor] = masks, theirs: Any = theirs) -> list[Tensor]:
            theirs()  # which draws the masks
            return _plain(setting, masks, torch.device("cpu"), torch.float64, False)

        for path in paths(device):
            yield Case(
                f"step with {setting}: {path}",
                f"{setting.batch}x{_LATENT + setting.classes}-17-33-{_DATA} and {_DATA + setting.classes}-33-17-1",
                2 * setting.batch,
                exactly,
                theirs,
                functools.partial(_engine, setting, path, device, of_parameters, bf16),
            )


def steps(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """Whole steps that draw nothing."""
    settings = [_Setting()]
    if dtype is not torch.bfloat16:
        settings.append(_Setting(penalty=2.0, clip=0.1))
    if not is_quick:
        if dtype is not torch.bfloat16:
            settings.append(_Setting(penalty=2.0, is_linear=True, pac=3, d_steps=2))
        settings += [
            _Setting(batch=7, reuse_fake=True, classes=0, sigmoid=True),
            _Setting(batch=129, d_steps=2, loss="minimax", classes=3),
        ]
    yield from _cases(settings, device, dtype)


def dropout_steps(device: torch.device, dtype: torch.dtype, is_quick: bool) -> Iterator[Case]:
    """Whole steps with dropout, and with segments."""
    settings = [_Setting(drop=0.25), _Setting(segments=True, pac=3)]
    if not is_quick:
        settings.append(_Setting(batch=7, drop=0.5, reuse_fake=True, classes=0))
    yield from _cases(settings, device, dtype)
