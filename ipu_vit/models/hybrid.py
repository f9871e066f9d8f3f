"""Hybrids: a ResNet whose features take the place of pixels (Dosovitskiy et al. 2020, section 3.1).

The ResNet is that of vit_jax (`models_resnet.py`): convolutions with standardised weights (Qiao et al.
2019, arXiv 1903.10520) and group norms in the place of batch norms (Kolesnikov et al. 2019, arXiv
1912.11370), so that images do not depend on others of their micro batch.
"""

from __future__ import annotations

from typing import Any, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipu_vit.models.vit import Stem, VisionTransformer

GROUPS = 32
NORM_EPSILON = 1e-6
WEIGHT_EPSILON = 1e-5


class Hybrid(VisionTransformer):
    """A Vision Transformer on a ResNet's features; `patch_size` counts features.

    `resnet_depths` are the numbers of units in each stage, each stage after the first halves the
    features' height and width. Without any, the stem's convolution and pooling remain.
    """

    def __init__(self, *, resnet_depths: Sequence[int], resnet_width: int = 64, **sizes: Any) -> None:
        super().__init__(stem=ResNet(resnet_depths, resnet_width), **sizes)


class ResNet(Stem):
    """Images (B, 3, S, S) to features (B, channels, S / stride, S / stride)."""

    def __init__(self, depths: Sequence[int], width: int) -> None:
        super().__init__()
        self.channels, self.stride = width, 4
        self.root = StandardisedConv2d(3, width, 7, stride=2)
        self.root_norm = _group_norm(width)
        stages: List[nn.Module] = []
        for stage, depth in enumerate(depths):
            inner, stride = width * 2**stage, 1 if stage == 0 else 2
            units: List[nn.Module] = []
            for unit in range(depth):
                units.append(Bottleneck(self.channels, inner, stride if unit == 0 else 1))
                self.channels = 4 * inner
            self.stride *= stride
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.root_norm(self.root(images)))
        # Zeros as padding change no maximum here: nothing is below them.
        features = F.max_pool2d(pad_same(features, 3, 2), kernel_size=3, stride=2)
        stages: Tensor = self.stages(features)
        return stages


class Bottleneck(nn.Module):
    """A residual unit of three convolutions; (B, C, H, W) to (B, 4 × inner, H / stride, W / stride)."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner
        self.project = channels != outer or stride != 1
        if self.project:
            self.projection = StandardisedConv2d(channels, outer, 1, stride)
            self.projection_norm = _group_norm(outer)
        self.conv1 = StandardisedConv2d(channels, inner, 1)
        self.norm1 = _group_norm(inner)
        self.conv2 = StandardisedConv2d(inner, inner, 3, stride)
        self.norm2 = _group_norm(inner)
        self.conv3 = StandardisedConv2d(inner, outer, 1)
        self.norm3 = _group_norm(outer)
        # Each unit starts as its shortcut.
        nn.init.zeros_(self.norm3.weight)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = self.projection_norm(self.projection(features)) if self.project else features
        branch = torch.relu(self.norm1(self.conv1(features)))
        branch = torch.relu(self.norm2(self.conv2(branch)))
        return torch.relu(shortcut + self.norm3(self.conv3(branch)))


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1 for each output, padded to ⌈size / stride⌉."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        padded = pad_same(features, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, self._standardised(), stride=self.stride)

    def _standardised(self) -> Tensor:
        # Sums over thousands of float16 squares would be coarse.
        weight = self.weight.float() if self.weight.dtype == torch.float16 else self.weight
        centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (centred * centred).mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return (centred / (deviation + WEIGHT_EPSILON)).to(self.weight.dtype)


def pad_same(features: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around (B, C, H, W), so that H and W become ⌈size / stride⌉; an odd one is right or below."""
    rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in features.shape[-2:])
    if not rows and not columns:
        return features
    return F.pad(features, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPSILON)
