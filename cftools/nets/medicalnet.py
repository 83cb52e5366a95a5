"""MedicalNet's 3D ResNet (Chen et al. 2019, Med3D), from a file as published: MONAI's network under its key names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from cftools.errors import WeightsError

#: Published files come from DataParallel, and with the segmentation head that they were trained with.
PREFIX, HEAD = "module.", "conv_seg."
WIDTHS = [64, 128, 256, 512]
#: Levels that look further in the place of halving the sides, as MONAI's do.
DILATIONS = {"layer3": 2, "layer4": 4}


def load_medicalnet(path: str | Path) -> nn.Module:
    """The network of a published file, such as resnet_10_23dataset.pth or resnet_50.pth, to be applied.

    Depth and kind of blocks are read off the tensors' names; strides and dilations, of which tensors tell nothing, are
    those of the authors' code.

    Args:
        path: a pickle of tensors, opened as weights only; nothing else in it is run.
    Returns:
        the network, (B, 1, X, Y, Z) -> (B, D): means over all places of the last level.
    Raises:
        WeightsError: missing, or no such file.
    """
    tensors = _tensors(Path(path))
    layers = [_blocks(tensors, level) for level in range(1, 5)]
    if not all(layers) or "conv1.weight" not in tensors:
        raise WeightsError(
            f"{path}: holds no ResNet as MedicalNet publishes them: give resnet_10.pth or another of its"
        )
    deep = "layer1.0.conv3.weight" in tensors
    network = ResNet(
        block="bottleneck" if deep else "basic",
        layers=layers,
        block_inplanes=WIDTHS,
        spatial_dims=3,
        n_input_channels=1,
        shortcut_type="B" if "layer2.0.downsample.0.weight" in tensors else "A",
        bias_downsample="layer2.0.downsample.0.bias" in tensors,
        conv1_t_stride=2,
        feed_forward=False,
    )
    for level, dilation in DILATIONS.items():
        _dilate(getattr(network, level), dilation)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path}: its tensors are not those of MedicalNet's ResNet ({reason})") from None
    return network.eval().requires_grad_(False)


def _dilate(level: Any, dilation: int) -> None:
    """Make a level keep its sides, and its convolutions of 3 voxels reach further."""
    for block in level.children():
        if isinstance(block.downsample, partial):  # without tensors
            block.downsample = partial(block.downsample.func, **{**block.downsample.keywords, "stride": 1})
    for layer in level.modules():
        if isinstance(layer, nn.Conv3d):
            layer.stride = (1, 1, 1)
            if layer.kernel_size == (3, 3, 3):
                layer.dilation = layer.padding = (dilation,) * 3


def _tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors without the prefix and the head."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file: fetch one of MedicalNet's from where its authors publish them")
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle fails in as many ways as it has opcodes
        reason = " ".join(str(error).split())[:100]
        raise WeightsError(f"{path}: is no file of PyTorch tensors ({reason})") from None
    state = whole.get("state_dict", whole) if isinstance(whole, Mapping) else {}
    tensors = {str(name).removeprefix(PREFIX): value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if not name.startswith((HEAD, "fc."))}


def _blocks(tensors: Mapping[str, Tensor], level: int) -> int:
    """How many residual blocks a level has."""
    return next(number for number in count() if f"layer{level}.{number}.conv1.weight" not in tensors)
