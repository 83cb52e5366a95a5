"""What a training will need, told before it begins: parameters, memory, operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cftools.train.checkpointing import checkpointed
from cftools.train.loop import Objective, Schedule

#: Bytes a parameter takes in float32: itself, its gradient, its average, and AdamW's two moments.
BYTES_A_PARAMETER = 5 * 4


@dataclass(frozen=True)
class Estimate:
    """Sizes in MiB.

    Attributes:
        parameters: that are trained; kept: of them in the weights that are written, without a critic, say.
        item: shapes of one item's tensors.
        weights_mib: parameters, gradients, average and the optimiser's moments.
        activations_mib: what one item's forward pass keeps for its backward pass; the peak is somewhat above.
        teraflop: of one item, forward and backward.
    """

    steps: int
    batch: int
    parameters: int
    kept: int
    item: dict[str, tuple[int, ...]]
    weights_mib: float
    activations_mib: float
    teraflop: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "item": {name: list(shape) for name, shape in self.item.items()}}


def estimate(objective: Objective, schedule: Schedule, item: dict[str, Tensor] | None = None) -> Estimate:
    """Look at one item's losses without computing them where that can be: the tensors have shapes and no values.

    Args:
        item: of the objective's dataset; the first by default.
    """
    from torch._subclasses import fake_tensor

    item = objective.dataset()[0] if item is None else item
    network = objective.network()
    parameters, kept = _count(network), _count(getattr(network, "kept", network))
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            pretended: dict[str, Tensor] = {name: mode.from_tensor(value) for name, value in item.items()}
            held, operations = _looked_at(objective, schedule, _pretended(network, mode), pretended)
    except (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException):
        # What these losses do depends on the values: take the step.
        held, operations = _looked_at(objective, schedule, objective.network(), item)
    return Estimate(
        steps=schedule.steps,
        batch=schedule.batch,
        parameters=parameters,
        kept=kept,
        item={name: tuple(value.shape) for name, value in item.items()},
        weights_mib=round(parameters * BYTES_A_PARAMETER / 2**20, 1),
        activations_mib=round(held / 2**20, 1),
        teraflop=round(operations / 1e12, 4),
    )


def _looked_at(
    objective: Objective, schedule: Schedule, network: nn.Module, item: dict[str, Tensor]
) -> tuple[int, int]:
    """Bytes kept for the backward pass, and operations of both."""
    from torch.utils.flop_counter import FlopCounterMode

    network = checkpointed(network) if schedule.checkpointing else network
    held, counted = _Held(network), FlopCounterMode(display=False)
    half = torch.autocast("cpu", torch.bfloat16, enabled=schedule.dtype == "bfloat16")
    with torch.random.fork_rng(devices=[]), counted:
        with half, torch.autograd.graph.saved_tensors_hooks(held, lambda tensor: tensor):
            loss = objective.losses(network, item)["loss"]
        loss.backward()
    return held.bytes, counted.get_total_flops()


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _pretended(network: nn.Module, mode: Any) -> nn.Module:
    """The network with parameters and buffers that have no values."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter.data), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return network


class _Held:
    """Bytes of what autograd keeps, each storage once and no parameter."""

    def __init__(self, network: nn.Module) -> None:
        self._seen = {one.untyped_storage()._cdata for one in network.parameters()}
        self._alive: list[Tensor] = []
        self.bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # or another storage may come to lie at its address
            self.bytes += storage.nbytes()
        return tensor
