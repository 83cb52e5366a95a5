"""Images as tokens, MONAI's VQVAE, and the transformer that draws them, MONAI's DecoderOnlyTransformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from monai.networks.layers.vector_quantizer import VectorQuantizer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from torch import Tensor, nn

from cftools.nets import wavelet
from cftools.nets.unet import Tokens


@dataclass(frozen=True)
class VqArchitecture:
    """Size and shape of the vector-quantised autoencoder.

    Attributes:
        sides: of the image, multiples of the factor.
        channels: width at each level; each halves the sides, and so does each level of the Haar wavelet before them.
        blocks: residual units a level; codes, code: how many, and of how many numbers.
        commitment: weight of what keeps encodings near their codes; decay: of the codebook's averages.
        wavelets: levels of the Haar wavelet.
    """

    sides: tuple[int, int, int]
    channels: tuple[int, ...]
    blocks: int = 1
    codes: int = 1024
    code: int = 32
    commitment: float = 0.25
    decay: float = 0.99
    wavelets: int = 1

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels {list(self.channels)}: at least one width")
        if len(self.sides) != 3 or any(side % self.factor for side in self.sides):
            raise ValueError(f"sides {list(self.sides)}: three multiples of {self.factor}")
        if min(self.blocks, self.codes, self.code, self.wavelets) < 1:
            raise ValueError(
                f"blocks {self.blocks}, codes {self.codes}, code {self.code}, wavelets {self.wavelets}: at least 1"
            )

    @property
    def factor(self) -> int:
        """Image voxels to a token's along each axis."""
        return int(2 ** (len(self.channels) + self.wavelets))

    @property
    def grid(self) -> tuple[int, ...]:
        """Sides of the grid of tokens."""
        return tuple(side // self.factor for side in self.sides)


class VqAutoencoder(nn.Module):
    """x -> encodings -> the nearest codes -> x; a `space.VqNetwork` in eval mode.

    van den Oord et al. 2017, with the codebook as moving averages (their appendix A.1). Encodings are normalised over
    the batch, so that they cannot shrink onto one code, and lie where fresh codes do (Lancucki et al. 2020). Scans are
    registered, so the decoder is told what is usual at each place, which it learns.
    """

    def __init__(self, architecture: VqArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        levels = len(architecture.channels)
        self.body = VQVAE(
            spatial_dims=3,
            in_channels=8**architecture.wavelets,
            out_channels=8**architecture.wavelets,
            channels=architecture.channels,
            num_res_layers=architecture.blocks,
            num_res_channels=architecture.channels,
            downsample_parameters=((2, 4, 1, 1),) * levels,
            upsample_parameters=((2, 4, 1, 1, 0),) * levels,
            num_embeddings=architecture.codes,
            embedding_dim=architecture.code,
            commitment_cost=architecture.commitment,
            decay=architecture.decay,
        )
        self.spread = nn.BatchNorm3d(architecture.code, affine=False)
        self.places = nn.Parameter(torch.zeros(1, architecture.code, *architecture.grid))

    @property
    def quantizer(self) -> VectorQuantizer:
        """The codebook; in training it moves."""
        return self.body.quantizer

    def encode(self, x: Tensor) -> Tensor:
        """Encodings (B, code, *grid) of images (B, 1, X, Y, Z), before quantisation."""
        encodings: Tensor = self.spread(self.body.encode(wavelet.forward(x, self.architecture.wavelets)).float())
        return encodings

    def decode(self, codes: Tensor) -> Tensor:
        """The image (B, 1, X, Y, Z) of codes (B, code, *grid)."""
        return wavelet.inverse(self.body.decode(codes + self.places).float(), self.architecture.wavelets)

    def quantized(self, encodings: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes, through which gradients pass straight, and the commitment loss.

        In float32: codes that differ little would not be told apart in bfloat16, nor their averages move.
        """
        with torch.autocast(encodings.device.type, enabled=False):
            loss, codes = self.quantizer(encodings.float())
        return codes, loss

    @torch.no_grad()
    def revive(self, encodings: Tensor, share: float) -> Tensor:
        """Move codes that are hardly used onto encodings at hand (Dhariwal et al. 2020, Jukebox).

        Args:
            encodings: (B, code, *grid), of the step; share: part of the uses a step that
                a code would have if all had the same; one with less, averaged over steps, moves.
        Returns:
            The share of the codes that are in use.
        """
        book: Any = self.quantizer.quantizer
        rows = encodings.detach().float().movedim(1, -1).flatten(0, -2)
        chosen = rows[torch.randint(len(rows), (self.architecture.codes,), device=rows.device)]
        used = book.ema_cluster_size >= share * len(rows) / self.architecture.codes
        book.embedding.weight.copy_(torch.where(used[:, None], book.embedding.weight, chosen))
        # As if used as often as any: it has time to be found again.
        fair = torch.full_like(book.ema_cluster_size, len(rows) / self.architecture.codes)
        book.ema_w.copy_(torch.where(used[:, None], book.ema_w, chosen * fair[:, None]))
        book.ema_cluster_size.copy_(torch.where(used, book.ema_cluster_size, fair))
        if torch.distributed.is_initialized():  # each process drew encodings of its own
            for part in (book.embedding.weight, book.ema_w, book.ema_cluster_size):
                torch.distributed.broadcast(part.data, 0)
        return used.float().mean()


@dataclass(frozen=True)
class TransformerArchitecture:
    """Size and shape of the network that draws tokens.

    Attributes:
        codes: how many there are; length: tokens of an image.
        variables: condition variables, to which every token attends.
        width, depth, heads: of the transformer; dropout: share of the embeddings withheld in training.
    """

    codes: int
    length: int
    variables: int
    width: int = 192
    depth: int = 6
    heads: int = 6
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.codes, self.length, self.variables, self.width, self.depth, self.heads) < 1:
            raise ValueError("codes, length, variables, width, depth and heads: at least 1 of each")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads}: must divide the width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout:g}: a share below 1")


class TokenTransformer(nn.Module):
    """p(token | tokens before it, condition), causal attention over the tokens and cross attention to the condition."""

    def __init__(self, architecture: TransformerArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.told = Tokens(architecture.variables, architecture.width)
        self.body = DecoderOnlyTransformer(
            num_tokens=architecture.codes + 1,  # the last begins every sequence
            max_seq_len=architecture.length,
            attn_layers_dim=architecture.width,
            attn_layers_depth=architecture.depth,
            attn_layers_heads=architecture.heads,
            with_cross_attention=True,
            embedding_dropout_rate=architecture.dropout,
            use_flash_attention=True,
        )
        for block in self._blocks:  # never read by flash attention, and larger than all the weights
            block.attn.register_buffer("causal_mask", torch.empty(0), persistent=False)

    @property
    def _blocks(self) -> Any:
        return self.body.blocks

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Logits (B, length, codes) of each token from those before it.

        Args:
            tokens: (B, length) integer; context: (B, V) on [-1, 1], nan where unknown.
        """
        begin = torch.full_like(tokens[:, :1], self.architecture.codes)
        logits: Tensor = self.body(torch.cat([begin, tokens[:, :-1]], dim=1), context=self.told(context))
        return logits[..., : self.architecture.codes]

    def draw(self, context: Tensor, choose: Any) -> Tensor:
        """Tokens (B, length), one after the other; what a layer knows of those before is kept, not worked out anew.

        Args:
            choose: (logits (B, codes), index) -> tokens (B,).
        """
        a = self.architecture
        told, tokens = self.told(context), []
        keys = torch.zeros(a.depth, 2, len(context), a.heads, a.length, a.width // a.heads, device=context.device)
        token = torch.full((len(context),), a.codes, device=context.device)
        for index in range(a.length):
            x = self.body.token_embeddings(token) + self.body.position_embeddings.embedding.weight[index]
            x = x[:, None]
            for block, kept in zip(self._blocks, keys, strict=True):
                x = x + self._attended(block.attn, block.norm1(x), kept, index)
                x = x + block.cross_attn(block.norm_cross_attn(x), context=told)
                x = x + block.mlp(block.norm2(x))
            token = choose(self.body.to_logits(x)[:, 0, : a.codes], index)
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    @staticmethod
    def _attended(attention: Any, x: Tensor, kept: Tensor, index: int) -> Tensor:
        """Self attention of one more token, (B, 1, width), to those before; its key and value join `kept`."""
        query, key, value = (
            attention.input_rearrange(project(x)) for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        kept[0, :, :, index], kept[1, :, :, index] = key[:, :, 0], value[:, :, 0]
        keys, values = kept[0, :, :, : index + 1], kept[1, :, :, : index + 1]
        out = functional.scaled_dot_product_attention(query, keys, values, scale=attention.scale)
        return attention.out_proj(attention.out_rearrange(out))
