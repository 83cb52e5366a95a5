"""MedicalNet's 3D ResNet (Chen et al. 2019, Med3D), from a file as published: MONAI's network under its key names."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from cftools.errors import WeightsError

#: Published files come from DataParallel, and with the segmentation head that they were trained with.
PREFIX, HEAD = "module.", "conv_seg."
WIDTHS = [64, 128, 256, 512]


def load_medicalnet(path: str | Path) -> nn.Module:
    """The network of a published file, such as resnet_10_23dataset.pth or resnet_50.pth, to be applied.

    Depth and kind of blocks are read off the tensors' names. Its last two levels halve the sides where MedicalNet's own
    code dilates: as MONAI has it, at an eighth of the work and with the same tensors.

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
        feed_forward=False,
    )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path}: its tensors are not those of MedicalNet's ResNet ({reason})") from None
    return network.eval().requires_grad_(False)


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
