"""The methods behind the presets: what turns a prepared scan and a change of condition into an edit.

Final classes, one per kind of model; presets differ only in the parts they name.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cftools import field
from cftools.carry import carry_field, surface
from cftools.condition import Condition, Value, encoded
from cftools.errors import ConditionError, WeightsError
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.prepare import Prepared
from cftools.preset import FlowSampling, Preset
from cftools.weights import Checkpoint, Variable, load

#: Powers of the normalised intensity at which the network also looks, well within those it was trained at.
BRIGHTNESSES = (0.87, 1.0, 1.15)


@dataclass(frozen=True)
class Deformation:
    """An edit as a deformation of the scan.

    Attributes:
        displacement: (3, X, Y, Z) float32, MNI152 millimetres, pull-back.
        residual: (2, X, Y, Z) float32, an offset r in normalised intensity and a gain g, or None: edited(y) =
            (1 + g(y)) factual(y + u(y)) + r(y). By the gain grey and white matter draw together, voxel by voxel.
    """

    displacement: np.ndarray
    residual: np.ndarray | None

    def seen_as(self, mirrored: bool, power: float) -> Deformation:
        """That of the scan, where it was found on the scan mirrored and with its intensities to a power.

        (1 + g) I^p is I'^p for I' = (1 + g)^(1/p) I; the offset, which is small, is left as it is.
        """
        displacement, residual = self.displacement, self.residual
        if mirrored:
            displacement = displacement[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None, None]
            residual = None if residual is None else residual[:, ::-1]
        if residual is not None:
            gain = (1 + residual[1]).clip(min=0) ** np.float32(1 / power) - 1
            residual = np.stack([residual[0], gain])
        return Deformation(np.ascontiguousarray(displacement), residual)


class FlowMethod:
    """The twin flow: one pass gives a velocity field and a residual; no noise, no inversion, no latent.

    u = exp(v), v = sum_k (g_k(c') - g_k(c)) f_k(x, c). With n steps the condition moves in n equal parts and the
    network looks at the scan anew after each, which makes it the Euler solution of an ODE in the condition.
    """

    tasks = frozenset({"edit"})

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        facts = checkpoint.facts
        self.variables: Mapping[str, Variable] = facts.variables
        self.device = torch.device(device)
        self.network = checkpoint.network(TwinNet, TwinArchitecture).to(self.device)

    @classmethod
    def of(cls, preset: Preset, name: str, device: torch.device) -> tuple[FlowMethod, dict[str, Checkpoint]]:
        """The method with its weights by name or path, and what was loaded, by role."""
        checkpoint = load(name, expect="twin")
        return cls(checkpoint, device), {preset.main_role: checkpoint}

    def edits(
        self, preset: Preset, prepared: Prepared, source: Condition, targets: Sequence[Condition], seed: int = 0
    ) -> Iterator[np.ndarray]:
        """The scan under each condition in turn, on its own grid.

        Args:
            seed: for the record; a flow draws nothing at random.
        """
        assert isinstance(preset.sampling, FlowSampling)
        for target in targets:
            with torch.inference_mode():
                deformation = self.edit(prepared, source, target, preset.sampling.steps)
            yield carry_field(prepared, deformation.displacement, deformation.residual, torch.get_num_threads())

    def spread(
        self, preset: Preset, prepared: Prepared, source: Condition, target: Condition, seed: int = 0
    ) -> tuple[str, Iterator[np.ndarray]]:
        """The same edit made in other ways that are as good, and in words which.

        The network looks at the scan as it is and mirrored, each at three brightnesses.
        """
        assert isinstance(preset.sampling, FlowSampling)
        steps = preset.sampling.steps

        def edits() -> Iterator[np.ndarray]:
            for mirrored in (False, True):
                for power in BRIGHTNESSES:
                    image = prepared.image**power
                    shown = replace(prepared, image=np.ascontiguousarray(image[::-1] if mirrored else image))
                    with torch.inference_mode():
                        found = self.edit(shown, source, target, steps).seen_as(mirrored, power)
                    yield carry_field(prepared, found.displacement, found.residual, torch.get_num_threads())

        return f"{2 * len(BRIGHTNESSES)} looks at the scan: as it is and mirrored, at three brightnesses", edits()

    def reconstruction(self, prepared: Prepared) -> None:
        """None: a flow moves the scan itself and shows nothing anew."""

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
        displacement, residual = integrate(self.network, image, first, last, steps)
        return Deformation(
            displacement[0].cpu().numpy(),
            field.resize(residual, tuple(image.shape[2:]))[0].cpu().numpy()
            if self.network.architecture.residual
            else None,
        )

    def encode(self, condition: Condition) -> Tensor:
        """A condition as the network takes it, (1, V) in [-1, 1], nan where unknown."""
        return torch.tensor([encoded(condition, self.variables)], dtype=torch.float32, device=self.device)

    def _check(self, source: Condition, target: Condition) -> None:
        for index, name in enumerate(self.variables):
            before, after = source.get(name), target.get(name)
            if before != after and index not in self.network.architecture.changes:
                raise ConditionError(f"these weights cannot change {name}; they can only be told it")
            if before != after and None in (before, after):
                raise ConditionError(f"changing {name} needs its value in the scan: give it with --from {name}=...")


def integrate(
    network: nn.Module, image: Tensor, source: Tensor, target: Tensor, steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Displacement (B, 3, ...) on the image's grid, residual (B, 2, ...) on the velocity's; arguments as for TwinNet.

    Args:
        steps: parts in which the condition moves; after each the network looks at what the scan has become.
    """
    velocity, residual = network(image, source, torch.lerp(source, target, 1 / steps))
    shape = tuple(image.shape[2:])
    displacement = field.resize(field.exponential(velocity, 5), shape)
    for step in range(1, steps):
        here, there = (torch.lerp(source, target, (step + k) / steps) for k in (0, 1))
        velocity, change = network(changed(image, displacement, residual), here, there)
        further = field.exponential(velocity, 5)
        displacement = field.compose(displacement, field.resize(further, shape))  # at 4 mm much of a growth is lost
        offset, gain = field.warp(residual, further).split(1, dim=1)
        more, factor = change.split(1, dim=1)
        residual = torch.cat([offset * (1 + factor) + more, gain + factor + gain * factor], dim=1)
    return displacement, residual


def changed(image: Tensor, displacement: Tensor, residual: Tensor) -> Tensor:
    """(1 + g) I(y + u(y)) + r inside the brain, on the model's grid, as `carry_field` does it on the scan's own.

    Args:
        image: (B, 1, X, Y, Z) normalised; displacement: (B, 3, ...); residual: (B, 2, ...), r and g.
    """
    inside = image > 0
    around = [
        surface(one.cpu().numpy(), mask.cpu().numpy()) for one, mask in zip(image[:, 0], inside[:, 0], strict=True)
    ]
    beyond = torch.tensor(around, device=image.device).view(-1, 1, 1, 1, 1)
    offset, gain = field.resize(residual, tuple(image.shape[2:])).split(1, dim=1)
    return ((1 + gain) * field.warp(torch.where(inside, image, beyond), displacement) + offset) * inside


#: What reads a variable off a scan, by architecture: module, network and its architecture, imported when needed.
READERS = {
    "reader": ("cftools.nets.regressor", "Regressor", "RegressorArchitecture"),
    "convolutional": ("cftools.nets.convolutional", "ConvolutionalReader", "ConvolutionalArchitecture"),
}


class ScalarReader:
    """A network that reads one variable off a scan, such as the age nobody noted.

    Raises:
        WeightsError: the weights read nothing, or more than one variable.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        facts = checkpoint.facts
        #: Name and the beginning of the sha256, for records.
        self.weights = f"{checkpoint.name} ({checkpoint.sha256[:8]})"
        if facts.architecture not in READERS or len(facts.variables) != 1:
            raise WeightsError(f"{checkpoint.name}: read no variable off a scan: use those of preset age or sex")
        module, *classes = READERS[facts.architecture]
        network, architecture = (getattr(importlib.import_module(module), name) for name in classes)
        (self.name, self.variable), *_ = facts.variables.items()
        self.device = torch.device(device)
        self.network: Any = checkpoint.network(network, architecture).to(self.device)
        #: Mean absolute error on scans it was not trained on, in the variable's unit; nan if not recorded.
        self.error = float(facts.scores.get("mean_absolute_error", math.nan))

    def read(self, prepared: Prepared) -> float:
        """The value of a number, within the variable's range."""
        return self.variable.decode(float(self._said(prepared.image).flatten()[0]))

    def value(self, image: np.ndarray) -> Value:
        """The value in an image (X, Y, Z) on the weights' grid: a number in its range, or the likeliest category."""
        said = self._said(image).flatten()
        if self.variable.kind == "number":
            return self.variable.decode(float(said[0]))
        return self.variable.values[int(said.argmax())]

    def _said(self, image: np.ndarray) -> Tensor:
        said: Tensor = self.network(torch.from_numpy(image)[None, None].to(self.device))
        return said
