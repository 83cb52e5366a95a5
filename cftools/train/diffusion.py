"""Training a denoiser on latents of simulated subjects, made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.data import Dataset

from cftools.diffusion.denoiser import Prediction, solved, target
from cftools.diffusion.path import Path, describe
from cftools.facts import DiffusionFacts, SpaceFacts
from cftools.nets.standard import given_by, taken_by
from cftools.nets.unet import UNet, UNetArchitecture
from cftools.schema import FrozenMapping
from cftools.train.loop import Product
from cftools.train.people import People, joined
from cftools.train.store import Store

#: Latents by number: mean and std, (N, C, *sides) each, and the condition of each, (N, V), nan where unknown.
Encoded = Callable[[int], dict[str, Tensor]]
#: Latents in a picture, and subjects from whom it is learned what is usual.
SHOWN, TYPICAL = 4, 24


class Latents(Dataset[dict[str, Tensor]]):
    """Item i holds latents of some subjects at some ages, drawn anew from N(mean, std), with their conditions.

    latent: (S, A, C, *sides); context: (S, A, V). A step may meet all whom the cohort has so far; new subjects join it
    until it is full.

    Args:
        encoded: a subject's latents at some ages; the same number always gives the same.
        people: whose they are.
        seed: of the draws.
        batch: latents in all, a multiple of ages.
        ages: of each subject, all different.
        every: steps after which another subject joins.
        store: where they are kept, in half precision.
    """

    def __init__(
        self,
        encoded: Encoded,
        people: People,
        seed: int,
        batch: int,
        ages: int = 1,
        every: int = 1,
        store: Store | None = None,
    ) -> None:
        self.encoded, self.people, self.seed = encoded, people, seed
        self.subjects, self.ages, self.every = max(batch // ages, 1), ages, every
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 7, index])
        rows = []
        for number in joined(random, self.people, index, self.subjects, self.every):
            subject = self._subject(number)
            some = random.permutation(len(subject["mean"]))[: self.ages]
            rows.append({name: values[torch.from_numpy(some)].float() for name, values in subject.items()})
        item = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        shape = (self.subjects, 1, *item["mean"].shape[2:])  # one draw for all ages: they differ by age alone
        draws = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
        return {"latent": item["mean"] + item["std"] * draws, "context": item["context"]}

    def typical(self) -> Tensor:
        """Latents of the first subjects at all their ages, (B, C, *sides)."""
        return torch.cat([self._subject(number)["mean"].float() for number in range(min(TYPICAL, self.people.size))])

    def fill(self, encoded: Encoded) -> None:
        """Keep everybody, of those who are not kept yet what `encoded` makes of them: on a GPU, not in workers."""
        for number in range(self.people.size):
            self.store.get(number, partial(self.halved, number, encoded))

    def _subject(self, number: int) -> dict[str, Tensor]:
        return self.store.get(number, lambda: self.halved(number, self.encoded))

    def halved(self, number: int, encoded: Encoded) -> dict[str, Tensor]:
        """What is kept of a subject."""
        made = encoded(number)
        return {**made, "mean": made["mean"].half(), "std": made["std"].half()}


@dataclass(frozen=True)
class Levels:
    """How much signal and noise there is in each of B latents.

    Attributes:
        alpha, sigma: (B, 1, ...), to multiply latents with.
        network_time: what the network is told, (B,).
    """

    alpha: Tensor
    sigma: Tensor
    network_time: Tensor


def levels(path: Path, times: Tensor, like: Tensor) -> Levels:
    """Of times that are on the CPU, (B,), for latents (B, C, *sides); one small copy, which nothing waits for."""
    with unset_fake_temporarily():
        rows = torch.tensor([[*path.at(t), path.network_time(t)] for t in times.tolist()], dtype=torch.float32)
    alpha, sigma, told = rows.to(like.device, non_blocking=True).unbind(1)
    shape = (-1, *[1] * (like.ndim - 1))
    return Levels(alpha.view(shape), sigma.view(shape), told)


def trained_times(path: Path, times: Tensor) -> Tensor:
    """The times themselves, or of a path of so many times the next that a network was trained at."""
    return (times * path.times).ceil().clamp(1, path.times) / path.times if path.times else times


@dataclass(frozen=True)
class Draw:
    """What one step denoises: B = S x A latents, the ages of a subject one after another, under its time and noise.

    Attributes:
        clean, eps: (B, C, *sides).
        context: the condition as it is known, (B, V), nan where it is not.
        times: (B,), on the CPU; levels: what the path says of them.
        withheld: what the network is not told of whom, (S, 1) or (S, V).
        ages: A.
    """

    clean: Tensor
    context: Tensor
    eps: Tensor
    times: Tensor
    levels: Levels
    withheld: Tensor
    ages: int

    @property
    def noisy(self) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return self.levels.alpha * self.clean + self.levels.sigma * self.eps

    def told(self, context: Tensor) -> Tensor:
        """A condition of each latent, (B, V), with nan for what is withheld."""
        return torch.where(self.withheld.repeat_interleave(self.ages, dim=0), torch.nan, context)


@dataclass(frozen=True)
class DiffusionObjective:
    """Mean squared error of the prediction: Ho et al. 2020, eq. 14, for eps; its like for x0, v and flow.

    A subject's ages share time and noise: what cannot be told of the subject is the same for all of them, and what is
    left between them is the condition's doing. That part is small, and `twin` weighs the error in it once more.

    Attributes:
        twin: weight of the mean squared error in how a subject's ages differ from their mean.
        dropout: share of items whose condition is withheld whole, so that the null is learned; and the share of which
            each of several variables is.
        space, space_sha256: of the latents, and of the weights that made them.
        decode: latents (B, C, *sides) to images (B, 1, X, Y, Z) where those are, for pictures and what a channel does;
            None draws none, and takes all channels to do the same.
        typical: latents (B, C, *sides) from which a network that takes them centred learns how.
        unlike: so many latents, (count, C, *sides), for a network's templates to begin with.
        fill: encodes all scans of a cohort on a device, once; None where people are simulated as the training goes.
    """

    architecture: UNetArchitecture
    latents: Dataset[dict[str, Tensor]]
    path: Path
    prediction: Prediction
    dropout: float
    seed: int
    data: dict[str, Any]
    space: SpaceFacts
    space_sha256: str = ""
    twin: float = 0.0
    decode: Callable[[Tensor], Tensor] | None = None
    typical: Callable[[], Tensor] | None = None
    unlike: Callable[[int], Tensor] | None = None
    fill: Callable[[torch.device], None] | None = None

    def prepare(self, device: torch.device) -> None:
        """Encode a cohort where the network is trained, if that is a GPU: one worker takes a hundred times as long."""
        if self.fill is not None and device.type != "cpu":
            self.fill(device)

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return UNet(self.architecture)

    def settle(self, network: nn.Module) -> None:
        """What is usual among those that it will be trained on, if the network takes latents centred; its templates."""
        standard, templates = (getattr(network, name, None) for name in ("standard", "templates"))
        if standard is not None and self.typical is not None:
            standard.learn(self.typical().to(standard.centre.device), self.decode)
        if standard is not None and templates is not None and self.unlike is not None:
            templates.learn(self.unlike(len(templates.images)).to(standard.spread.device) / standard.spread)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.latents

    def description(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "path": repr(self.path),
            "prediction": self.prediction,
            "space": self.space_sha256,
            "dropout": self.dropout,
            "seed": self.seed,
            "data": self.data,
            "twin": self.twin,
        }

    def product(self, network: nn.Module) -> Product:
        name, settings = describe(self.path)
        facts = DiffusionFacts(name, self.prediction, FrozenMapping(settings), space=self.space_sha256)
        return Product(network, self.space, facts)

    def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor | None:
        """Latents, the same noised, and what the network takes them for, decoded, (B, 3, X, Y, Z)."""
        if self.decode is None:
            return None
        draw = self.drawn(network, item)
        said = network(draw.noisy, draw.levels.network_time, draw.told(draw.context)).float()
        estimate = solved(self.prediction, said, draw.noisy, draw.levels.alpha, draw.levels.sigma).x0
        shown = (given_by(network, x)[:SHOWN] for x in (draw.clean, draw.noisy, estimate))
        return torch.cat([self.decode(x) for x in shown], dim=1)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        draw = self.drawn(network, item)
        return self.judged(network, draw, draw.told(draw.context))

    def drawn(self, network: nn.Module, item: dict[str, Tensor]) -> Draw:
        """A time and a noise for each subject, and what is withheld of its condition; clean as the network has it."""
        subjects, ages = item["latent"].shape[:2]
        clean, context = taken_by(network, item["latent"].flatten(0, 1)), item["context"].flatten(0, 1)
        # One time in each of S equal parts: the loss of a step varies less (Kingma et al. 2021, appendix I.1).
        with unset_fake_temporarily():  # `estimate` looks at shapes alone, but the path is asked about numbers
            times = trained_times(self.path, (torch.arange(subjects) + torch.rand(subjects)) / subjects)
            times = times.repeat_interleave(ages)
        # All of it, which guidance goes on from; and of several each on its own, as not all is known of every scan.
        withheld = (torch.rand(subjects, device=clean.device) < self.dropout)[:, None]
        if (variables := context.shape[1]) > 1:
            withheld = withheld | (torch.rand((subjects, variables), device=clean.device) < self.dropout)
        eps = torch.randn_like(item["latent"][:, 0]).repeat_interleave(ages, dim=0)
        return Draw(clean, context, eps, times, levels(self.path, times, clean), withheld, ages)

    def judged(self, network: nn.Module, draw: Draw, told: Tensor) -> dict[str, Tensor]:
        """The losses where the network is told this of what was drawn, (B, V)."""
        said = network(draw.noisy, draw.levels.network_time, told)
        wanted = target(self.prediction, draw.clean, draw.eps, draw.levels.alpha, draw.levels.sigma)
        error = (said.float() - wanted).unflatten(0, (-1, draw.ages))
        loss = error.square().mean()
        if not self.twin:
            return {"loss": loss}
        told_all = (~draw.withheld.any(1)).float().view(-1, *[1] * (error.ndim - 1))
        apart = ((error - error.mean(1, keepdim=True)).square() * told_all).mean()
        return {"loss": loss + self.twin * apart, "all": loss, "apart": apart}
