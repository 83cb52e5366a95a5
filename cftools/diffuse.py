"""Diffusion on scans, in the pieces that pipe: encode, to noise, resample under a condition, decode.

Every piece takes and gives a `Latent`, so that cf-encode, cf-invert, cf-resample and cf-decode do what cf-edit does,
to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cftools.carry import NEED_FACTUAL, carry_image
from cftools.condition import Condition, encoded
from cftools.diffusion import noise, start
from cftools.diffusion.denoiser import Inputs
from cftools.diffusion.integrate import Record
from cftools.diffusion.solver import Before
from cftools.errors import LatentError, WeightsError
from cftools.facts import LatentFacts, ScanFacts, StateFacts, Target, WeightsUsed
from cftools.latent import Latent, scan_facts
from cftools.nets.standard import given_by, taken_by
from cftools.prepare import Prepared
from cftools.preset import DiffusionSampling, Preset
from cftools.sampling import Sampler, Scene, Started
from cftools.space import Space, VaeSpace, make_space
from cftools.weights import Checkpoint, Facts, load

#: How else an edit can be made: from how far up, as parts of the preset's own start, or with how many seeds.
STRENGTHS, SEEDS = (0.6, 0.8, 1.0), 4


def load_space(name: str, device: torch.device | str = "cpu") -> tuple[Space, Checkpoint]:
    """A space whose weights have a name or a path, with what was loaded.

    Raises:
        WeightsError: there are none, or they are of no autoencoder.
    """
    from cftools.nets.autoencoder import Autoencoder, AutoencoderArchitecture  # MONAI takes seconds to import

    checkpoint = load(name, expect="autoencoder-kl")
    if checkpoint.facts.space is None:
        raise WeightsError(f"{name}: does not say what it encodes to: train it anew")
    network = checkpoint.network(Autoencoder, AutoencoderArchitecture).to(device)
    return VaeSpace(checkpoint.facts.space, network), checkpoint


def decoded(space: Space, latent: np.ndarray) -> np.ndarray:
    """The image of one latent, (1, C, *sides) -> (X, Y, Z) float32."""
    network = getattr(space, "network", None)
    device = next(network.parameters()).device if network is not None else torch.device("cpu")
    with torch.inference_mode():
        image: np.ndarray = space.decode(torch.from_numpy(np.array(latent)).to(device))[0, 0].float().cpu().numpy()
    return image


def brought_home(
    space: Space, prepared: Prepared, edited: np.ndarray, factual: np.ndarray | None, carry: str | None
) -> np.ndarray:
    """The edit on the scan's own grid.

    Args:
        edited, factual: latents, (1, C, *sides); the factual for NEED_FACTUAL alone.
        carry: as `carry.carry_image` knows it.
    Raises:
        PresetError: there is no such carry here. LatentError: no factual where one is needed.
    """
    if carry in NEED_FACTUAL and factual is None:
        raise LatentError(f"the latent holds no factual resample, which carry {carry} needs: resample with it")
    own = decoded(space, factual) if factual is not None and carry in NEED_FACTUAL else None
    return carry_image(prepared, decoded(space, edited), own, carry, torch.get_num_threads())


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A denoiser in its space, and how it is run.

    Attributes:
        preset: resolved; its sampling is a diffusion's.
        network: (x_t, time, context) -> prediction; facts: of its weights.
        space: latents of images and back.
        used: the weights, by role.
        device: of the network.
    """

    preset: Preset
    network: Any
    facts: Facts
    space: Space
    used: Mapping[str, WeightsUsed]
    device: torch.device

    def __post_init__(self) -> None:
        if self.facts.diffusion is None or self.facts.space != self.space.facts:
            raise WeightsError(f"preset {self.preset.name}: denoiser and space were not made for each other")

    @classmethod
    def of(cls, preset: Preset, name: str, device: torch.device) -> tuple[DiffusionModel, dict[str, Checkpoint]]:
        """The denoiser of a name or path in its space, and what was loaded, by role.

        Raises:
            WeightsError: there are no such weights, or denoiser and space were not made for each other.
        """
        from cftools.nets.unet import UNet, UNetArchitecture

        checkpoint = load(name, expect="diffusion-unet")
        facts = checkpoint.facts
        if facts.diffusion is None or facts.space is None:
            raise WeightsError(f"{name}: does not say what it was trained on: train it anew")
        loaded = {"denoiser": checkpoint}
        space: Space
        if facts.diffusion.space:
            space, loaded["space"] = load_space(preset.weights["space"][0], device)
            if loaded["space"].sha256 != facts.diffusion.space:
                raise WeightsError(f"{name}: was trained in another space than that of {loaded['space'].name}")
        else:
            space = make_space(facts.space)
        network = checkpoint.network(UNet, UNetArchitecture).to(device)
        roles = {role: WeightsUsed(one.name, one.sha256) for role, one in loaded.items()}
        return cls(preset, network, facts, space, roles, device), loaded

    def edits(
        self, preset: Preset, prepared: Prepared, source: Condition, targets: Sequence[Condition], seed: int = 0
    ) -> Iterator[np.ndarray]:
        """The scan under each condition in turn, on its own grid: encode, invert, resample, decode, carry."""
        volume = prepared.volume
        scan = scan_facts(
            volume,
            str(volume.path or "-"),
            self.facts.contrasts[0],
            prepared.to_mni,
            prepared.offset,
            prepared.scale,
            prepared.similarity,
        )
        state = self.invert(self.encode(prepared.image, scan, source, seed=seed))
        factual: np.ndarray | None = None
        for target in targets:
            latent = self.resample(state, [Target(target)], factual=preset.carry in NEED_FACTUAL and factual is None)
            factual = latent.tensors.get("factual", factual)
            yield brought_home(self.space, prepared, latent.edited[0], factual, preset.carry)

    def spread(
        self, preset: Preset, prepared: Prepared, source: Condition, target: Condition, seed: int = 0
    ) -> tuple[str, Iterator[np.ndarray]]:
        """The same edit made in other ways that are as good, and in words which: seeds, or start strengths."""
        if self.sampling.noise == "zero":
            times = [self.sampling.start_time * part for part in STRENGTHS]
            others = [(replace(self, preset=preset.override(start_time=time)), seed) for time in times]
            words = f"start strengths {', '.join(f'{time:g}' for time in times)}"
        else:
            others = [(self, seed + more) for more in range(SEEDS)]
            words = f"{SEEDS} seeds"
        return words, (next(model.edits(model.preset, prepared, source, [target], number)) for model, number in others)

    def reconstruction(self, prepared: Prepared) -> float:
        """PSNR of the scan's own latent, decoded, in the brain on the model's grid, dB; the peak is 1."""
        with torch.inference_mode():
            mean, _ = self.space.encode(torch.from_numpy(prepared.image)[None, None].to(self.device))
        brain = prepared.image > 0
        error = (self.decode(_array(mean)) - prepared.image)[brain]
        return float(-10 * np.log10(max(float((error**2).mean(dtype=np.float64)), 1e-12)))

    @property
    def sampling(self) -> DiffusionSampling:
        """How it is run."""
        assert isinstance(self.preset.sampling, DiffusionSampling)
        return self.preset.sampling

    def encode(
        self,
        image: np.ndarray,
        scan: ScanFacts,
        source: Condition,
        guessed: Sequence[str] = (),
        seed: int = 0,
        command: str = "",
    ) -> Latent:
        """The latent of a scan on the model's grid.

        Args:
            image: (X, Y, Z), normalised.
            source: what the scan is taken to be; guessed: which of that a model read off it.
            seed: of all that will be drawn for it.
        """
        x = torch.from_numpy(image)[None, None].to(self.device)
        with torch.inference_mode():
            mean, std = self.space.encode(x)
        facts = LatentFacts(
            kind="encoded",
            preset=self.preset.name,
            resolved=self.preset.table(),
            weights={role: used for role, used in self.used.items() if role == "space"},
            space=self.space.facts,
            grid=self.facts.grid,
            seed=seed,
            scan=scan,
            source=source,
            guessed=tuple(guessed),
            provenance=(command,) if command else (),
        )
        return Latent(facts, {"mean": _array(mean), "std": _array(std)})

    def invert(self, latent: Latent, command: str = "", record: Record | None = None) -> Latent:
        """The state that sampling starts from: the latent noised, inverted or recorded, as the preset says.

        Raises:
            LatentError: it is no encoded scan of this model. PresetError: the preset starts from no scan.
        """
        latent.check_kind("encoded")
        self._check(latent)
        scene = Scene(taken_by(self.network, self._tensor(latent.tensors["mean"])))
        begun = self.sampler.up(scene, self.told(latent.source), self._draws(latent), record)
        kept: dict[str, np.ndarray] = {}
        if begun.state is not None:
            kept = {"before": _array(begun.state.x), "before_time": _scalar(begun.state.t, latent)}
        if begun.tape is not None:
            kept = {"tape": np.stack([_array(code) for code in begun.tape.codes])}
        time, path, how, solver, steps = self.sampler.way
        facts = StateFacts(time, path, how, solver, steps, begun.evaluations)  # type: ignore[arg-type]
        return self._signed(latent).as_state(_array(begun.x), facts, kept, {"denoiser": self.used["denoiser"]}, command)

    def resample(
        self,
        latent: Latent,
        targets: Sequence[Target],
        factual: bool = True,
        command: str = "",
        record: Record | None = None,
    ) -> Latent:
        """The latent under other conditions, each in turn, and once under its own.

        Args:
            targets: what it is made; all share start, steps and draws.
            factual: also under the source's own condition, which carries by residual or warp need.
        Raises:
            LatentError: it is no state of this model, or was brought there in another way.
        """
        latent.check_kind("state")
        self._check(latent)
        self.used_by(latent, "denoiser")
        state = latent.facts.state
        assert state is not None
        if (state.time, state.path, state.start, state.solver, state.steps) != self.sampler.way:
            raise LatentError(f"{latent.name}: was inverted under other settings: use the same, or invert again")
        edits = [self._sample(latent, Condition(target.condition), record) for target in targets]
        own = self._sample(latent, latent.source, record) if factual else None
        return self._signed(latent).as_edits(targets, edits, own, {"denoiser": self.used["denoiser"]}, command)

    def synthesise(
        self, targets: Sequence[Target], seed: int, sample: int, command: str = "", record: Record | None = None
    ) -> Latent:
        """New latents, one a condition, all from the noise of one sample number."""
        like = torch.zeros((1, *self.space.facts.latent_shape), device=self.device)
        draws = noise.Draws(seed, (sample,))
        preset = self.preset.without_scan()
        assert isinstance(preset.sampling, DiffusionSampling)
        sampler = replace(self.sampler, sampling=preset.sampling)
        facts = LatentFacts(
            kind="edited",
            preset=self.preset.name,
            resolved=preset.table(),
            weights=self.used,
            space=self.space.facts,
            grid=self.facts.grid,
            seed=seed,
            targets=tuple(targets),
            provenance=(command,) if command else (),
        )
        begun = Started(start.prior(like, sampler.numbered(draws, 0)))
        edits = [
            sampler.down(begun, Scene(), self.told(Condition(target.condition)), draws, record=record)
            for target in targets
        ]
        return Latent(facts, {f"edited.{index}": _array(given_by(self.network, x)) for index, x in enumerate(edits)})

    def sample(self, condition: Condition, seed: int, sample: int, command: str = "") -> np.ndarray:
        """A new scan on the model's grid, (X, Y, Z), from the noise of one sample number."""
        return self.decode(self.synthesise([Target(condition)], seed, sample, command).edited[0])

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """The image of one latent, (1, C, *sides) -> (X, Y, Z) float32."""
        return decoded(self.space, latent)

    def used_by(self, latent: Latent, role: str) -> None:
        """Raise a LatentError unless the latent was made with this model's weights in that role."""
        latent.check(self.used[role].sha256, role)

    def _signed(self, latent: Latent) -> Latent:
        """The latent with this model's preset, flags and all, in its facts."""
        return replace(latent, facts=replace(latent.facts, resolved=self.preset.table()))

    def _check(self, latent: Latent) -> None:
        if "space" in self.used:
            self.used_by(latent, "space")
        if latent.facts.space != self.space.facts or latent.facts.grid != self.facts.grid:
            raise LatentError(f"{latent.name}: lives in another space than {self.preset.name}'s: encode again")

    def _sample(self, latent: Latent, condition: Condition, record: Record | None) -> np.ndarray:
        mean = latent.tensors.get("mean")
        scene = Scene() if mean is None else Scene(taken_by(self.network, self._tensor(mean)))
        state = tape = None
        if "before" in latent.solver:
            state = Before(float(latent.solver["before_time"].flat[0]), self._tensor(latent.solver["before"]))
        if "tape" in latent.solver:
            tape = noise.Tape(tuple(self._tensor(code) for code in latent.solver["tape"]))
        begun = Started(self._tensor(latent.tensors["x_t"]), state, tape)
        x = self.sampler.down(begun, scene, self.told(condition), self._draws(latent), record=record)
        return _array(given_by(self.network, x))

    @property
    def sampler(self) -> Sampler:
        """What runs the network."""
        assert self.facts.diffusion is not None
        return Sampler(self.sampling, self.facts.diffusion, self.network)

    def _draws(self, latent: Latent) -> noise.Draws:
        return noise.Draws(latent.facts.seed, tuple(range(len(next(iter(latent.tensors.values()))))))

    def told(self, condition: Condition) -> Inputs:
        """A condition as the network takes it, with the null for guidance."""
        variables = self.facts.variables
        if not variables:
            return Inputs()
        context = torch.tensor([encoded(condition, variables)]).to(self.device)
        return Inputs(context=context, null=torch.full_like(context, torch.nan))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _scalar(value: float, latent: Latent) -> np.ndarray:
    """A number in a latent's shape: that is what latents hold."""
    return np.full_like(latent.tensors["mean"], value)
