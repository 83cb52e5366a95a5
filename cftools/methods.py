"""The methods behind the presets: what turns a prepared scan and a change of condition into an edit.

Final classes, one per kind of model; presets differ only in the parts they name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cftools import field
from cftools.condition import Condition
from cftools.errors import ConditionError, WeightsError
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.prepare import Prepared
from cftools.weights import Checkpoint, Variable


@dataclass(frozen=True)
class Deformation:
    """An edit as a deformation of the scan.

    Attributes:
        displacement: (3, X, Y, Z) float32, MNI152 millimetres, pull-back: edited(y) = factual(y + u(y)) + residual(y).
        residual: (X, Y, Z) float32 in normalised intensity, or None.
    """

    displacement: np.ndarray
    residual: np.ndarray | None


class FlowMethod:
    """The twin flow: one pass gives a velocity field and a residual; no noise, no inversion, no latent.

    u = exp(v), v = sum_k (c'_k - c_k) f_k(x, c, c'). With n steps the condition moves in n equal parts and the
    network looks at the scan anew after each, which makes it the Euler solution of an ODE in the condition.
    """

    tasks = frozenset({"edit"})

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        facts = checkpoint.facts
        self.variables: Mapping[str, Variable] = facts.variables
        self.device = torch.device(device)
        try:
            self.network = TwinNet(TwinArchitecture(**_plain(facts.architecture_arguments)))
            self.network.load_state_dict({k: v.float() for k, v in checkpoint.tensors.items()})
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{checkpoint.name}: the tensors do not fit the architecture ({reason})") from None
        self.network.to(self.device).eval().requires_grad_(False)

    def edit(self, prepared: Prepared, source: Condition, target: Condition, steps: int = 1) -> Deformation:
        """The deformation from the source's condition to the target's.

        Args:
            prepared: scan on the network's grid.
            source, target: conditions; variables absent from both are unknown. Only what can change may differ.
            steps: 1 for one shot, more to integrate in the condition.
        """
        self._check(source, target)
        first, last = self.encode(source), self.encode(target)
        image = torch.from_numpy(prepared.image)[None, None].to(self.device)
        moved, total, residual = image, None, None
        for step in range(steps):
            here, there = (torch.lerp(first, last, (step + k) / steps) for k in (0, 1))
            velocity, gain = self.network(moved, here, there)
            displacement = field.exponential(velocity, 5)
            total = displacement if total is None else field.compose(total, displacement)
            residual = gain if residual is None else field.warp(residual, displacement) + gain
            if step + 1 < steps:
                shape = tuple(image.shape[2:])
                moved = field.warp(image, total) + field.resize(residual, shape) * (image > 0)
        assert total is not None and residual is not None
        shape = tuple(image.shape[2:])
        return Deformation(
            field.resize(total, shape)[0].cpu().numpy(),
            field.resize(residual, shape)[0, 0].cpu().numpy() if self.network.architecture.residual else None,
        )

    def encode(self, condition: Condition) -> Tensor:
        """A condition as the network takes it, (1, V) in [-1, 1], nan where unknown."""
        values = [variable.encode(condition.get(name)) for name, variable in self.variables.items()]
        return torch.tensor([values], dtype=torch.float32, device=self.device)

    def _check(self, source: Condition, target: Condition) -> None:
        for index, name in enumerate(self.variables):
            before, after = source.get(name), target.get(name)
            if before != after and index not in self.network.architecture.changes:
                raise ConditionError(f"these weights cannot change {name}; they can only be told it")
            if before != after and None in (before, after):
                raise ConditionError(f"changing {name} needs its value in the scan: give it with --from {name}=...")


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists back to the tuples that architectures are made of."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


class ScalarReader:
    """A network that reads one variable off a scan, such as the age nobody noted."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        from cftools.nets.regressor import Regressor, RegressorArchitecture

        facts = checkpoint.facts
        (self.name, self.variable), *_ = facts.variables.items()
        self.device = torch.device(device)
        self.network = Regressor(RegressorArchitecture(**_plain(facts.architecture_arguments)))
        self.network.load_state_dict({k: v.float() for k, v in checkpoint.tensors.items()})
        self.network.to(self.device).eval().requires_grad_(False)
        #: Mean absolute error on scans it was not trained on, in the variable's unit; nan if not recorded.
        self.error = float(facts.scores.get("mean_absolute_error", math.nan))

    def read(self, prepared: Prepared) -> float:
        """The value, within the variable's range."""
        image = torch.from_numpy(prepared.image)[None, None].to(self.device)
        return self.variable.decode(float(self.network(image)[0]))
