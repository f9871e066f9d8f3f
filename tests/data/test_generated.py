"""Generated images are random, reproducible and cheap to send to workers."""

from __future__ import annotations

import pickle

import numpy as np

from ipu_vit.data.generated import GeneratedImages


def test_pixels_and_labels_are_evenly_distributed() -> None:
    source = GeneratedImages(count=2000, size=(12, 16), class_count=10, seed=0)
    pixels = np.concatenate([source.load(index).ravel() for index in range(200)])
    for values, kinds in ((pixels, 256), (np.array([source.label(index) for index in range(2000)]), 10)):
        counts = np.bincount(values, minlength=kinds)
        expected = len(values) / kinds
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == kinds
        assert chi_squared < kinds + 5 * np.sqrt(2 * kinds)


def test_images_depend_on_index_and_seed_alone() -> None:
    one, same, other = (GeneratedImages(100, (6, 8), 10, seed) for seed in (0, 0, 1))
    images = [one.load(index) for index in range(100)]
    assert images[0].shape == (6, 8, 3) and images[0].dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 100
    assert all(np.array_equal(same.load(index), image) for index, image in enumerate(images))
    assert not any(np.array_equal(other.load(index), image) for index, image in enumerate(images))
    assert [one.label(index) for index in range(100)] == [same.label(index) for index in range(100)]


def test_writing_to_an_image_does_not_change_the_next() -> None:
    source = GeneratedImages(10, (8, 8), 10, seed=0)
    before = source.load(3).copy()
    source.load(3)[:] = 0
    np.testing.assert_array_equal(source.load(3), before)


def test_planar_images_are_contiguous_for_the_model() -> None:
    image = GeneratedImages(10, (8, 8), 10, seed=0, planar=True).load(3)
    assert image.shape == (8, 8, 3) and image.transpose(2, 0, 1).flags.c_contiguous


def test_a_million_images_travel_in_a_few_bytes() -> None:
    source = GeneratedImages(1_281_167, (375, 500), 1000, seed=0)
    source.load(1_281_166)
    assert len(pickle.dumps(source)) < 1000
    assert (len(source), len(source.classes), source.name(7)) == (1_281_167, 1000, "generated image 7")
