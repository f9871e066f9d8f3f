"""How layers are spread over IPUs so that the busiest has the least to do.

A pipeline is as fast as its slowest stage. The first IPU has the embedding beside its layers, the
last one the head; each IPU between them needs a layer, or it would only pass tokens on. PyTorch is
not needed here: a split is part of the settings, and known before any model is built.
"""

from __future__ import annotations

import math
import operator
from itertools import accumulate
from typing import Callable, Dict, List, Sequence, Tuple

Price = Callable[[float], float]


def balanced_layers(costs: Sequence[float], ipus: int) -> List[int]:
    """Layers for each of `ipus` IPUs; `costs` are those of the embedding, of each layer in order, and of the head.

    The largest cost of an IPU is as small as can be; among such splits the evenest is taken, that is,
    the one with the smallest sum of squares. ValueError if there are more IPUs than parts of the model.
    """
    if not 1 <= ipus <= len(costs):
        raise ValueError(
            f"embedding, {len(costs) - 2} layers and head cannot be spread over {ipus} IPUs; use 1 to {len(costs)}"
        )
    largest, _ = _cheapest_split(costs, ipus, max, price=lambda cost: cost)
    _, lengths = _cheapest_split(costs, ipus, operator.add, price=lambda cost: cost**2 if cost <= largest else math.inf)
    lengths[0] -= 1  # the embedding
    lengths[-1] -= 1  # the head
    return lengths


def _cheapest_split(
    costs: Sequence[float], parts: int, join: Callable[[float, float], float], price: Price
) -> Tuple[float, List[int]]:
    """The lengths of `parts` consecutive parts, none empty, whose joined prices are lowest, and what they come to.

    By dynamic programming: the best split of the first costs into one part more is the best of those
    into one part less, each followed by the rest as a part.
    """
    sums = [0, *accumulate(costs)]
    best: Dict[int, Tuple[float, List[int]]] = {0: (0, [])}  # by the number of costs that are split
    for part in range(1, parts + 1):
        best = {
            end: min(
                (join(value, price(sums[end] - sums[start])), [*lengths, end - start])
                for start, (value, lengths) in best.items()
                if start < end
            )
            for end in range(part, len(costs) + 1)
        }
    return best[len(costs)]
