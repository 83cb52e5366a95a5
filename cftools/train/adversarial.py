"""Training one-pass generators against critics: VAE-GAN and alpha-GAN, conditioned on age and sex.

Both sides take one step at once, from one sum of losses: what a critic says of an image reaches the generator alone
(`unmoved`), and what a critic learns the critic alone, as images are detached there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.errors import PresetError
from cftools.nets.critic import CodeCritic, ImageCritic, Rivals, unmoved
from cftools.nets.generator import Generator, GeneratorArchitecture
from cftools.prepare import Grid
from cftools.recipe import Recipe
from cftools.train.building import architecture_of
from cftools.train.loop import Product
from cftools.train.people import Batches

if TYPE_CHECKING:
    from cftools.train.kinds import Job

#: Adam's betas: little momentum for what is trained against a critic, none for the critic (Gulrajani et al. 2017).
GENERATOR_BETAS, CRITIC_BETAS = (0.5, 0.99), (0.0, 0.99)
#: A critic learns so much faster, instead of taking several steps to the generator's one (Heusel et al. 2017).
CRITIC_RATE = 2.0


@dataclass(frozen=True)
class _Adversarial:
    """What the objectives below share.

    Attributes:
        images: items of image (S, T, 1, X, Y, Z) and context (S, T, V), as `people.Batches` gives them.
        critic: widths of the image critic.
        dropout: share of items whose condition is withheld, so that the generator can go without it.
        weights: of the losses, by name.
    """

    architecture: GeneratorArchitecture
    images: Dataset[dict[str, Tensor]]
    critic: tuple[int, ...]
    dropout: float
    seed: int
    weights: dict[str, float]
    data: dict[str, Any]

    #: Whether the encoder says how sure it is.
    VARIATIONAL = False

    @classmethod
    def architecture_for(cls, recipe: Recipe, conditions: Sequence[str], grid: Grid) -> GeneratorArchitecture:
        """The network of a recipe. Raises a PresetError where it is none."""
        critic = recipe.data.get("critic", (16,))
        widths = isinstance(critic, (list, tuple)) and all(type(width) is int and width > 0 for width in critic)
        if not critic or not widths:
            raise PresetError(f"data.critic: {critic}: a list of one width or more")
        made: GeneratorArchitecture = architecture_of(
            GeneratorArchitecture,
            recipe,
            sides=grid.shape,
            variables=len(conditions),
            variational=cls.VARIATIONAL,
        )
        return made

    @classmethod
    def of(cls, job: Job, architecture: GeneratorArchitecture) -> Self:
        """The objective of a job, on its people. Raises a PresetError as `Batches.of`."""
        critic, dropout = tuple(job.data["critic"]), float(job.data["dropout"])
        return cls(architecture, Batches.of(job), critic, dropout, job.seed, dict(job.losses), job.record)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.images

    def description(self) -> dict[str, Any]:
        return {
            "objective": type(self).__name__,
            "architecture": asdict(self.architecture),
            "critic": list(self.critic),
            "dropout": self.dropout,
            "seed": self.seed,
            "losses": self.weights,
            "data": self.data,
        }

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups: the generator, and its critics."""
        assert isinstance(network, Rivals)
        critics = [value for name, value in network.named_parameters() if not name.startswith("kept.")]
        return [
            {"params": list(network.kept.parameters()), "betas": GENERATOR_BETAS},
            {"params": critics, "betas": CRITIC_BETAS, "factor": CRITIC_RATE, "weight_decay": 0.0},
        ]

    def product(self, network: nn.Module) -> Product:
        """The generator with its encoder, without critics."""
        assert isinstance(network, Rivals)
        return Product(network.kept.eval())

    def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor:
        """Scans, what the generator makes of their codes, and what it makes of the prior, (B, 3, X, Y, Z)."""
        assert isinstance(network, Rivals)
        x, context = item["image"].flatten(0, 1), item["context"].flatten(0, 1)
        z, _ = network.kept.encode(x, context)
        return torch.cat([x, network.kept.decode(z, context), network.kept.decode(torch.randn_like(z), context)], dim=1)

    @property
    def _rivalry(self) -> bool:
        """Whether there is a critic of images: a first stage goes without, which learns to reconstruct sooner."""
        return self.weights["adversarial"] > 0

    def _image_critic(self, spectral: bool = False) -> ImageCritic:
        return ImageCritic(self.critic, self.architecture.variables, spectral, self.architecture.wavelets)

    def _scene(self, item: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 1, X, Y, Z), their conditions (B, V), some withheld, and the same in another order."""
        x, context = item["image"].flatten(0, 1), item["context"].flatten(0, 1)
        withheld = torch.rand((len(x), 1), device=x.device) < self.dropout
        context = torch.where(withheld, torch.nan, context)
        return x, context, context[torch.randperm(len(x), device=x.device)]


@dataclass(frozen=True)
class VaeGanObjective(_Adversarial):
    """VAE-GAN, Larsen et al. 2016, eq. 8, with encoder, decoder and critic told the condition.

    kl KL(q(z|x) | N(0, 1)) + features |D_l(x) - D_l(G(z))|^2 + l1 |x - G(z)| + adversarial L_G, where L_G =
    -log D(G(z)) for codes of scans and of the prior, and the critic's own -log D(x) - log(1 - D(G(z))).

    Departures, for a stable run: an L1 beside the critic's features; these by their own mean square, so that no scale
    of the critic's moves the weight; the encoder hears the critic too; spectral norm in the critic (Miyato et al.
    2018); and the adversarial term as strong as the reconstruction's (`balance`).
    """

    VARIATIONAL = True

    def network(self) -> Rivals:
        torch.manual_seed(self.seed)
        return Rivals(Generator(self.architecture), self._image_critic(spectral=True))

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(network, Rivals)
        x, context, other = self._scene(item)
        mean, std = network.kept.encode(x, context)
        z = mean + std * torch.randn_like(std)
        # Summed over the code and divided by the images: nats.
        kl = 0.5 * (mean**2 + std**2 - 2 * std.log() - 1).sum() / len(x)
        if not self._rivalry:
            l1 = functional.l1_loss(network.kept.decode(z, context), x)
            return {"loss": self.weights["l1"] * l1 + self.weights["kl"] * kl, "l1": l1, "kl": kl}
        told = torch.cat([context, other])
        y = network.kept.decode(torch.cat([z, torch.randn_like(z)]), told)
        said, features = network.critic(x, context)
        fakes, _ = network.critic(y.detach(), told)
        judged, seen = unmoved(network.critic, y, told)
        with torch.autocast(x.device.type, enabled=False):
            goal = features.detach()
            like = (seen[: len(x)] - goal).square().mean() / goal.square().mean().clamp_min(1e-12)
            l1 = functional.l1_loss(y[: len(x)], x)
            shown = self.weights["l1"] * l1 + self.weights["features"] * like
            fooled = functional.softplus(-judged).mean()
            critic = functional.softplus(-said).mean() + functional.softplus(fakes).mean()
            scale = self.weights["adversarial"] * balance(shown, fooled, y)
            loss = shown + self.weights["kl"] * kl + scale * fooled + critic
        return {"loss": loss, "l1": l1, "features": like, "kl": kl, "fooled": fooled, "critic": critic, "scale": scale}


@dataclass(frozen=True)
class AlphaGanObjective(_Adversarial):
    """Alpha-GAN with Wasserstein critics, Kwon et al. 2019, with all networks told the condition.

    Generator and encoder: l1 |x - G(E(x))| - adversarial (D(G(E(x))) + D(G(z))) / 2 - code C(E(x)). Image critic: the
    mean of D(G(E(x))) and D(G(z)), less D(x); code critic: C(E(x)) - C(z), so that codes look like the prior; both with
    gradient_penalty (|grad| - 1)^2 (Gulrajani et al. 2017, eq. 3).

    Departures, for a stable run: one step of all networks at once, the critics at a higher rate; and what critics say
    as strong as the reconstruction (`balance`), which in the paper depends on the number of voxels.
    """

    def network(self) -> Rivals:
        torch.manual_seed(self.seed)
        codes = CodeCritic(self.architecture.code, self.architecture.variables)
        return Rivals(Generator(self.architecture), self._image_critic(), codes)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(network, Rivals)
        x, context, other = self._scene(item)
        z, _ = network.kept.encode(x, context)
        prior, told = torch.randn_like(z), torch.cat([context, other])
        y = network.kept.decode(torch.cat([z, prior]) if self._rivalry else z, told if self._rivalry else context)
        with torch.autocast(x.device.type, enabled=False):
            l1 = functional.l1_loss(y[: len(x)], x)
            shown = self.weights["l1"] * l1
            coded = -unmoved(network.codes, z, context).mean()
            apart = network.codes(prior, context).mean() - network.codes(z.detach(), context).mean()
            penalty_codes = gradient_penalty(lambda code: network.codes(code, context), prior, z.detach())
            loss = shown + self.weights["code"] * balance(shown, coded, z) * coded - apart
            loss = loss + self.weights["gradient_penalty"] * penalty_codes
        found = {"l1": l1, "codes_distance": apart, "codes_penalty": penalty_codes, "codes_square": z.square().mean()}
        if not self._rivalry:
            return {"loss": loss, **found}
        fooled = -unmoved(network.critic, y, told)[0].mean()
        distance = network.critic(x, context)[0].mean() - network.critic(y.detach(), told)[0].mean()
        # Of both kinds of fakes: each second image of the prior's, and the scans' own codes' for the others.
        even = (torch.arange(len(x), device=x.device) % 2 == 0).view(-1, 1, 1, 1, 1)
        fakes = torch.where(even, y[: len(x)], y[len(x) :]).detach()
        penalty = gradient_penalty(lambda image: network.critic(image, context)[0], x, fakes)
        scale = self.weights["adversarial"] * balance(shown, fooled, y)
        loss = loss + scale * fooled - distance + self.weights["gradient_penalty"] * penalty
        return {"loss": loss, **found, "distance": distance, "penalty": penalty, "scale": scale}


def balance(reconstruction: Tensor, adversarial: Tensor, at: Tensor) -> Tensor:
    """What makes a critic's word as strong as the reconstruction's: the ratio of their gradients' norms.

    Esser et al. 2021 (VQGAN), eq. 7, there at the last layer's weights, here at what the critic sees; a constant for
    the backward pass.

    Args:
        reconstruction, adversarial: scalars; at: the tensor that both depend on.
    """
    one, other = (
        torch.autograd.grad(loss, at, retain_graph=True)[0].float().norm() for loss in (reconstruction, adversarial)
    )
    return (one / (other + 1e-8)).clamp(max=1e4).detach()


def gradient_penalty(critic: Any, real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|grad critic(x)| - 1)^2 at points drawn between real and fake (Gulrajani et al. 2017, eq. 3).

    Args:
        critic: (B, ...) -> (B,), each row from its own alone; real, fake: (B, ...), without gradients.
    """
    part = torch.rand((len(real), *[1] * (real.ndim - 1)), device=real.device)
    # A clone, as what counts the operations of a training cannot follow a gradient to a leaf.
    between = torch.lerp(fake, real, part).requires_grad_(True).clone()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Not the norm itself: its gradient at 0, where a fresh critic may be, is nan.
    length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (length - 1).square().mean()
