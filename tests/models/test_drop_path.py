"""Stochastic depth: what is left out, how often, and for which images."""

from __future__ import annotations

import poptorch
import pytest
import torch
from torch import Tensor, nn

from ipu_vit.models.drop_path import DropPath, rising_rates
from ipu_vit.models.mixer import Mixer
from ipu_vit.models.vit import VisionTransformer

RATE = 0.3


def masks(branches: Tensor) -> Tensor:
    """The factor of each image, which must be the same for all of its numbers."""
    factors = branches.flatten(1)
    assert torch.equal(factors, factors[:, :1].expand_as(factors))
    return factors[:, 0]


def test_images_are_left_out_one_by_one_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    images = 20_000
    found = masks(DropPath(RATE).train()(torch.ones(images, 3, 2)))
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - RATE)))
    # Five standard deviations of a mean of independent draws.
    assert abs(kept.double().mean().item() - (1 - RATE)) < 5 * (RATE * (1 - RATE) / images) ** 0.5
    neighbours = (kept[1:] & kept[:-1]).double().mean().item()
    assert neighbours == pytest.approx((1 - RATE) ** 2, abs=0.02)


@pytest.mark.parametrize("rate, training", [(RATE, False), (0.0, True)])
def test_nothing_is_left_out_in_evaluation_nor_at_rate_0(rate: float, training: bool) -> None:
    branch = torch.randn(64, 3, 2)
    assert torch.equal(DropPath(rate).train(training)(branch), branch)


def test_gradient_flows_through_kept_branches_only() -> None:
    torch.manual_seed(0)
    branch = torch.randn(64, 3, 2, requires_grad=True)
    kept = DropPath(RATE).train()(branch)
    kept.sum().backward()
    assert branch.grad is not None
    assert torch.equal(masks(branch.grad) != 0, kept.detach().abs().sum((1, 2)) != 0)
    assert 0 < int((masks(branch.grad) != 0).sum()) < 64


def test_rates_rise_evenly() -> None:
    assert rising_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rising_rates(0.3, 1) == [0.0]


def models() -> list[nn.Module]:
    sizes = dict(image_size=8, patch_size=4, width=12, depth=5, mlp_width=20, classes=5, drop_path=RATE)
    return [VisionTransformer(heads=3, **sizes), Mixer(tokens_mlp_width=6, **sizes)]


@pytest.mark.parametrize("model", models(), ids=["vit", "mixer"])
def test_layers_of_models_have_rising_rates(model: nn.Module) -> None:
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.075, 0.15, 0.225, 0.3])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    images = torch.randn(8, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_rates_equal_timm_s() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=5, num_heads=3, num_classes=5, drop_path_rate=RATE
    )
    # timm has no module where the rate is 0.
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert rising_rates(RATE, 5) == pytest.approx(expected)


def test_device_draws_another_mask_for_each_micro_batch() -> None:
    options = poptorch.Options().deviceIterations(16).randomSeed(3)
    executor = poptorch.inferenceModel(DropPath(0.5).train(), options)
    found = masks(executor(torch.ones(16 * 8, 3, 2))).reshape(16, 8)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert len(found.unique(dim=0)) > 12
