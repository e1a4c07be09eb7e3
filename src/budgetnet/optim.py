"""Parameter groups, optimizers and what goes around them, the learning rate as a function of the step, and weight
averaging."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.config import OptimizerConfig, ScheduleConfig


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `network`, each once, grouped by how they are updated.

    Biases of batch and layer norms learn at `config.bias_lr` times the learning rate, linear layers at `config.head_lr`
    times; parameters of one dimension (norms and biases) are decayed only with `config.decay_norms`. A group's
    `lr_factor` multiplies the scheduled learning rate; `orthogonal` says whether muon orthogonalises its updates: those
    of convolutions.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()  # a parameter that two modules share is updated once
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            norm_bias = name == "bias" and isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm))
            lr_factor = config.bias_lr if norm_bias else config.head_lr if isinstance(module, nn.Linear) else 1.0
            # Decay shrinks a weight by lr * decay each step: dividing keeps it the same for faster biases.
            decay = config.weight_decay / lr_factor if config.decay_norms or parameter.ndim > 1 else 0.0
            orthogonal = config.name == "muon" and parameter.ndim == 4
            groups.setdefault((lr_factor, decay, orthogonal), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": lr_factor,
            "lr": config.lr * lr_factor,
            "weight_decay": decay,
            "orthogonal": orthogonal,
        }
        for (lr_factor, decay, orthogonal), parameters in groups.items()
    ]


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over `parameter_groups(network, config)`."""
    groups = parameter_groups(network, config)
    # One kernel for all parameters where torch has it (CPU and CUDA), instead of some for each.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, betas=config.betas, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, betas=config.betas, fused=fused)
        case "muon":
            return Muon(groups, config.lr, config.momentum)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose updates are orthogonalised for convolutions, and taken as they are for the rest.

    The filters of a convolution, as a matrix with a row for each output channel, are first brought back to the norm of
    an orthogonal one, sqrt(channels) (the batch norm after them undoes their scale, so that only the ratio of update to
    weight counts), and then moved by `lr` times the orthogonal matrix nearest to the update. They are not decayed. All
    other parameters are updated as by `torch.optim.SGD(nesterov=True)`, decay included.

    Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein 2024, "Muon: an optimizer for hidden layers"; on networks
    for CIFAR-10 as in Jordan's airbench.

    Args:
        groups: of parameters, as `parameter_groups` makes them.
        lr: learning rate of groups that have none of their own, above 0.
        momentum: in [0, 1).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients: list[Any] = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            if group["weight_decay"] and not group["orthogonal"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
            if group["orthogonal"]:
                norms = torch._foreach_norm(parameters)
                torch._foreach_div_(norms, [len(parameter) ** 0.5 for parameter in parameters])
                torch._foreach_div_(parameters, norms)
                updates = _orthogonalized(updates)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _orthogonalized(updates: Sequence[Tensor]) -> list[Tensor]:
    """Each as `orthogonalize` has it, with a row for each output channel: of those of one shape all at once.

    They are many and small, so that an accelerator takes no longer for some than for one. Which column is which does
    not matter: they stand as in memory, where nothing has to be moved for it, nor back.
    """
    orders = [sorted(range(1, update.ndim), key=update.stride, reverse=True) for update in updates]
    rows = [update.permute(0, *order) for update, order in zip(updates, orders, strict=True)]
    alike: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(rows):
        alike.setdefault(matrix.shape, []).append(place)
    found = list(updates)
    for shape, places in alike.items():
        together = orthogonalize(torch.stack([rows[place] for place in places]).flatten(2))
        for place, matrix in zip(places, together.view(-1, *shape), strict=True):
            found[place] = matrix.movedim(tuple(range(1, matrix.ndim)), orders[place])
    return found


def orthogonalize(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrices with orthonormal rows, or columns if they have fewer: singular values of about 1.

    Three Newton-Schulz iterations of degree 5, with coefficients that lift small singular values fast rather than reach
    1: after them those above 0.05 of the Frobenius norm lie in (0.3, 1.3). In bfloat16 on CUDA, else in float32.

    Args:
        matrices: (n, rows, columns) float; left unchanged.

    Returns:
        (n, rows, columns), contiguous, dtype of `matrices`; 0 for 0.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(3):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).contiguous()


@contextmanager
def ascended(network: nn.Module, rho: float) -> Iterator[None]:
    """Within it, the weights stand `rho` up the gradient that they have; after it, they are what they were, exactly.

    So are the buffers: the running statistics of norms do not follow a pass that is made within. The direction is that
    of the gradient of all parameters together, and so does not depend on its scale. Sharpness-aware minimisation
    updates the weights by the gradient that is found there: Foret et al. 2021, arXiv:2010.01412.

    Args:
        network: has the gradients of a loss.
        rho: Euclidean length of the way, above 0.
    """
    parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    held = [*parameters, *network.buffers()]
    with torch.no_grad():
        before = [tensor.clone() for tensor in held]
        norm = torch.stack([n.float() for n in torch._foreach_norm(gradients)]).norm()
        torch._foreach_add_(parameters, list(torch._foreach_mul(gradients, rho / (norm + 1e-12))))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of `optimizer` the learning rate `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_factor(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate at a step, as a factor of the peak: a pure function, so that nothing has to be saved.

    Args:
        config: the schedule; plateau is flat here but for its warm-up (see `Plateau`).
        step: 0 <= step < epochs * steps_per_epoch.
        steps_per_epoch: steps in an epoch.
        epochs: total number of epochs.

    Returns:
        A factor in [0, 1].
    """
    total = epochs * steps_per_epoch
    warmup = min(config.warmup * steps_per_epoch, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    epoch = step / steps_per_epoch
    match config.name:
        case "constant" | "plateau":
            return 1.0
        case "cosine":
            return _cosine((step - warmup) / (total - warmup), 1.0, config.floor)
        case "multistep":
            return max(config.floor, config.gamma ** sum(epoch >= milestone for milestone in config.milestones))
        case "exponential":
            # Counted from the end of the warm-up, which so meets the schedule at its peak.
            return max(config.floor, config.gamma ** int((step - warmup) / steps_per_epoch))
        case "restarts":
            position, period = (step - warmup) / steps_per_epoch, config.period
            while position >= period:
                position, period = position - period, period * config.period_growth
            return _cosine(position / period, 1.0, config.floor)
        case "onecycle" | "triangular":
            shape = _cosine if config.name == "onecycle" else _straight
            progress = step / total
            if progress < config.peak:
                return shape(progress / config.peak, config.start, 1.0)
            return shape((progress - config.peak) / (1 - config.peak), 1.0, config.floor)


def _cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _straight(progress: float, start: float, end: float) -> float:
    return start + (end - start) * progress


class Plateau:
    """The one schedule with a memory: a factor that drops when the validation loss stalls; 1 under all others."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.best = math.inf
        self.stale = 0

    def update(self, val_loss: float) -> None:
        """Take note of an epoch's validation loss."""
        if self.config.name != "plateau":
            return
        if val_loss < self.best:
            self.best, self.stale = val_loss, 0
            return
        self.stale += 1
        if self.stale > self.config.patience:
            self.factor, self.stale = max(self.config.floor, self.factor * self.config.gamma), 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs, as plain numbers."""
        return {"factor": self.factor, "best": self.best, "stale": self.stale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`; under another schedule, where an older version may have dropped, from 1."""
        factor, best, stale = state["factor"], state["best"], int(state["stale"])
        if self.config.name == "plateau":
            self.factor, self.best, self.stale = factor, best, stale


class WeightAverage:
    """A moving average of a network's weights and norm statistics, exponential or equal (Polyak and Juditsky 1992).

    The decay is warmed up as min(decay, (1 + t) / (10 + t)), so that early weights are forgotten quickly. Running
    statistics are averaged like the weights, which they belong to; counters are copied. Those of an equal average over
    long ways are better estimated anew (`estimate_norms`).

    Args:
        network: where the average begins.
        decay: of the exponential average, in (0, 1); None is the equal average of what `update` is given.

    Attributes:
        network: the averaged copy, in evaluation mode, without gradients.
        updates: how often `update` was called.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def update(self, network: nn.Module) -> None:
        """Take the weights of `network` into the average."""
        t = self.updates
        weight = 1 / (1 + t) if self.decay is None else 1 - min(self.decay, (1 + t) / (10 + t))
        self.updates += 1
        mine, theirs = self.network.state_dict(), network.state_dict()
        averaged = {name for name, tensor in mine.items() if tensor.is_floating_point()}
        torch._foreach_lerp_([mine[name] for name in averaged], [theirs[name] for name in averaged], weight)
        if counters := mine.keys() - averaged:
            torch._foreach_copy_([mine[name] for name in counters], [theirs[name] for name in counters])


@torch.no_grad()
def estimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate the running statistics of batch norms anew: those of the batches, averaged equally.

    Averaged weights give other activations than any of the weights they are an average of, and so need statistics of
    their own: Izmailov et al. 2018, arXiv:1803.05407. All but the norms works as in evaluation, dropout for one.

    Args:
        network: in evaluation mode, and left so.
        batches: inputs of the network, (n, c, h, w), of about equal sizes.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # an equal average
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
