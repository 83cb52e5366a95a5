"""Training a vector-quantised autoencoder, and the transformer that draws its tokens, conditioned on age and sex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools import weights
from cftools.autoregress import load_vq
from cftools.errors import PresetError
from cftools.facts import SpaceFacts, TokenFacts
from cftools.nets.autoencoder import Critic
from cftools.nets.critic import Rivals, unmoved
from cftools.nets.tokens import TokenTransformer, TransformerArchitecture, VqArchitecture, VqAutoencoder
from cftools.prepare import Grid
from cftools.recipe import Recipe
from cftools.space import VqSpace
from cftools.train.adversarial import balance
from cftools.train.building import architecture_of
from cftools.train.loop import Product
from cftools.train.people import Batches, People, joined
from cftools.train.store import Made, Store

if TYPE_CHECKING:
    from cftools.train.kinds import Job

#: A code that is used less than this part of its fair share moves to where encodings are.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class VqObjective:
    """The first stage of Tudosiu et al. 2022.

    l1 |x - y| + spectral (|F x| - |F y|)^2 of the Fourier amplitudes (Dhariwal et al. 2020, Jukebox) + commitment
    |E(x) - sg e|^2 (van den Oord et al. 2017, eq. 3) + adversarial (D(y) - 1)^2, and the critic's own (D(x) - 1)^2 +
    D(y)^2 (Mao et al. 2017). Departures: no perceptual loss, as there is no network for it here; codes that fall out of
    use are moved; the adversarial term is measured by the reconstruction's (`balance`).

    Attributes:
        images: items of image (S, T, 1, X, Y, Z), as `people.Batches` gives them.
    """

    architecture: VqArchitecture
    images: Dataset[dict[str, Tensor]]
    seed: int
    weights: dict[str, float]
    data: dict[str, Any]

    @classmethod
    def architecture_for(cls, recipe: Recipe, conditions: Sequence[str], grid: Grid) -> VqArchitecture:
        """The network of a recipe. Raises a PresetError where it is none."""
        made: VqArchitecture = architecture_of(VqArchitecture, recipe, sides=grid.shape)
        return made

    @classmethod
    def of(cls, job: Job, architecture: VqArchitecture) -> Self:
        """The objective of a job, on its people."""
        return cls(architecture, Batches.of(job), job.seed, dict(job.losses), job.record)

    def network(self) -> Rivals:
        torch.manual_seed(self.seed)
        return Rivals(VqAutoencoder(self.architecture), Critic())

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.images

    def description(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "seed": self.seed,
            "losses": self.weights,
            "data": self.data,
        }

    def product(self, network: nn.Module) -> Product:
        """The autoencoder with its codebook, without its critic."""
        assert isinstance(network, Rivals)
        a = self.architecture
        return Product(network.kept.eval(), space=SpaceFacts("vq", a.sides, a.code, a.factor))

    def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor:
        """Scans and what is left of them in tokens, (B, 2, X, Y, Z)."""
        assert isinstance(network, Rivals)
        x = item["image"].flatten(0, 1)
        codes, _ = network.kept.quantized(network.kept.encode(x))
        return torch.cat([x, network.kept.decode(codes)], dim=1)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(network, Rivals)
        x = item["image"].flatten(0, 1)
        encodings = network.kept.encode(x)
        codes, commitment = network.kept.quantized(encodings)
        y = network.kept.decode(codes)
        used = network.kept.revive(encodings, LEAST_SHARE) if network.training else x.new_zeros(())
        if self.weights["adversarial"]:
            judged, real, fake = (
                unmoved(network.critic, y).float(),
                network.critic(x).float(),
                network.critic(y.detach()).float(),
            )
        with torch.autocast(x.device.type, enabled=False):
            l1 = functional.l1_loss(y, x)
            spectral = functional.mse_loss(amplitudes(y), amplitudes(x))
            shown = self.weights["l1"] * l1 + self.weights["spectral"] * spectral
            loss = shown + commitment
            perplexity = network.kept.quantizer.perplexity
            found = {"l1": l1, "spectral": spectral, "commitment": commitment, "used": used, "perplexity": perplexity}
            if self.weights["adversarial"]:
                fooled = (judged - 1).square().mean()
                critic = (real - 1).square().mean() + fake.square().mean()
                scale = self.weights["adversarial"] * balance(shown, fooled, y)
                loss = loss + scale * fooled + critic
                found |= {"fooled": fooled, "critic": critic, "scale": scale}
        return {"loss": loss, **found}


def amplitudes(images: Tensor) -> Tensor:
    """Fourier amplitudes of images (B, 1, X, Y, Z), orthonormal."""
    waves = torch.fft.rfftn(images, dim=(2, 3, 4), norm="ortho")
    # Smooth at 0, where the gradient of an absolute value is none.
    return (waves.real.square() + waves.imag.square() + 1e-10).sqrt()


class Sequences(Dataset[Made]):
    """Item i holds some people's tokens, at an age and mirrored or not at random: tokens (B, N), context (B, V).

    Args:
        encoded: a person's tokens by number; see `tokens_of`.
        people: whose they are; seed: of the draws; batch: B.
        every: steps after which another person joins; store: where tokens are kept.
    """

    def __init__(self, encoded: Any, people: People, seed: int, batch: int, every: int, store: Store) -> None:
        self.encoded, self.people, self.seed = encoded, people, seed
        self.batch, self.every, self.store = batch, every, store

    def __getitem__(self, index: int) -> Made:
        random = np.random.default_rng([self.seed, 16, index])
        rows = []
        for number in joined(random, self.people, index, self.batch, self.every):
            kept = self.store.get(number, partial(self.encoded, number))
            row = int(random.integers(len(kept["tokens"])))
            rows.append({name: values[row] for name, values in kept.items()})
        item = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {"tokens": item["tokens"].long(), "context": item["context"]}


def tokens_of(space: VqSpace, people: People, number: int) -> Made:
    """A person's tokens at each age, and mirrored: tokens (2 A, N) int16, context (2 A, V)."""
    scans = people.scans(number)
    with torch.inference_mode():
        found = [
            space.indices(image[None].float()).flatten(1)
            for image in (*scans["image"], *scans["image"].flip(2))  # one after the other: memory of one
        ]
    return {"tokens": torch.cat(found).short().clone(), "context": scans["context"].repeat(2, 1)}


