"""Mixup and CutMix against their formulas, their distributions, and timm."""

from __future__ import annotations

import itertools
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_images import Numbers, all_of, samples_of
from scipy import stats
from torch import Tensor

from ipu_vit.data.mixing import Mixing, build_mixing
from ipu_vit.data.ondevice import Mix, mixed_targets, partners_share
from ipu_vit.settings import AugmentationSettings, Settings

MANY = 20_000


def draws(mixing: Mixing, count: int = MANY) -> np.ndarray:
    """Rows of amount, top, bottom, left, right."""
    rng = np.random.default_rng(0)
    return np.stack([mixing(rng) for _ in range(count)])


# What is drawn


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_mixups_amount_has_a_beta_distribution(alpha: float) -> None:
    found = draws(Mixing(224, mixup=alpha, cutmix=0.0), 5000)
    assert found.dtype == np.float32
    assert (found[:, 1:] == [0, 224, 0, 224]).all()
    assert stats.kstest(found[:, 0].astype(float), stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmixs_boxes_have_a_beta_distribution_before_clipping(alpha: float) -> None:
    """A box that touches no side is a square of the drawn area; of small ones, few touch."""
    found = draws(Mixing(4096, mixup=0.0, cutmix=alpha))
    assert (found[:, 0] == 1).all()
    _, top, bottom, left, right = found.T.astype(float)
    free = (top > 0) & (bottom < 4096) & (left > 0) & (right < 4096)
    np.testing.assert_array_equal((bottom - top)[free], (right - left)[free])
    # A free box of side r leaves its centre (1 - r)² of the image, which weighs the density of its area r².
    areas = ((bottom - top)[free] / 4096) ** 2
    grid = np.linspace(0, 1, 100_001)[1:-1]
    density = stats.beta(alpha, alpha).pdf(grid) * (1 - np.sqrt(grid)) ** 2
    expected = np.cumsum(density) / density.sum()
    assert stats.kstest(areas, lambda area: np.interp(area, grid, expected)).pvalue > 0.01


def test_cutmixs_mean_area_after_clipping() -> None:
    """A side r with its centre anywhere keeps r - r²/4 on average; over areas r² from 0 to 1 that squared is 77/240."""
    found = torch.from_numpy(draws(Mixing(1000, mixup=0.0, cutmix=1.0)))
    assert float(partners_share(found, 1000).mean()) == pytest.approx(77 / 240, abs=0.006)


@given(size=st.integers(1, 300), alpha=st.floats(0.05, 5), seed=st.integers(0, 1000))
def test_boxes_lie_in_the_image(size: int, alpha: float, seed: int) -> None:
    amount, top, bottom, left, right = Mixing(size, 0.0, alpha)(np.random.default_rng(seed))
    assert amount == 1
    for start, end in ((top, bottom), (left, right)):
        assert 0 <= start <= end <= size and start == int(start) and end == int(end)


@pytest.mark.parametrize("probability, cutmix_share", [(0.0, 0.5), (0.3, 0.5), (1.0, 0.0), (0.8, 0.25), (1.0, 1.0)])
def test_shares_of_the_kinds(probability: float, cutmix_share: float) -> None:
    amount, top, bottom, left, right = draws(Mixing(224, 0.8, 1.0, probability, cutmix_share)).T
    whole = (top == 0) & (bottom == 224) & (left == 0) & (right == 224)
    counts = [((amount == 0) & whole).sum(), ((amount > 0) & (amount < 1)).sum(), (amount == 1).sum()]
    shares = [1 - probability, probability * (1 - cutmix_share), probability * cutmix_share]
    np.testing.assert_allclose(np.array(counts) / MANY, shares, rtol=0, atol=0.015)


def test_settings_choose() -> None:
    assert build_mixing(AugmentationSettings(), 224) is None
    both = AugmentationSettings(mixup=0.8, cutmix=1.0, mix_probability=0.9, cutmix_share=0.4)
    assert build_mixing(both, 224) == Mixing(224, 0.8, 1.0, 0.9, 0.4)


# Samples


def test_a_sample_draws_from_its_own_number() -> None:
    """Where a run starts, and how many processes share it, changes nothing."""
    options = {"global_batch": 12, "mixing": Mixing(1, 0.8, 0.0)}
    whole = [mixing for _, _, mixing in all_of(samples_of(Numbers(30), last_update=6, **options))]
    assert whole[0].shape == (5,) and whole[0].dtype == torch.float32
    assert len({float(mixing[0]) for mixing in whole}) == 72
    rest = all_of(samples_of(Numbers(30), first_update=4, last_update=6, **options))
    assert all(torch.equal(mixing, same) for (_, _, mixing), same in zip(rest, whole[48:]))
    second = all_of(samples_of(Numbers(30), last_update=1, **options, process=1, processes=2))
    assert all(torch.equal(mixing, same) for (_, _, mixing), same in zip(second, whole[6:12]))


def test_mixing_leaves_order_and_augmentation_as_they_are() -> None:
    plain = all_of(samples_of(Numbers(9), last_update=4))
    mixed = all_of(samples_of(Numbers(9), last_update=4, mixing=Mixing(1, 0.8, 0.0)))
    for (image, label), (same_image, same_label, _) in zip(plain, mixed):
        assert torch.equal(image, same_image) and label == same_label


# What the device makes of it


def examples(batch: int, size: int, seed: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Images, labels of seven classes, and mixing of every kind."""
    rng = np.random.default_rng(seed)
    mixing = Mixing(size, 0.8, 1.0, 0.9)
    return (
        torch.from_numpy(rng.standard_normal((batch, 3, size, size), np.float32)),
        torch.from_numpy(rng.integers(7, size=batch)),
        torch.from_numpy(np.stack([mixing(rng) for _ in range(batch)])),
    )


@given(batch=st.integers(2, 9), size=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_images_and_targets_pixel_by_pixel(batch: int, size: int, seed: int) -> None:
    images, labels, mixing = examples(batch, size, seed)
    expected, targets = images.double().numpy().copy(), np.zeros((batch, 7))
    for number in range(batch):
        other = number + 1 if number + 1 < batch else 0
        amount, (top, bottom, left, right) = float(mixing[number, 0]), map(int, mixing[number, 1:])
        for row in range(top, bottom):
            for column in range(left, right):
                ours, theirs = images[number, :, row, column].double(), images[other, :, row, column].double()
                expected[number, :, row, column] = (1 - amount) * ours + amount * theirs
        share = amount * (bottom - top) * (right - left) / size**2
        targets[number, labels[number]] += 1 - share
        targets[number, labels[other]] += share
    np.testing.assert_allclose(Mix(size)(images, mixing).numpy(), expected, rtol=0, atol=1e-6)
    ours = mixed_targets(labels, partners_share(mixing, size), 7)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), targets, rtol=0, atol=1e-6)


def test_what_is_pasted_or_left_alone_keeps_its_bits() -> None:
    images, mixing = examples(2, 8, 0)[0].half(), torch.tensor([[1.0, 2, 5, 0, 8], [0.0, 0, 8, 0, 8]])
    mixed = Mix(8)(images.float(), mixing).half()
    assert torch.equal(mixed[0, :, 2:5], images[1, :, 2:5])
    assert torch.equal(mixed[0, :, :2], images[0, :, :2]) and torch.equal(mixed[0, :, 5:], images[0, :, 5:])
    assert torch.equal(mixed[1], images[1])


def test_places_are_not_saved_with_the_weights() -> None:
    assert not Mix(8).state_dict()


# timm


def timms(monkeypatch: pytest.MonkeyPatch, mixing: Tensor, size: int, smoothing: float) -> Any:
    """timm's Mixup of single elements, made to draw what we have drawn."""
    reference = pytest.importorskip("timm.data.mixup")
    cuts = (mixing[:, 0] == 1).numpy()
    boxes: List[List[int]] = [row[1:].int().tolist() for row, cut in zip(mixing, cuts) if cut]
    own = 1 - partners_share(mixing, size)

    def box_and_share(shape: Any, share: float, **_: Any) -> Any:
        top, bottom, left, right = boxes.pop(0)
        return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / size**2

    monkeypatch.setattr(reference, "cutmix_bbox_and_lam", box_and_share)
    mixup = reference.Mixup(0.8, 1.0, mode="elem", label_smoothing=smoothing, num_classes=7)
    # timm passes over what has a share of exactly 1, as empty boxes have.
    shares = np.where(cuts, 0.5, own.numpy()).astype(np.float32)
    monkeypatch.setattr(mixup, "_params_per_elem", lambda count: (shares.copy(), cuts))
    return mixup


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pairs_are_mixed_as_by_timm(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm turns the batch around, which for a pair is what we do."""
    for seed in range(30):
        images, labels, mixing = examples(2, 16, seed)
        mixup = timms(monkeypatch, mixing, 16, smoothing)
        expected, targets = mixup(images.clone(), labels)
        torch.testing.assert_close(Mix(16)(images, mixing), expected, rtol=0, atol=1e-6)
        ours = (1 - smoothing) * mixed_targets(labels, partners_share(mixing, 16), 7) + smoothing / 7
        torch.testing.assert_close(ours, targets, rtol=0, atol=1e-6)


class Told:
    """A generator whose numbers are known: everything is mixed, over this area, around these centres."""

    def __init__(self, area: float, centres: Tuple[int, int]) -> None:
        self.area, self.centres = area, centres

    def random(self) -> float:
        return 0.0

    def beta(self, first: float, second: float) -> float:
        return self.area

    def integers(self, end: int, size: int) -> Tuple[int, int]:
        return self.centres


@pytest.mark.parametrize("size", [1, 7, 32])
def test_boxes_are_timms(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("timm.data.mixup")
    for row, column in itertools.product(range(size), repeat=2):
        for share in (0.0, 0.19, 0.2, 0.5, 0.99, 1.0):
            centres = iter((row, column))
            monkeypatch.setattr(reference.np.random, "randint", lambda *_, source=centres, **__: next(source))
            expected = reference.rand_bbox((3, size, size), share)
            ours = Mixing(size, 0.0, 1.0)(Told(1 - share, (row, column)))  # type: ignore[arg-type]
            assert ours.tolist() == [1, *expected]


# Settings


@pytest.mark.parametrize(
    "augmentation, words",
    [
        ({"mix_probability": 0.5}, r"augmentation\.mix_probability=0\.5 .*accepted: 1\.0"),
        ({"cutmix_share": 0.3, "mixup": 0.8}, r"augmentation\.cutmix_share=0\.3 .*augmentation\.cutmix=0\.0; accepted"),
        ({"cutmix_share": 0.3}, r"augmentation\.cutmix_share=0\.3 .*accepted: 0\.5, or both above 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(augmentation: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AugmentationSettings(**augmentation)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_an_image_alone_is_not_mixed(kind: str) -> None:
    alone = {"global_batch": 544, "micro_batch": 1}
    with pytest.raises(ValueError, match=rf"pipeline\.micro_batch=1 .*augmentation\.{kind}=0\.8.*accepted: 2 or more"):
        Settings(augmentation={kind: 0.8}, pipeline=alone)
    assert Settings(pipeline=alone).pipeline.micro_batch == 1
