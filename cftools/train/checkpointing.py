"""Gradient checkpointing: memory for activations against one more forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(network: nn.Module) -> nn.Module:
    """The same network, whose blocks forget what they computed and compute it again in the backward pass.

    A block is a module with parameters in an outermost list or sequence of the network: a level of a U-Net, a layer
    of an encoder. Gradients are the same; dropout draws what it drew.
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return network


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What `checkpointed` wraps."""
    if isinstance(network, nn.ModuleList | nn.Sequential):
        yield from (block for block in network if any(True for _ in block.parameters()))
    else:
        for child in network.children():
            yield from blocks(child)
