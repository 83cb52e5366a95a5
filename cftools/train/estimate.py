"""What a training will need, told before it begins: parameters, and memory by one step on the processor."""

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
    """Look at one item's losses without computing them: the tensors have shapes and no values.

    Args:
        item: of the objective's dataset; the first by default.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    item = objective.dataset()[0] if item is None else item
    network = objective.network()
    parameters = _count(network)
    kept = _count(getattr(network, "kept", network))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        if schedule.checkpointing:
            network = checkpointed(network)
        pretended = _pretended(network, mode)
        flops, held = FlopCounterMode(display=False), _Held(pretended)
        half = torch.autocast("cpu", torch.bfloat16, enabled=schedule.dtype == "bfloat16")
        with flops:
            with half, torch.autograd.graph.saved_tensors_hooks(held, lambda tensor: tensor):
                loss = objective.losses(pretended, {k: mode.from_tensor(v) for k, v in item.items()})["loss"]
            loss.backward()
    return Estimate(
        steps=schedule.steps,
        batch=schedule.batch,
        parameters=parameters,
        kept=kept,
        item={name: tuple(value.shape) for name, value in item.items()},
        weights_mib=round(parameters * BYTES_A_PARAMETER / 2**20, 1),
        activations_mib=round(held.bytes / 2**20, 1),
        teraflop=round(flops.get_total_flops() / 1e12, 4),
    )


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
