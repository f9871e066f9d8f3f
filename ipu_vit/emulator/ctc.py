"""`poptorch.ctc_beam_search_decoder`: the likeliest labels that a network emitted, blanks and repeats removed."""

from __future__ import annotations

import math
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.arguments import require, require_type
from ipu_vit.emulator.tape import is_fake, opaque

Path = Tuple[int, ...]
# The logarithm that the device takes for that of zero: the lowest float16.
_ZERO = -65504.0


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> Tuple[Tensor, Tensor, Tensor]:
    """Logarithms of the probabilities, lengths and labels of the `top_paths` likeliest paths of each sample.

    `probs` holds logarithms, of shape [time, batch, classes]; the first `lengths[i]` steps of sample i count. Labels
    behind a path's length mean nothing, nor do paths of length 0 and probability -65504, which stand in for
    missing ones.
    """
    operator = "ctc_beam_search_decoder"
    require_type(probs, Tensor, operator, "probs")
    require_type(lengths, Tensor, operator, "lengths")
    require(
        probs.dim() == 3 and probs.dtype.is_floating_point,
        f"{operator}: probs must be floating point of shape [time, batch, classes], not {probs.dtype} of "
        f"{tuple(probs.shape)}",
    )
    require(
        tuple(lengths.shape) == (probs.shape[1],) and not lengths.dtype.is_floating_point,
        f"{operator}: lengths must be one integer for each of {probs.shape[1]} samples, not {lengths.dtype} of shape "
        f"{tuple(lengths.shape)}",
    )
    require(0 <= blank < probs.shape[2], f"{operator}: blank must be one of {probs.shape[2]} classes, not {blank}")
    require(
        0 < top_paths <= beam_width,
        f"{operator}: top_paths must be between 1 and beam_width {beam_width}, not {top_paths}",
    )
    return _ctc_beam_search_decoder(probs, lengths, blank, beam_width, top_paths)


@opaque
def _ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int, beam_width: int, top_paths: int
) -> Tuple[Tensor, Tensor, Tensor]:
    time, batch, _ = probs.shape
    scores = torch.full((batch, top_paths), _ZERO, dtype=probs.dtype)
    sizes = torch.zeros(batch, top_paths, dtype=torch.int32)
    paths = torch.zeros(batch, top_paths, time, dtype=torch.int32)
    if is_fake(probs):
        return scores, sizes, paths
    for sample, length in enumerate(lengths.tolist()):
        steps = probs.detach()[:length, sample].tolist()
        for rank, (path, score) in enumerate(_search(steps, blank, beam_width)[:top_paths]):
            scores[sample, rank] = score
            sizes[sample, rank] = len(path)
            paths[sample, rank, : len(path)] = torch.tensor(path, dtype=torch.int32)
    return scores, sizes, paths


def _search(steps: List[List[float]], blank: int, width: int) -> List[Tuple[Path, float]]:
    """Paths and their logarithmic probabilities, the likeliest first.

    A beam is a path with the probability of all alignments seen so far that give this path, apart
    for those that end in a blank: only they can be followed by the path's last label as a new one.
    """
    beams: Dict[Path, Tuple[float, float]] = {(): (0.0, -math.inf)}
    for step in steps:
        found: Dict[Path, Tuple[float, float]] = {}
        for path, (after_blank, after_label) in beams.items():
            total = _add(after_blank, after_label)
            _raise(found, path, total + step[blank], after_label + step[path[-1]] if path else -math.inf)
            for label, score in enumerate(step):
                if label != blank:
                    repeated = bool(path) and label == path[-1]
                    _raise(found, (*path, label), -math.inf, score + (after_blank if repeated else total))
        beams = dict(sorted(found.items(), key=lambda beam: -_add(*beam[1]))[:width])
    return [(path, _add(*scores)) for path, scores in beams.items()]


def _raise(beams: Dict[Path, Tuple[float, float]], path: Path, after_blank: float, after_label: float) -> None:
    """Add these probabilities to a path's, unless both are zero."""
    if after_blank == after_label == -math.inf:
        return
    before = beams.get(path, (-math.inf, -math.inf))
    beams[path] = (_add(before[0], after_blank), _add(before[1], after_label))


def _add(first: float, second: float) -> float:
    """The logarithm of the sum of two numbers given by their logarithms."""
    low, high = sorted((first, second))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
