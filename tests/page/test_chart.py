"""Charts, read back from their SVG."""

from __future__ import annotations

import math
import re
from typing import List, Tuple
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.page.chart import HEIGHT, WIDTH, Curve, chart, thinned, ticks

VALUES = st.floats(-1e12, 1e12, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-12)
POINTS = st.lists(st.tuples(st.integers(0, 1000), VALUES), min_size=1, max_size=50)


def drawn(svg: str) -> List[List[Tuple[float, float]]]:
    """The points of each line, in the picture's units; fails unless the text is well-formed."""
    lines = [element.get("points", "") for element in ElementTree.fromstring(svg).iter("polyline")]
    return [[(float(x), float(y)) for x, y in (place.split(",") for place in line.split())] for line in lines]


@given(lowest=VALUES, highest=VALUES)
def test_ticks_are_round_and_enclose(lowest: float, highest: float) -> None:
    lowest, highest = sorted((lowest, highest))
    if 0 < highest - lowest < 1e-6 * max(abs(lowest), abs(highest)):
        return  # closer than the numbers of an axis can tell apart
    found = ticks(lowest, highest)
    step = found[1] - found[0]
    assert 3 <= len(found) <= 7
    assert found[0] <= lowest + 1e-6 * step and found[-1] >= highest - 1e-6 * step
    assert [b - a for a, b in zip(found, found[1:])] == pytest.approx([step] * (len(found) - 1), rel=1e-3)
    leading = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(leading - digit) for digit in (1, 2, 5)) < 1e-3


def test_points_lie_where_their_values_say() -> None:
    """0 to 1 over 0 to 10: the axes' numbers are at the same places as the points of these values."""
    svg = chart("c", [Curve("a", [(0, 0.0), (5, 0.5), (10, 1.0)]), Curve("b", [(0, 1.0), (10, 0.0)])], 10)
    first, second = drawn(svg)
    assert first[1][0] == pytest.approx((first[0][0] + first[2][0]) / 2, abs=0.1)
    assert first[1][1] == pytest.approx((first[0][1] + first[2][1]) / 2, abs=0.1)
    assert [second[0][1], second[1][1]] == [first[2][1], first[0][1]]
    texts = {text.text: text for text in ElementTree.fromstring(svg).iter("text") if text.get("class") == "x"}
    assert float(texts["0"].attrib["x"]) == first[0][0] and float(texts["10"].attrib["x"]) == first[2][0]
    heights = {text.text: float(text.attrib["y"]) for text in ElementTree.fromstring(svg).iter("text") if text.text}
    assert heights["1"] - 4 == pytest.approx(first[2][1], abs=0.1)


@given(points=POINTS)
def test_all_points_are_inside(points: List[Tuple[int, float]]) -> None:
    for line in drawn(chart("c", [Curve("a", sorted(points))], 1000)):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


def test_names_are_text_only() -> None:
    svg = chart("<b>&", [Curve("</figure><script>", [(0, 1.0), (1, 2.0)])], 1)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter("script"))
    assert "<b>&" in "".join(root.itertext()) and "</figure><script>" in "".join(root.itertext())


def test_what_is_not_finite_is_left_out() -> None:
    assert chart("c", [Curve("a", [(0, math.nan), (1, math.inf)])], 1) == ""
    (line,) = drawn(chart("c", [Curve("a", [(0, 1.0), (1, math.nan), (2, 3.0)])], 2))
    assert len(line) == 2


def test_single_point_is_a_dot() -> None:
    assert len(list(ElementTree.fromstring(chart("c", [Curve("a", [(3, 7.0)])], 5)).iter("circle"))) == 1


def test_shares_in_percent() -> None:
    svg = chart("Accuracy", [Curve("top-1", [(0, 0.25), (1, 0.8122)])], 1, share=True)
    assert re.search(r"top-1</span> 81.22 %", svg)


@given(st.lists(VALUES, min_size=1, max_size=3000))
def test_thinned_curves_keep_their_peaks(values: List[float]) -> None:
    points = list(enumerate(values))
    kept = thinned(points, 100)
    assert len(kept) <= 100 or len(points) <= 100
    assert [x for x, _ in kept] == sorted({x for x, _ in kept}) and set(kept) <= set(points)
    assert {min(values), max(values)} <= {y for _, y in kept}
