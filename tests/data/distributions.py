"""How far samples lie from a distribution, or from other samples; each bound is exceeded once in about a thousand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Callable, Hashable, Sequence, Tuple

import numpy as np

BOUND = 1.95
"""On Kolmogorov's statistic."""


def distance_from(values: Sequence[float], distribution: Callable[[float], float]) -> float:
    """Kolmogorov's statistic: the largest distance of the distribution functions, times √n."""
    fractions = np.array([distribution(value) for value in sorted(values)])
    steps = np.arange(len(fractions) + 1) / len(fractions)
    return math.sqrt(len(fractions)) * max((steps[1:] - fractions).max(), (fractions - steps[:-1]).max())


def distance_from_uniform(values: Sequence[float], low: float, high: float) -> float:
    return distance_from(values, lambda value: (value - low) / (high - low))


def distance_between(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The same statistic for two samples of one size."""
    assert len(ours) == len(theirs)
    at = np.union1d(ours, theirs)
    gaps = np.searchsorted(np.sort(ours), at, "right") - np.searchsorted(np.sort(theirs), at, "right")
    return float(np.abs(gaps).max() / len(ours) * math.sqrt(len(ours) / 2))


def normal(mean: float, deviation: float) -> Callable[[float], float]:
    return lambda value: 0.5 * math.erfc((mean - value) / deviation / math.sqrt(2))


def frequencies_agree(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> bool:
    """Pearson's test of two samples of one size; what occurs less than ten times is counted together."""
    assert len(ours) == len(theirs)
    one, other = Counter(ours), Counter(theirs)
    pairs = [(one[key], other[key]) for key in {*one, *other}]
    often = [pair for pair in pairs if sum(pair) >= 10]
    seldom = (sum(a for a, b in pairs if a + b < 10), sum(b for a, b in pairs if a + b < 10))
    return _plausible([*often, seldom] if sum(seldom) else often)


def _plausible(pairs: Sequence[Tuple[int, int]]) -> bool:
    statistic = sum((a - b) ** 2 / (a + b) for a, b in pairs)
    freedom = len(pairs) - 1
    assert freedom > 0
    return statistic < freedom + 3.3 * math.sqrt(2 * freedom) + 5  # a chi-square leans to the right


def within(count: int, draws: int, probability: float) -> bool:
    """Is a number of successes plausible?"""
    return abs(count - draws * probability) < 3.3 * math.sqrt(draws * probability * (1 - probability))
