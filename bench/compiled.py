"""The training step through torch.compile.

`whole` is the fastest form that was found: both halves, their gradients and Adam in one graph, on plain tensors (on one
core, GFLOP/s of ring, digits and mnist: 73, 83, 100; eager 40, 68, 97). `halves` is what a user with modules and a
torch.optim optimizer compiles: the generator, and both losses; its backward passes and optimizer stay separate graphs
and calls (19, 40, 70). Compiling the optimizer's step fails in PyTorch 2.13 for tensor step counts on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vjp

from .configurations import Configuration
from .logits_loss import torch_discriminator_loss, torch_generator_loss
from .training import BETA1, BETA2, EPS, LEARNING_RATE, Training, adam, plain_networks, restore


def whole(configuration: Configuration, mode: str | None = None) -> Training:
    """The whole step as one compiled graph, Adam written out."""
    generator, discriminator = plain_networks(configuration)
    g_params, d_params = ({k: p.detach() for k, p in m.named_parameters()} for m in (generator, discriminator))
    g_state, d_state = state(g_params), state(d_params)
    latent = generator[0].in_features

    def step(real: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        if noise is None:
            noise = torch.randn(len(real), latent, device=real.device)
        fake, vjp_of_g = vjp(lambda p: functional_call(generator, p, (noise,)), g_params)

        def d_loss_of(parameters: dict[str, Tensor]) -> Tensor:
            logits = functional_call(discriminator, parameters, (torch.cat([real, fake]),))
            return torch_discriminator_loss(*logits.split(len(real)))

        d_grads, d_loss = grad_and_value(d_loss_of)(d_params)
        update(d_params, d_grads, d_state)
        g_loss, vjp_of_fake = vjp(lambda x: torch_generator_loss(functional_call(discriminator, d_params, (x,))), fake)
        (g_grads,) = vjp_of_g(*vjp_of_fake(torch.ones_like(g_loss)))
        update(g_params, g_grads, g_state)
        return d_loss, g_loss

    parameters = [*g_params.values(), *d_params.values()]
    held = [*tensors(g_state), *tensors(d_state)]
    for tensor in (*parameters, *held):
        torch._dynamo.mark_static_address(tensor)  # lets reduce-overhead capture the updates in place
    start = [p.clone() for p in parameters]
    run = torch.compile(own_code(step, f"{configuration.name} {mode}"), mode=mode, fullgraph=True)
    return Training(run, lambda: parameters, reset=lambda: restore(parameters, start, held))


def reduce_overhead(configuration: Configuration) -> Training:
    """`whole` with mode="reduce-overhead", which replays CUDA graphs of its own."""
    training = whole(configuration, "reduce-overhead")

    def step(real: Tensor, noise: Tensor | None) -> Sequence[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # the losses of the step before may be overwritten
        return training.step(real, noise)

    return Training(step, training.parameters, reset=training.reset)


def halves(configuration: Configuration, mode: str | None = None) -> Training:
    """Three compiled functions (G, D's loss, G's loss) under autograd, and torch.optim's fused Adam."""
    generator, discriminator = plain_networks(configuration)
    g_params, d_params = list(generator.parameters()), list(discriminator.parameters())
    g_optimizer, d_optimizer = (adam(fused=True)(p) for p in (g_params, d_params))

    def d_criterion(real: Tensor, fake: Tensor) -> Tensor:
        return torch_discriminator_loss(*discriminator(torch.cat([real, fake])).split(len(real)))

    def g_criterion(fake: Tensor) -> Tensor:
        # Detached, so that the compiled backward pass holds no weight gradients of D.
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        return torch_generator_loss(functional_call(discriminator, frozen, (fake,)))

    def generate(noise: Tensor) -> Tensor:
        return generator(noise)

    generate, d_criterion, g_criterion = (
        torch.compile(own_code(f, f"{configuration.name} {mode}"), mode=mode, fullgraph=True)
        for f in (generate, d_criterion, g_criterion)
    )

    def step(real: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        fake = generate(noise)
        d_loss = d_criterion(real, fake.detach())
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = g_criterion(fake)
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        g_optimizer.step()
        return d_loss.detach(), g_loss.detach()

    return Training(step, lambda: g_params + d_params)


def own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A code object for this function alone: torch.compile keeps what it compiled, and its limit, by code object."""
    function.__code__ = function.__code__.replace(co_name=f"{function.__name__} {name}")
    return function


def state(parameters: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Adam's for these parameters at the start: both moments and the count of steps."""
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(p) for p in parameters.values()] for _ in range(2))
    return exp_avgs, exp_avg_sqs, torch.zeros(())


def tensors(state: tuple[list[Tensor], list[Tensor], Tensor]) -> list[Tensor]:
    """All of a state."""
    return [*state[0], *state[1], state[2]]


def update(
    parameters: dict[str, Tensor], gradients: dict[str, Tensor], state: tuple[list[Tensor], list[Tensor], Tensor]
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1), in place; Inductor makes one loop a tensor of it."""
    exp_avgs, exp_avg_sqs, count = state
    count.add_(1)
    step_size = LEARNING_RATE / (1 - BETA1**count)
    correction = (1 - BETA2**count).sqrt()
    for name, m, v in zip(parameters, exp_avgs, exp_avg_sqs, strict=True):
        gradient = gradients[name]
        m.lerp_(gradient, 1 - BETA1)
        v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        parameters[name].sub_(step_size * m / (v.sqrt() / correction + EPS))
