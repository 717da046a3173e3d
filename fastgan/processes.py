"""Steps that several processes take together over torch.distributed: what they agree on, and what they exchange.

N processes ("ranks") with a batch of B each follow one process with a batch of N B. Losses and penalties are means over
samples, so their gradients are the means of the ranks' gradients. Two kinds of exchange make that so: small ones
between the processors, by which the ranks agree that all take the step, and how; and the sums of gradients and
statistics, where the parameters are.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgan import shared_memory

__all__ = ["Processes", "ProcessesError"]

Result = TypeVar("Result")

_LEAST = -(2**62)  # of what a rank that was refused says nothing of
# Between the seeds of two ranks: an odd number without a pattern (Steele, Lea and Flood 2014).
_SPREAD = 0x9E3779B97F4A7C15


class ProcessesError(RuntimeError):
    """A step of several processes could not be taken, because of another rank."""


class Processes:
    """The processes that take the steps of one training together.

    Attributes:
        group: of torch.distributed.
        size: how many there are.
        rank: which one this is, from 0.
        synchronises: whether BatchNorm's statistics are those of all processes' samples.
        asks_to_stop: set by a rank that wants all to stop; the next step tells the others.
        was_asked_to_stop: whether any rank had asked when the last step began. All ranks have the same.
        shared: the memory in which the processes of one computer exchange; None where they are on several, or cannot.
        shares_memory: whether they do so wherever they can; of the class, for comparisons.
        part_bytes: where they do not, gradients are sent in parts of so many bytes or more, each as soon as it is
            there; of the class.
    """

    shares_memory = True
    # What a fast network moves in the time that it takes to answer at all.
    part_bytes = 2**18

    def __init__(self, group: Any, sync_batch_norm: bool, device: torch.device) -> None:
        """Join the group. Every one of its processes must do so, at the same place of its program.

        Args:
            group: a torch.distributed.ProcessGroup.
            sync_batch_norm: see `synchronises`.
            device: where the parameters are.

        Raises:
            TypeError, ValueError, RuntimeError: it is no group that can exchange tensors of this device.
        """
        if not dist.is_available():
            raise RuntimeError("process_group must be None: this build of PyTorch has no torch.distributed")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, not {type(group).__name__}")
        if not isinstance(sync_batch_norm, bool):
            raise TypeError(f"sync_batch_norm must be True or False, not {sync_batch_norm!r}")
        self.group, self.synchronises = group, sync_batch_norm
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("process_group must be one that this process belongs to")
        _backend_of(group, device)
        self.asks_to_stop = self.was_asked_to_stop = False
        self.shared: Any = None
        self._device = device
        # What the ranks agree on, they exchange between processors: nothing waits for a GPU then.
        self._control = group
        with contextlib.suppress(RuntimeError, ValueError):
            if _backend_of(group, torch.device("cpu")) == "gloo":
                return
        ranks = dist.get_process_group_ranks(group)
        self._control = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)

    def agree(self, problem: Exception | None, facts: Mapping[str, int], can_plan: bool) -> bool:
        """Agree that all ranks take the next step, before anything is changed on any.

        Args:
            problem: what this rank's inputs were refused for, or None.
            facts: what must be the same on every rank, by the words that a message has for it.
            can_plan: whether this rank can run the step as one native call.

        Returns:
            Whether all can.

        Raises:
            Exception: `problem`, or a ProcessesError where another rank has one, or where facts differ.
        """
        told = [int(problem is not None), int(not can_plan), int(self.asks_to_stop)]
        for value in facts.values():
            told += [_LEAST, _LEAST] if problem is not None else [value, -value]
        with self._answered():
            if self.shared is not None:
                most = self.shared.most(told)
            else:
                values = torch.tensor(told, dtype=torch.int64, device="cpu")
                dist.all_reduce(values, dist.ReduceOp.MAX, self._control)
                most = values.tolist()
        refused, cannot, stop, *bounds = most
        self.was_asked_to_stop = bool(stop)
        if refused:
            self._refuse(problem)
        for name, most, least in zip(facts, bounds[::2], bounds[1::2], strict=True):
            if most != -least:
                raise ProcessesError(
                    f"{name} must be the same on every rank, but it is from {-least} to {most}; nothing was updated"
                )
        return not cannot

    def _refuse(self, problem: Exception | None) -> None:
        sentences = self.gather(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        rank, sentence = next((i, each) for i, each in enumerate(sentences) if each is not None)
        raise ProcessesError(f"rank {rank} refused its inputs, so no rank was updated: {sentence}")

    def gather(self, value: Any) -> list[Any]:
        """A small picklable value of each rank, in their order, on every rank."""
        found: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(found, value, self._control)
        return found

    def on_first(self, work: Callable[[], Result]) -> Result:
        """What `work` gives on rank 0, picklable, on every rank.

        Raises:
            Exception: what it raised on rank 0; on others a ProcessesError with its sentence.
        """
        result: Any = None
        problem: BaseException | None = None
        if self.rank == 0:
            try:
                result = work()
            except BaseException as error:
                problem = error
        told = [(result, None if problem is None else f"{problem}")]
        with self._answered():
            dist.broadcast_object_list(told, group=self._control, group_src=0)
        if problem is not None:
            raise problem
        result, sentence = told[0]
        if sentence is not None:
            raise ProcessesError(f"rank 0 could not go on: {sentence}")
        found: Result = result
        return found

    def add_up(self, values: Tensor) -> None:
        """Put the sum over all ranks in the place of a contiguous tensor, with the same bits on every rank.

        Raises:
            ProcessesError: another process has ended, failed or does not answer.
        """
        self.begin_sum(values)()

    def begin_sum(self, values: Tensor) -> Callable[[], None]:
        """Begin what `add_up` does, beside what this process computes next.

        Args:
            values: a contiguous tensor of the same shape on every rank, which nobody reads or writes until then. Every
                rank must begin its sums in the same order.

        Returns:
            What waits until the sum is there; it raises as `add_up` does.

        Raises:
            ProcessesError: as of `add_up`.
        """
        in_memory = self.shared is not None and values.is_cpu and values.dtype in (torch.float32, torch.float64)
        with self._answered():
            work = None if in_memory else dist.all_reduce(values, group=self.group, async_op=True)

        def wait() -> None:
            with self._answered():
                if work is None:
                    self.shared.add_up(values)
                else:
                    work.wait()

        return wait

    def meet(self) -> None:
        """Wait in the shared memory until all have handed in what is theirs."""
        with self._answered():
            self.shared.meet()

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Put the mean over all ranks in the place of parameters' gradients, with the same bits on every rank: one
        exchange for each dtype. Those without a gradient stay so, which must be the same ones on every rank."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.add_up(flat)
            flat /= self.size
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def mean_of(self, statistics: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The means over all ranks of 0-d tensors."""
        values = torch.stack([each.double() for each in statistics])
        self.add_up(values)
        values /= self.size
        return tuple(value.to(each.dtype) for value, each in zip(values.unbind(), statistics, strict=True))

    def begin(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Give every rank what rank 0 has, and random states of their own to those that began alike.

        Args:
            tensors: of what is trained, by name.
            facts: the options and optimizers, by name, which must be the same on every rank.

        Raises:
            ProcessesError: the ranks train different things; nothing was changed.
        """
        kinds = {name: (tuple(value.shape), str(value.dtype)) for name, value in tensors.items()}
        for rank, (other_kinds, other) in enumerate(self.gather((kinds, dict(facts)))):
            if other_kinds != kinds:
                name = next(n for n in (*kinds, *other_kinds) if kinds.get(n) != other_kinds.get(n))
                raise ProcessesError(
                    f"every rank must train the same networks, but {name} is {_in_words(kinds.get(name))} on rank "
                    f"{self.rank} and {_in_words(other_kinds.get(name))} on rank {rank}"
                )
            for name in sorted({*facts, *other}):
                if facts.get(name) != other.get(name):
                    raise ProcessesError(
                        f"every rank must have the same {name}, but it is {facts.get(name)} on rank {self.rank} and "
                        f"{other.get(name)} on rank {rank}"
                    )
        with self._answered(), torch.no_grad():
            for value in tensors.values():
                sent = value.detach().contiguous()
                dist.broadcast(sent, group=self.group, group_src=0)
                if self.rank > 0:
                    value.detach().copy_(sent)
        self.check_equal(tensors)
        self._share(tensors)
        devices = {value.device for value in tensors.values()}
        self._spread_random_states(devices)

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Look whether all ranks have the same bits.

        Raises:
            ProcessesError: they have not; names the first tensor that differs.
        """
        for rank, digests in enumerate(all_digests := self.gather({n: _digest(v) for n, v in tensors.items()})):
            for name, digest in digests.items():
                if digest != all_digests[0].get(name):
                    raise ProcessesError(
                        f"every rank must have the same parameters, but {name} of rank {rank} is not that of rank 0"
                    )

    def _share(self, tensors: Mapping[str, Tensor]) -> None:
        """Share memory with the other processes, if all are on this computer, as are their parameters."""
        by_network: dict[str, int] = {}
        for name, value in tensors.items():  # with room for a bias that a layer does not have, and for statistics
            rows = value.shape[0] if value.dim() > 0 else 1
            network = name.partition(".")[0]
            by_network[network] = by_network.get(network, 64) + (value.numel() + rows) * value.itemsize
        is_wanted = self.shares_memory and self._device.type == "cpu"
        bytes, patience = max(by_network.values()), self._timeout()
        self.shared = shared_memory.share(self.gather, self.rank, self.size, bytes, patience, is_wanted)

    def _timeout(self) -> float:
        """The seconds that the group waits for one of its processes."""
        limit = dist.distributed_c10d.default_pg_timeout
        with contextlib.suppress(AttributeError, RuntimeError):
            limit = self._control._get_backend(torch.device("cpu")).options._timeout
        return float(limit.total_seconds())

    def _spread_random_states(self, devices: set[torch.device]) -> None:
        """Ranks that were seeded alike would draw the same noise and masks: all but the first of these are seeded anew,
        by torch.initial_seed() and their rank."""
        generators = [torch.default_generator]
        generators += [torch.cuda.default_generators[d.index] for d in devices if d.type == "cuda"]
        states = self.gather([_digest(generator.get_state()) for generator in generators])
        for i, generator in enumerate(generators):
            if states[self.rank][i] in [state[i] for state in states[: self.rank]]:
                generator.manual_seed(seed_of_rank(generator.initial_seed(), self.rank))

    @contextlib.contextmanager
    def synchronised(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """In a `with` block, BatchNorm layers take their statistics over the samples of all ranks."""
        found = synchronisable(networks) if self.synchronises else []
        try:
            for module in found:
                module.__dict__["forward"] = _BatchNormOfAll(module, self)
            yield
        finally:
            for module in found:
                module.__dict__.pop("forward", None)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what a rank computes of a step: where it fails here alone, the others must not wait for it."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                if self.shared is not None:
                    self.shared.fail()
                self.group.abort()
            raise

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ProcessesError(
                f"another process of the group has ended, failed or does not answer; this one is rank {self.rank} of "
                f"{self.size} ({first})"
            ) from error


class _Sum(torch.autograd.Function):
    """The sum over all ranks, of which the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        total = value.detach().clone(memory_format=torch.contiguous_format)
        processes.add_up(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0], context.processes), None  # type: ignore[no-untyped-call]


class _BatchNormOfAll:
    """The forward of a BatchNorm layer, its statistics over the samples of all ranks (Ioffe and Szegedy 2015,
    algorithm 1), which must be as many on each. Differentiable as often as one likes."""

    def __init__(self, module: _BatchNorm, processes: Processes) -> None:
        self._module, self._processes = module, processes

    def __call__(self, input: Tensor) -> Tensor:
        module = self._module
        module._check_input_dim(input)
        if not module.training and module.running_mean is not None:
            output: Tensor = type(module).forward(module, input)
            return output
        value = input.float() if input.dtype.itemsize == 2 else input
        features = [1, -1, *([1] * (value.dim() - 2))]
        others = [i for i in range(value.dim()) if i != 1]
        count = self._processes.size * (value.numel() // value.shape[1])
        mean = self._sum(value.sum(others)) / count
        centred = value - mean.view(features)
        variance = self._sum(centred.square().sum(others)) / count
        if module.training and module.track_running_stats:
            self._follow(mean.detach(), variance.detach() * (count / (count - 1)))
        output = centred * (variance + module.eps).rsqrt().view(features)
        if module.affine:
            output = output * module.weight.view(features) + module.bias.view(features)
        return output.to(input.dtype)

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(value, self._processes)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        module = self._module
        momentum: Any = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches
                momentum = 1.0 / float(module.num_batches_tracked)
        for running, value in ((module.running_mean, mean), (module.running_var, variance)):
            if running is not None:
                running.mul_(1 - momentum).add_(momentum * value)


def synchronisable(networks: Iterable[nn.Module], refuses: bool = True) -> list[_BatchNorm]:
    """The BatchNorm layers of networks.

    Raises:
        ValueError: one of them is of a class with a forward of its own.
    """
    found = []
    for network in networks:
        for name, module in network.named_modules():
            if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
                continue
            if refuses and (type(module).forward is not _BatchNorm.forward or "forward" in module.__dict__):
                raise ValueError(
                    f"sync_batch_norm must be False where a BatchNorm has a forward of its own, as {name}, a "
                    f"{type(module).__name__}, has"
                )
            if module not in found:
                found.append(module)
    return found


def seed_of_rank(seed: int, rank: int) -> int:
    """What a rank's draws are seeded with, where rank 0 has a seed: itself for rank 0."""
    return (seed + rank * _SPREAD) % 2**63


def _backend_of(group: Any, device: torch.device) -> str:
    """The name of what exchanges tensors of a device: ValueError where there is none."""
    for part in str(dist.get_backend_config(group)).split(","):
        kind, _, backend = part.rpartition(":")
        if kind == device.type:
            return backend
    raise ValueError(
        f"process_group must have a backend for {device.type}, where the parameters are (gloo on a CPU, nccl on "
        f"CUDA), but it has {dist.get_backend(group)}"
    )


def _digest(value: Tensor) -> str:
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().data).hexdigest()


def _in_words(kind: Any) -> str:
    return "missing" if kind is None else f"{kind[1].removeprefix('torch.')} of shape {kind[0]}"
