"""Surgery on what trains: optimizers, their state, hooks, the average and the step's options; see surgery.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from surgery import HIDDEN, SURGERIES, Surgery, surgery

__all__ = ["SURGERIES"]


# Optimizers


@surgery
def learning_rate(step: Any) -> None:
    step.g_optimizer.param_groups[0]["lr"] = 1e-3


@surgery
def group_is_replaced(step: Any) -> None:
    groups = step.g_optimizer.param_groups
    groups[0] = {**groups[0], "lr": 0.0}


@surgery
def groups_are_replaced(step: Any) -> None:
    step.g_optimizer.param_groups = [{**group, "lr": 1e-3} for group in step.g_optimizer.param_groups]


@surgery
def amsgrad_later(step: Any) -> None:
    step.d_optimizer.param_groups[0]["amsgrad"] = True


@surgery
def maximize_later(step: Any) -> None:
    step.d_optimizer.param_groups[0]["maximize"] = True


@surgery
def decoupled_later(step: Any) -> None:
    step.d_optimizer.param_groups[0].update(weight_decay=0.1, decoupled_weight_decay=True)


@surgery
def group_lacks_an_option(step: Any) -> None:
    del step.d_optimizer.param_groups[0]["eps"]


@surgery
def betas_are_one(step: Any) -> None:
    step.d_optimizer.param_groups[0]["betas"] = (0.5,)


@surgery
def capturable_on_a_cpu(step: Any) -> None:
    step.d_optimizer.param_groups[0]["capturable"] = True


@surgery
def group_loses_a_parameter(step: Any) -> None:
    del step.d_optimizer.param_groups[0]["params"][0]


@surgery
def group_gets_a_parameter_of_the_other_network(step: Any) -> None:
    step.d_optimizer.add_param_group({"params": [step.generator[0].weight], "lr": 1e-3})


@surgery
def step_of_its_own(step: Any) -> None:
    step.g_optimizer.step = lambda closure=None: None


@surgery
def zero_grad_of_its_own(step: Any) -> None:
    def shrink(set_to_none: bool = True) -> None:
        with torch.no_grad():
            for group in step.g_optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
                    parameter.mul_(0.5)

    step.g_optimizer.zero_grad = shrink


@surgery
def optimizer_has_another_class(step: Any) -> None:
    class Half(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            return None

    step.g_optimizer.__class__ = Half


@surgery
def optimizer_is_replaced(step: Any) -> None:
    step.g_optimizer = torch.optim.SGD(step.generator.parameters(), lr=0.1)


@surgery
def scheduler(step: Any) -> None:
    torch.optim.lr_scheduler.LambdaLR(step.g_optimizer, lambda epoch: 0.5)


@surgery
def state_is_cleared(step: Any) -> None:
    step.d_optimizer.state.clear()


@surgery
def state_is_loaded(step: Any) -> None:
    step.d_optimizer.load_state_dict(copy.deepcopy(step.d_optimizer.state_dict()))


@surgery
def state_entries_are_replaced(step: Any) -> None:
    for state in step.d_optimizer.state.values():
        state.update({name: value * 2 for name, value in state.items()})


@surgery
def state_is_moved(step: Any) -> None:
    for state in step.d_optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone()


@surgery
def state_is_transposed(step: Any) -> None:
    state = step.d_optimizer.state.get(step.discriminator[0].weight, {})
    state.update({n: v.t().contiguous().t() for n, v in state.items() if n != "step"})


@surgery
def state_lacks_an_entry(step: Any) -> None:
    for state in step.d_optimizer.state.values():
        state.pop("exp_avg_sq")


@surgery
def state_is_shared(step: Any) -> None:
    first, *others = step.d_optimizer.state.values() or [{}]
    for state in others:
        state["step"] = first["step"]


def _count(make: Callable[[], Any]) -> Surgery:
    def set_(step: Any) -> None:
        for optimizer in (step.g_optimizer, step.d_optimizer):
            for state in optimizer.state.values():
                state["step"] = make()

    return set_


for _dtype in (torch.int64, torch.int32, torch.bfloat16, torch.float16, torch.float32, torch.float64):
    SURGERIES[f"count_of_{str(_dtype).removeprefix('torch.')}"] = _count(lambda d=_dtype: torch.tensor(100, dtype=d))
SURGERIES["count_of_shape_1"] = _count(lambda: torch.tensor([100.0]))
SURGERIES["count_is_a_number"] = _count(lambda: 100.0)


# Hooks


def _noted(*_: Any) -> None:
    return None


@surgery
def hook_on_a_parameter(step: Any) -> None:
    step.discriminator[0].weight.register_hook(lambda gradient: gradient * 2)


@surgery
def hook_after_accumulation(step: Any) -> None:
    step.discriminator[0].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2) and None)


@surgery
def hook_on_the_accumulating_node(step: Any) -> None:
    weight = step.discriminator[0].weight
    node = weight.expand_as(weight).grad_fn.next_functions[0][0]
    node.register_prehook(lambda gradients: (gradients[0] * 2,))
    step.kept = node


@surgery
def hook_that_is_taken_off(step: Any) -> None:
    step.discriminator[0].weight.register_hook(lambda gradient: gradient * 2).remove()


@surgery
def forward_hook(step: Any) -> None:
    step.discriminator[0].register_forward_hook(lambda module, given, output: output * 2)


@surgery
def forward_pre_hook_on_a_network(step: Any) -> None:
    step.discriminator.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


@surgery
def backward_hook(step: Any) -> None:
    step.discriminator[0].register_full_backward_hook(lambda module, given, output: (given[0] * 2,))


@surgery
def step_hook(step: Any) -> None:
    step.d_optimizer.register_step_pre_hook(lambda optimizer, given, named: step.discriminator[0].weight.grad.mul_(2))


# The average


@surgery
def average_is_loaded(step: Any) -> None:
    step.ema.load_state_dict({k: torch.zeros_like(v) for k, v in step.ema.state_dict().items()}, assign=True)


@surgery
def buffer_of_the_average_is_replaced(step: Any) -> None:
    step.ema[1].running_mean = torch.zeros(HIDDEN, dtype=torch.float64)


@surgery
def module_of_the_average_is_replaced(step: Any) -> None:
    step.ema[0] = copy.deepcopy(step.generator[0])


@surgery
def average_is_replaced(step: Any) -> None:
    step.ema = copy.deepcopy(step.generator)


@surgery
def average_has_a_walk_of_its_own(step: Any) -> None:
    names = list(step.ema._parameters), step.ema
    assert not names[0]
    step.ema.parameters = lambda recurse=True: (p for m in step.ema for p in m.parameters())


@surgery
def average_is_transposed(step: Any) -> None:
    step.ema[0].weight.data = step.ema[0].weight.data.t().contiguous().t()


# Options


@surgery
def loss_is_another(step: Any) -> None:
    step.loss = "minimax"


@surgery
def target_is_another(step: Any) -> None:
    step.real_target = 0.9


@surgery
def decay_is_another(step: Any) -> None:
    step.ema_decay = 0.5


@surgery
def global_dtype(step: Any) -> None:
    step.g_optimizer.state.clear()
    torch.set_default_dtype(torch.float64)
