"""One training in several processes, each with a GPU: who is who, what they share, and when they agree."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cftools.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Which process of a training this is: rank 0 to world - 1, on so many nodes; rank 0 alone writes and speaks."""

    rank: int = 0
    world: int = 1
    nodes: int = 1
    launcher: Literal["", "torchrun", "srun"] = ""

    @property
    def first(self) -> bool:
        return self.rank == 0


def place_of(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun or srun gave this process; alone without them.

    A batch script of SLURM has SLURM_NTASKS without being a task of a step: only what srun started counts.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Place(rank, world, world // local, "torchrun")
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"
        rank, world, nodes = (int(environment[name]) for name in names)
        return Place(rank, world, nodes, "srun")
    return Place()


class Processes(Protocol):
    """What the training loop asks of its processes."""

    place: Place
    device: torch.device

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are averaged over the processes in its backward pass."""

    def apart(self, module: nn.Module, apart: bool) -> AbstractContextManager[None]:
        """Where gradients are not averaged yet: in all micro-steps but a step's last."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss of the wrapped module."""

    def total(self, values: Tensor) -> Tensor:
        """Sums over the processes."""

    def any(self, said: bool) -> bool:
        """Whether one of them says so; without a wait for the GPU."""


class Alone:
    """One process, which needs nobody."""

    def __init__(self, device: torch.device | str) -> None:
        self.place, self.device = Place(), torch.device(device)

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module

    def apart(self, module: nn.Module, apart: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def total(self, values: Tensor) -> Tensor:
        return values

    def any(self, said: bool) -> bool:
        return said


class Several:
    """Data-parallel processes (DDP) by Lightning Fabric, started by torchrun or srun.

    Raises:
        UsageError: Fabric is not installed, or what started the processes does not fit it.
    """

    def __init__(self, place: Place, device: torch.device | str) -> None:
        fabric, strategies, environments = _lightning()
        start = {"torchrun": environments.TorchElasticEnvironment, "srun": environments.SLURMEnvironment}
        options = {"auto_requeue": False} if place.launcher == "srun" else {}
        try:
            self._fabric = fabric.Fabric(
                accelerator=torch.device(device).type,
                devices=place.world // place.nodes,
                num_nodes=place.nodes,
                # A loss need not reach every parameter: an adversary may be switched off.
                strategy=strategies.DDPStrategy(find_unused_parameters=True),
                plugins=[start[place.launcher](**options)],
            )
            self._fabric.launch()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{place.launcher}: {place.world} processes cannot train together ({error})") from None
        self.place, self.device = place, self._fabric.device
        self._spoken = torch.distributed.new_group(backend="gloo")

    def wrapped(self, module: nn.Module) -> nn.Module:
        return self._fabric.setup_module(module)

    def apart(self, module: nn.Module, apart: bool) -> AbstractContextManager[None]:
        return self._fabric.no_backward_sync(module, enabled=apart)

    def backward(self, loss: Tensor) -> None:
        self._fabric.backward(loss)

    def total(self, values: Tensor) -> Tensor:
        return self._fabric.all_reduce(values, reduce_op="sum")

    def any(self, said: bool) -> bool:
        answer = torch.tensor(int(said))
        torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX, group=self._spoken)
        return bool(answer)


def processes_on(device: torch.device | str) -> Processes:
    """This process and those that were started with it."""
    place = place_of()
    return Several(place, device) if place.world > 1 else Alone(device)


def _lightning() -> tuple[Any, Any, Any]:
    """Fabric, its strategies and environments: of its own package, or of all of Lightning."""
    from importlib import import_module

    for package in ("lightning_fabric", "lightning.fabric"):
        try:
            names = package, f"{package}.strategies", f"{package}.plugins.environments"
            fabric, strategies, environments = (import_module(name) for name in names)
        except ModuleNotFoundError:
            continue
        logging.getLogger(package).setLevel(logging.WARNING)  # it tells who it is at every start
        return fabric, strategies, environments
    raise UsageError("several processes need Lightning Fabric: pip install 'cftools[train]', or start one process")
