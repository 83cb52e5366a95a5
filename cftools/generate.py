"""One-pass generators on scans: a code and a condition to an image, and a scan's code by an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cftools.carry import NEED_FACTUAL, carry_image
from cftools.condition import Condition, encoded
from cftools.diffusion.noise import Draws
from cftools.errors import PresetError
from cftools.methods import BRIGHTNESSES
from cftools.nets.generator import Generator, GeneratorArchitecture
from cftools.prepare import Prepared
from cftools.preset import GeneratorSampling, Preset
from cftools.weights import Checkpoint, load


class GeneratorMethod:
    """G(z, c): a sample is G of a code of the prior; an edit is G of the scan's own code under another condition."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        self.facts = checkpoint.facts
        self.device = torch.device(device)
        self.network = checkpoint.network(Generator, GeneratorArchitecture).to(self.device)

    @classmethod
    def of(cls, preset: Preset, name: str, device: torch.device) -> tuple[GeneratorMethod, dict[str, Checkpoint]]:
        """The method with its weights by name or path, and what was loaded, by role.

        Raises:
            PresetError: the preset feeds the generator anything but a code. WeightsError: there are no such weights.
        """
        if preset.sampling != GeneratorSampling("encoded"):
            raise PresetError(f"preset {preset.name}: this generator takes codes: start encoded, and no windows")
        checkpoint = load(name, expect="generator")
        return cls(checkpoint, device), {preset.main_role: checkpoint}

    def edits(
        self, preset: Preset, prepared: Prepared, source: Condition, targets: Sequence[Condition], seed: int = 0
    ) -> Iterator[np.ndarray]:
        """The scan under each condition in turn, on its own grid: encode, decode under the condition, carry.

        Args:
            seed: for the record; an edit draws nothing at random.
        """
        z = self.encode(prepared.image, source)
        factual = self.decode(z, source) if preset.carry in NEED_FACTUAL else None
        for target in targets:
            yield carry_image(prepared, self.decode(z, target), factual, preset.carry, torch.get_num_threads())

    def spread(
        self, preset: Preset, prepared: Prepared, source: Condition, target: Condition, seed: int = 0
    ) -> tuple[str, Iterator[np.ndarray]]:
        """The same edit made in other ways that are as good, and in words which: looks at the scan, as a flow's."""

        def seen_as(mirrored: bool, power: float, z: Tensor, condition: Condition) -> np.ndarray:
            image = self.decode(z, condition).clip(min=0) ** np.float32(1 / power)
            return np.ascontiguousarray(image[::-1] if mirrored else image)

        def edits() -> Iterator[np.ndarray]:
            for mirrored in (False, True):
                for power in BRIGHTNESSES:
                    image = prepared.image.clip(min=0) ** np.float32(power)
                    z = self.encode(np.ascontiguousarray(image[::-1] if mirrored else image), source)
                    own, edited = (seen_as(mirrored, power, z, condition) for condition in (source, target))
                    yield carry_image(prepared, edited, own, preset.carry, torch.get_num_threads())

        return f"{2 * len(BRIGHTNESSES)} looks at the scan: as it is and mirrored, at three brightnesses", edits()

    def reconstruction(self, prepared: Prepared) -> None:
        """None: no code of so few numbers shows a scan's own folds, of whatever scan, so there is no telling by it."""

    def sample(self, condition: Condition, seed: int, sample: int, command: str = "") -> np.ndarray:
        """A new scan on the model's grid, (X, Y, Z), from the code of one sample number.

        Args:
            command: for those who keep it.
        """
        like = torch.zeros((1, self.network.architecture.code), device=self.device)
        return self.decode(Draws(seed, (sample,))(like, "start", 0), condition)

    def encode(self, image: np.ndarray, condition: Condition) -> Tensor:
        """The likeliest code, (1, C), of a scan on the model's grid, (X, Y, Z), normalised."""
        x = torch.from_numpy(image)[None, None].to(self.device)
        with torch.inference_mode():
            mean, _ = self.network.encode(x, self._told(condition))
        return mean

    def decode(self, z: Tensor, condition: Condition) -> np.ndarray:
        """The image of a code, (X, Y, Z) float32."""
        with torch.inference_mode():
            image: np.ndarray = self.network.decode(z, self._told(condition))[0, 0].float().cpu().numpy()
        return image

    def _told(self, condition: Condition) -> Tensor:
        return torch.tensor([encoded(condition, self.facts.variables)], device=self.device)
