"""How a preset runs a denoiser, on tensors in the model's space: up to where it starts, and down under a condition.

    start -> integrate(denoiser, solver, moves, noise, constraint)

Every choice of `DiffusionSampling` is a part here, and no part asks for another's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from cftools.diffusion import moves, noise, solver, start, windows
from cftools.diffusion.constraint import Constraint, Paste, Repaint, unconstrained
from cftools.diffusion.denoiser import Clipped, Denoise, Denoiser, InBfloat16, Inputs, Network, NetworkDenoiser, bind
from cftools.diffusion.guidance import Guided
from cftools.diffusion.integrate import Record, integrate
from cftools.diffusion.inversion import Bdia, FixedPoint
from cftools.diffusion.path import Path, describe, make_path
from cftools.diffusion.solver import Solver
from cftools.errors import PresetError, WeightsError
from cftools.facts import DiffusionFacts
from cftools.nets.standard import knowing
from cftools.preset import DiffusionSampling
from cftools.space import Space, pooled

#: Solvers by the name that presets know them by.
SOLVERS: dict[str, Solver] = {**solver.SOLVERS, "bdia": Bdia()}
#: Solvers that go on, when they turn round, from where they were a move ago.
REMEMBERS = ("bdia",)


@dataclass(frozen=True)
class Scene:
    """What a run knows of the scan it edits, in the model's space.

    Attributes:
        clean: the scan's latent, (B, C, *sides); None where there is no scan.
        region: boolean, (B, 1, *sides), True where the image may change; None for everywhere.
        brain: (B, 1, *sides), 1 in the brain; None where nothing asks for it.
    """

    clean: Tensor | None = None
    region: Tensor | None = None
    brain: Tensor | None = None

    @classmethod
    def of(cls, space: Space, image: Tensor, region: Tensor | None = None, dilation: int = 0) -> Scene:
        """The scene of an image, (B, C, *shape), and of a mask of what may change, (B, 1, *shape), if there is one.

        Args:
            dilation: side of the kernel that the mask is dilated by, voxels of the image.
        """
        with torch.inference_mode():
            clean, _ = space.encode(image)
            brain = pooled(space.facts, (image[:, :1] > 0).float())
            free = None if region is None else pooled(space.facts, dilated(region.float(), dilation)) > 0
        return cls(clean, free, brain)


def dilated(mask: Tensor, side: int) -> Tensor:
    """A mask, (B, 1, *spatial), grown by a kernel of that side; an even one reaches further at the end of an axis."""
    if side < 2:
        return mask
    around = [(side - 1) // 2, side // 2] * (mask.ndim - 2)
    pool = functional.max_pool3d if mask.ndim == 5 else functional.max_pool2d
    return pool(functional.pad(mask, around), side, stride=1)


@dataclass(frozen=True)
class Started:
    """Where a run begins to come down.

    Attributes:
        x: (B, C, *sides) at the sampler's first time.
        state: of a solver that turned round there; tape: what was recorded on the way.
        evaluations: of the network.
    """

    x: Tensor
    state: Any = None
    tape: noise.Tape | None = None
    evaluations: int = 0


#: What a denoiser may see beside x_t, by the names that weights have in their facts.
CHANNELS: dict[str, Callable[[Scene], Tensor | None]] = {
    "source": lambda scene: scene.clean,
    "region": lambda scene: None if scene.region is None else scene.region.float(),
    "known": lambda scene: (
        None
        if scene.clean is None or scene.region is None
        else torch.where(scene.region, torch.zeros_like(scene.clean), scene.clean)
    ),
    "brain": lambda scene: scene.brain,
}


@dataclass(frozen=True, eq=False)
class Sampler:
    """A denoiser and how it is run.

    Attributes:
        sampling: of the preset; facts: of the weights.
        network: (x_t and channels, time, context) -> prediction.
        partner: the same of paired weights, which make the source of what these make.
    """

    sampling: DiffusionSampling
    facts: DiffusionFacts
    network: Network
    partner: Network | None = None

    def __post_init__(self) -> None:
        if (self.sampling.noise == "paired") != (self.partner is not None):
            raise WeightsError("paired noise needs a partner's weights, and no other noise takes them")

    @property
    def path(self) -> Path:
        """What the network was trained on."""
        return make_path(self.facts.path, **self.facts.settings)

    @property
    def times(self) -> tuple[float, ...]:
        """From the start down to 0."""
        return moves.times(self.path, self.sampling.steps, self.sampling.start_time, end=self.sampling.end_time)

    @property
    def way(self) -> tuple[float, str, str, str, int]:
        """What decides where a run starts and how it moves: two with the same can go on from one another."""
        return (self.times[0], describe(self.path)[0], self.sampling.start, self.sampling.solver, self.sampling.steps)

    def up(self, scene: Scene, told: Inputs, draws: noise.Draws, record: Record | None = None) -> Started:
        """Where the run starts for a scan, under its own condition.

        Raises:
            PresetError: there is no scan.
        """
        if scene.clean is None:
            raise PresetError(f"start {self.sampling.start}: needs a scan")
        clean, path = scene.clean, self.path
        draws = self.numbered(draws, 0)
        if self.sampling.start == "prior":
            return Started(start.prior(clean, draws))
        if self.sampling.start == "noised":
            return Started(start.noised(path, clean, self.times[0], draws))
        counted = _Counted(self.denoise(scene, told, 1.0))
        if self.sampling.start == "recorded":
            down = moves.down(self.times)
            x, tape = start.recorded(self._solver, counted, path, clean, down, draws, record)
            return Started(x, tape=tape, evaluations=counted.evaluations)
        x, state = start.inverted(self._inverter(), counted, path, clean, moves.up(self.times), record)
        return Started(x, state if self.sampling.solver in REMEMBERS else None, evaluations=counted.evaluations)

    def down(
        self,
        begun: Started,
        scene: Scene,
        told: Inputs,
        draws: noise.Draws,
        scale: float | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """From the start to a latent under a condition, (B, C, *sides); the mean over the preset's runs.

        Args:
            draws: of the samples; each of the preset's runs has its own, see `numbered`.
            scale: of guidance, instead of the preset's.
        """
        scale = self.sampling.guidance if scale is None else scale
        ends = []
        for run in range(self.sampling.runs):
            own, top = self.numbered(draws, run), begun
            if run and self.sampling.start == "prior":
                top = Started(start.prior(begun.x, own))
            elif run and scene.clean is not None and self.sampling.start == "noised":
                top = Started(start.noised(self.path, scene.clean, self.times[0], own))
            ends.append(self._finish(top, scene, told, own, scale, record))
        return ends[0] if len(ends) == 1 else torch.stack(ends).mean(0)

    def numbered(self, draws: noise.Draws, run: int) -> noise.Draws:
        """The draws of one of the preset's runs of every sample."""
        return replace(draws, samples=tuple(self.sampling.runs * one + run for one in draws.samples))

    def denoise(self, scene: Scene, told: Inputs, scale: float) -> Denoise:
        """The network with what it is told, guided and clipped as preset and facts say."""
        network = self.network if scene.clean is None else knowing(self.network, scene.clean)
        denoiser: Denoiser = self._denoiser(network)
        denoiser = Guided(denoiser, scale)
        if self.facts.clip:
            denoiser = Clipped(denoiser, self.path, *self.facts.clip)
        return bind(denoiser, replace(told, channels=self._channels(scene)))

    def _finish(
        self, begun: Started, scene: Scene, told: Inputs, draws: noise.Draws, scale: float, record: Record | None
    ) -> Tensor:
        if not self.facts.patch or self.sampling.window_blend == "step":
            return self._descend(begun, scene, told, draws, scale, record)
        if begun.state is not None or begun.tape is not None:
            raise PresetError("window_blend finished: goes with no inversion and no tape")
        size, shape = self.facts.patch, tuple(begun.x.shape[2:])
        total, weight = torch.zeros_like(begun.x), windows.ramp(size).to(begun.x)
        weights = torch.zeros(shape, dtype=begun.x.dtype, device=begun.x.device)
        for place in windows.places(shape, size, self.sampling.window_overlap):
            part = Scene(*(None if one is None else one[place] for one in (scene.clean, scene.region, scene.brain)))
            within = _Within(draws, begun.x, place)
            end = self._descend(Started(begun.x[place]), part, told, within, scale, record)
            total[place] += weight * end
            weights[place[2:]] += weight
        return total / weights

    def _descend(
        self, begun: Started, scene: Scene, told: Inputs, draws: Any, scale: float, record: Record | None
    ) -> Tensor:
        schedule = moves.down(self.times, self.sampling.resample)
        denoise = self.denoise(scene, told, scale)
        chosen = self._noise(begun, scene, told)
        held = self._constraint(scene)
        end, _ = integrate(
            self._solver, denoise, self.path, begun.x, schedule, chosen, draws, held, begun.state, record
        )
        return end

    def _denoiser(self, network: Network) -> Denoiser:
        network = InBfloat16(network) if self.sampling.dtype == "bfloat16" else network
        denoiser: Denoiser = NetworkDenoiser(network, self.path, self.facts.prediction, self.facts.learned_variance)
        if self.facts.patch and self.sampling.window_blend == "step":
            denoiser = windows.Windows(denoiser, self.facts.patch, self.sampling.window_overlap)
        return denoiser

    def _channels(self, scene: Scene) -> Tensor | None:
        found = []
        for name in self.facts.channels:
            channel = CHANNELS[name](scene)
            if channel is None:
                raise PresetError(f"these weights see {name} beside the image, and the run has none")
            found.append(channel)
        return torch.cat(found, dim=1) if found else None

    def _noise(self, begun: Started, scene: Scene, told: Inputs) -> noise.Noise:
        if self.sampling.noise == "tape":
            assert begun.tape is not None
            return begun.tape
        if self.sampling.noise == "paired":
            assert scene.clean is not None and self.partner is not None
            partner = self._denoiser(self.partner)

            def paired(estimate: Tensor) -> Denoise:
                return bind(partner, replace(told, channels=estimate))

            return noise.Paired(self.path, scene.clean, self._solver, paired)
        return noise.zero if self.sampling.noise == "zero" else noise.fresh

    def _constraint(self, scene: Scene) -> Constraint:
        if self.sampling.constraint == "none":
            return unconstrained
        if scene.clean is None or scene.region is None:
            raise PresetError(f"constraint {self.sampling.constraint}: needs a scan and a region of it that may change")
        if self.sampling.constraint == "paste":
            return Paste(scene.clean, scene.region)
        return Repaint(self.path, scene.clean, scene.region)

    @property
    def _solver(self) -> Solver:
        return SOLVERS[self.sampling.solver]

    def _inverter(self) -> Solver:
        if self.sampling.solver in REMEMBERS:
            return self._solver
        return FixedPoint(self._solver, self.sampling.inversion_iterations, self.sampling.inversion_tolerance)


class _Counted:
    """A denoiser that counts how often it is asked."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.evaluations = denoise, 0

    def __call__(self, x: Tensor, t: float) -> Any:
        self.evaluations += 1
        return self.denoise(x, t)


@dataclass(frozen=True)
class _Within:
    """The draws of a window: those of the whole, where it lies, so that neighbours agree."""

    draws: noise.Draws
    whole: Tensor
    place: Sequence[slice]

    def __call__(self, like: Tensor, stream: noise.Stream, index: int) -> Tensor:
        return self.draws(self.whole, stream, index)[tuple(self.place)]
