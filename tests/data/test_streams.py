"""Random numbers depend on seed, use and number alone."""

from __future__ import annotations

import pickle

import numpy as np
from distributions import BOUND, distance_from_uniform
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.data.streams import Streams

NUMBERS = st.integers(0, 2**63)


@given(seed=st.integers(0, 2**31 - 1), use=st.integers(0, 9), number=NUMBERS, other=NUMBERS)
def test_a_stream_is_philoxs_whatever_was_drawn_before(seed: int, use: int, number: int, other: int) -> None:
    streams = Streams(seed, use)
    streams.at(other).normal(size=3)
    streams.at(other).integers(9, dtype=np.uint8)  # leaves bits over
    reference = np.random.Generator(np.random.Philox(key=seed + (use << 64), counter=number << 64))
    for rng in (streams.at(number), pickle.loads(pickle.dumps(streams)).at(number)):
        np.testing.assert_array_equal(rng.random(5), reference.random(5))
        reference = np.random.Generator(np.random.Philox(key=seed + (use << 64), counter=number << 64))


def test_first_numbers_of_neighbours_are_independent_and_uniform() -> None:
    first = np.array([[[Streams(seed, use).at(n).random() for n in range(1000)] for use in (1, 2)] for seed in (0, 1)])
    assert distance_from_uniform(first.ravel(), 0, 1) < BOUND
    rows = first.reshape(4, 1000)
    assert np.abs(np.corrcoef(np.vstack([rows, rows[:, ::-1]])) - np.eye(8)).max() < 0.15
    assert all(abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.15 for row in rows)
