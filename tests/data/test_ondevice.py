"""Normalisation in the model equals the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipu_vit.data.ondevice import Normalise

IMAGES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
ALIKE = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 4e-3)])
@pytest.mark.parametrize("mean, std", [ALIKE, IMAGENET], ids=["alike", "imagenet"])
def test_equals_the_formula(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, tolerance: float
) -> None:
    result = Normalise(mean, std, dtype)(IMAGES)
    expected = (IMAGES.double().numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    # 4e-3 are two steps of float16 where the values are largest.
    assert result.dtype == dtype and result.shape == IMAGES.shape
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=tolerance)


def test_equal_channels_need_no_tensor() -> None:
    assert list(Normalise(*ALIKE, torch.float16).buffers()) == []
    assert len(list(Normalise(*IMAGENET, torch.float16).buffers())) == 2


def test_is_not_saved_with_the_weights() -> None:
    assert not Normalise(*IMAGENET, torch.float32).state_dict()
