"""Scans as tokens, drawn one after the other by a transformer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cftools.condition import Condition, encoded
from cftools.diffusion.noise import Draws
from cftools.errors import WeightsError
from cftools.nets.tokens import TokenTransformer, TransformerArchitecture, VqArchitecture, VqAutoencoder
from cftools.preset import Preset, TokenSampling
from cftools.space import VqSpace
from cftools.weights import Checkpoint, load


def load_vq(name: str, device: torch.device | str = "cpu") -> tuple[VqSpace, Checkpoint]:
    """A space of tokens whose weights have a name or a path, with what was loaded.

    Raises:
        WeightsError: there are none, or they are of no vector-quantised autoencoder.
    """
    checkpoint = load(name, expect="vqvae")
    if checkpoint.facts.space is None:
        raise WeightsError(f"{name}: does not say what it encodes to: train it anew")
    return VqSpace(checkpoint.facts.space, checkpoint.network(VqAutoencoder, VqArchitecture).to(device)), checkpoint


class TokenMethod:
    """Tokens from p(token | tokens before it, condition), and their image. There is no edit: tokens are drawn anew."""

    def __init__(self, sampling: TokenSampling, checkpoint: Checkpoint, space: VqSpace, device: torch.device) -> None:
        self.sampling, self.facts, self.space, self.device = sampling, checkpoint.facts, space, device
        self.network = checkpoint.network(TokenTransformer, TransformerArchitecture).to(device)

    @classmethod
    def of(cls, preset: Preset, name: str, device: torch.device) -> tuple[TokenMethod, dict[str, Checkpoint]]:
        """The transformer of a name or path with its space, and what was loaded, by role.

        Raises:
            WeightsError: there are no such weights, or the two were not made for each other.
        """
        assert isinstance(preset.sampling, TokenSampling)
        checkpoint = load(name, expect="token-transformer")
        space, coded = load_vq(preset.weights["space"][0], device)
        if checkpoint.facts.tokens is None or checkpoint.facts.tokens.space != coded.sha256:
            raise WeightsError(f"{name}: draws the tokens of another space than that of {coded.name}")
        return cls(preset.sampling, checkpoint, space, device), {preset.main_role: checkpoint, "space": coded}

    def sample(self, condition: Condition, seed: int, sample: int, command: str = "") -> np.ndarray:
        """A new scan on the model's grid, (X, Y, Z), from the noise of one sample number.

        Args:
            command: for those who keep it.
        """
        facts = self.space.facts
        with torch.inference_mode():
            tokens = self.draw(condition, Draws(seed, (sample,)))
            codes = self.space.codes(tokens.view(1, *facts.latent_shape[1:]))
            image: np.ndarray = self.space.decode(codes)[0, 0].float().cpu().numpy()
        return image

    def draw(self, condition: Condition, draws: Draws) -> Tensor:
        """Tokens, (1, N), under a condition.

        Each is the likeliest once Gumbel noise is added to the logits, which draws from their softmax. The noise does
        not depend on the condition, so that samples under two conditions share all but what these say (Oberst and
        Sontag 2019).
        """
        a = self.network.architecture
        context = torch.tensor([encoded(condition, self.facts.variables)], device=self.device)

        def choose(logits: Tensor, index: int) -> Tensor:
            allowed = kept(logits / self.sampling.temperature, self.sampling.top_k)
            return (allowed + gumbel(draws(torch.zeros((1, a.codes), device=self.device), "move", index))).argmax(1)

        return self.network.draw(context, choose)


def kept(logits: Tensor, count: int) -> Tensor:
    """Logits (B, K) with all but the `count` largest at minus infinity; 0 keeps all."""
    if not 0 < count < logits.shape[1]:
        return logits
    least = logits.topk(count, dim=1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def gumbel(normal: Tensor) -> Tensor:
    """Standard Gumbel noise from standard normals of the same shape: -log(-log Phi(z))."""
    return -(-torch.special.log_ndtr(normal.double())).log()
