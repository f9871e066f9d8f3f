"""Hybrids against timm's, standardised convolutions in closed form, and initial weights."""

from __future__ import annotations

from typing import Any, Sequence

import pytest
import timm_names
import torch
import torch.nn.functional as F
from reference_models import timm_hybrid

from ipu_vit.models.hybrid import Hybrid, StandardisedConv2d, pad_same


def small(resnet_depths: Sequence[int], **changes: Any) -> Hybrid:
    sizes: Any = dict(image_size=32, patch_size=1, width=12, depth=2, heads=3, mlp_width=20, classes=5)
    return Hybrid(resnet_depths=resnet_depths, resnet_width=32, **{**sizes, **changes})


@pytest.mark.parametrize("depths, patch_size", [((2, 1), 2), ((1, 2, 1), 1), ((), 4)], ids=str)
def test_logits_equal_timm_s(depths: Sequence[int], patch_size: int) -> None:
    theirs = timm_hybrid(depths, patch_size)
    ours = small(depths, patch_size=patch_size)
    renames = timm_names.HYBRID if depths else timm_names.STEM_ALONE
    # Standardisation adds its epsilon to the deviation here, to the variance there.
    assert timm_names.difference(ours, theirs, renames, image_size=32) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_standardised_weights_have_mean_0_and_deviation_1(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    convolution = StandardisedConv2d(4, 6, kernel=3).to(dtype)
    convolution.weight.mul_(5).add_(2)
    images = torch.randn(2, 4, 7, 7, dtype=dtype)
    weight = torch.stack([(one - one.mean()) / (one.std(unbiased=False) + 1e-5) for one in convolution.weight])
    torch.testing.assert_close(convolution(images), F.conv2d(images, weight, padding=1))


@pytest.mark.parametrize("kernel, stride, size", [(7, 2, 32), (3, 2, 16), (3, 2, 7), (3, 1, 8), (1, 2, 8), (1, 1, 5)])
def test_padding_keeps_every_stride_th_place(kernel: int, stride: int, size: int) -> None:
    padded = pad_same(torch.ones(1, 1, size, size), kernel, stride)
    assert F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1] == -(-size // stride)
    row = padded[0, 0].amax(0)
    before, after = int(row.argmax()), int(row.flip(0).argmax())
    assert row.sum() == size and after - before in (0, 1)


def test_images_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(0)
    stem = small((1, 1)).embedding.stem
    assert stem is not None
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(stem(images)[:1], stem(images[:1]))


@torch.no_grad()
def test_initial_weights_are_vit_jax_s() -> None:
    torch.manual_seed(0)
    model = small((1, 2))
    stem = model.embedding.stem
    assert stem is not None
    assert stem.root.weight.std().item() == pytest.approx((3 * 7 * 7) ** -0.5, rel=0.06)
    unit = stem.stages[1][1]
    assert unit.conv2.weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.06)
    # The last norm of a unit starts at zero, so that the unit does nothing but its shortcut.
    features = torch.rand(2, 256, 4, 4)
    torch.testing.assert_close(unit(features), features)
    assert torch.equal(unit.norm1.weight, torch.ones(64))
    assert not model(torch.randn(2, 3, 32, 32)).any()