@dataclass(frozen=True)
class TransformerObjective:
    """Cross-entropy of each token given those before it and the condition: the second stage of Tudosiu et al. 2022.

    Attributes:
        sequences: items of tokens (B, N) and context (B, V).
        dropout: share of items whose condition is withheld, and of which each variable is.
        space, space_sha256: of the tokens, and of the weights that made them.
    """

    architecture: TransformerArchitecture
    sequences: Dataset[dict[str, Tensor]]
    dropout: float
    seed: int
    data: dict[str, Any]
    space: SpaceFacts
    space_sha256: str

    @classmethod
    def architecture_for(cls, recipe: Recipe, conditions: Sequence[str], grid: Grid) -> TransformerArchitecture:
        """The network of a recipe, over the tokens of its space.

        Raises:
            PresetError: it is none, or the space is of no tokens or on another grid.
        """
        name = str(recipe.data.get("space", ""))
        known = weights.facts_of(name)
        if known.space is None or known.space.kind != "vq":
            raise PresetError(f"data.space: {name} are no weights of a vector-quantised autoencoder")
        if known.grid.name != grid.name:
            raise PresetError(f"data.space: {name} encode images on {known.grid.name}, not on {grid.name}")
        made: TransformerArchitecture = architecture_of(
            TransformerArchitecture,
            recipe,
            codes=int(known.architecture_arguments["codes"]),
            length=int(np.prod(known.space.latent_shape[1:])),
            variables=len(conditions),
        )
        return made

    @classmethod
    def of(cls, job: Job, architecture: TransformerArchitecture) -> Self:
        """The objective of a job, on its people's tokens."""
        space, checkpoint = load_vq(str(job.data["space"]))
        ages = int(job.data["ages"])
        people = job.people(ages)
        store = job.store(
            "tokens", space=checkpoint.sha256, ages=ages, conditions=job.conditions, real=job.record["real"]
        )
        encoded = partial(tokens_of, space, people)
        sequences = Sequences(encoded, people, job.seed, int(job.data["sequences"]), int(job.data["every"]), store)
        dropout = float(job.data["dropout"])
        return cls(architecture, sequences, dropout, job.seed, job.record, space.facts, checkpoint.sha256)

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return TokenTransformer(self.architecture)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.sequences

    def description(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "dropout": self.dropout,
            "seed": self.seed,
            "data": self.data,
            "space": self.space_sha256,
        }

    def product(self, network: nn.Module) -> Product:
        return Product(network, space=self.space, tokens=TokenFacts(self.space_sha256))

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens, context = item["tokens"], item["context"]
        withheld = torch.rand((len(tokens), 1), device=tokens.device) < self.dropout
        withheld = withheld | (torch.rand(context.shape, device=tokens.device) < self.dropout)
        logits = network(tokens, torch.where(withheld, torch.nan, context))
        return {"loss": functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())}
