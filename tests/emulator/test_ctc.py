"""The beam search decoder, against all alignments and against PyTorch's CTC loss."""

from __future__ import annotations

import itertools
from typing import Any, Dict, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import infer
from torch import Tensor

decode = poptorch.ctc_beam_search_decoder


def logs(time: int, batch: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(time, batch, classes, generator=generator) * 2).log_softmax(-1)


def all_paths(steps: Tensor, blank: int) -> Dict[Tuple[int, ...], float]:
    """The probability of every path: the sum over all alignments that give it."""
    found: Dict[Tuple[int, ...], float] = {}
    time, classes = steps.shape
    for alignment in itertools.product(range(classes), repeat=time):
        path = tuple(label for label, _ in itertools.groupby(alignment) if label != blank)
        chance = float(steps[range(time), list(alignment)].double().sum().exp())
        found[path] = found.get(path, 0.0) + chance
    return found


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(2, 3), st.integers(0, 2), st.integers(0, 10**6), st.data())
def test_wide_beams_find_the_likeliest_paths(time: int, classes: int, blank: int, seed: int, data: Any) -> None:
    blank %= classes
    probs, top = logs(time, 2, classes, seed), data.draw(st.integers(1, 5))
    lengths = torch.tensor([time, data.draw(st.integers(1, time))])
    scores, sizes, paths = decode(probs, lengths, blank, 100, top)
    assert scores.shape == sizes.shape == (2, top) and paths.shape == (2, top, time)
    for sample in range(2):
        expected = all_paths(probs[: lengths[sample], sample], blank)
        likeliest = sorted(expected.values(), reverse=True)[:top]
        for rank, chance in enumerate(likeliest):
            path = tuple(paths[sample, rank, : sizes[sample, rank]].tolist())
            assert scores[sample, rank].exp().item() == pytest.approx(chance, rel=1e-4)
            assert expected[path] == pytest.approx(chance, rel=1e-4)  # paths may tie
        for rank in range(len(likeliest), top):
            assert scores[sample, rank].item() == -65504 and sizes[sample, rank].item() == 0


def test_scores_are_ctc_losses() -> None:
    probs = logs(6, 3, 5, seed=0)
    lengths = torch.tensor([6, 5, 3])
    scores, sizes, paths = decode(probs, lengths, beam_width=400, top_paths=3)
    for rank in range(3):
        targets = [paths[sample, rank, : sizes[sample, rank]].long() for sample in range(3)]
        losses = F.ctc_loss(probs, torch.cat(targets), lengths, sizes[:, rank].long(), reduction="none")
        torch.testing.assert_close(scores[:, rank], -losses)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_narrow_beams_never_overstate(width: int) -> None:
    probs = logs(5, 1, 4, seed=width)
    expected = all_paths(probs[:, 0], 0)
    scores, sizes, paths = decode(probs, torch.tensor([5]), beam_width=width, top_paths=width)
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    for rank in range(width):
        path = tuple(paths[0, rank, : sizes[0, rank]].tolist())
        assert scores[0, rank].exp().item() <= expected[path] * (1 + 1e-5)


def test_certain_alignments_are_read_off() -> None:
    alignment = [0, 2, 2, 0, 2, 1, 1]
    probs = F.one_hot(torch.tensor(alignment), 3).float().log().clamp(min=-1000)[:, None]
    scores, sizes, paths = decode(probs, torch.tensor([7]), beam_width=4)
    assert sizes.tolist() == [[3]] and paths[0, 0, :3].tolist() == [2, 2, 1]
    assert scores.item() == pytest.approx(0.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_device_decodes_every_micro_batch(kind: torch.dtype) -> None:
    probs, lengths = logs(4, 6, 3, seed=3).to(kind), torch.tensor([4, 3, 2, 4, 1, 4])

    def forward(probs: Tensor, lengths: Tensor) -> Any:
        return decode(probs.transpose(0, 1), lengths, blank=1, beam_width=20, top_paths=2)

    found = infer(forward, probs.transpose(0, 1), lengths, micro_batches=3)
    expected = decode(probs, lengths, blank=1, beam_width=20, top_paths=2)
    assert [item.dtype for item in found] == [kind, torch.int32, torch.int32]
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"probs": [1.0]}, "probs must be a torch.Tensor, not list"),
        ({"lengths": [2]}, "lengths must be a torch.Tensor, not list"),
        ({"probs": torch.zeros(2, 3)}, r"of shape \[time, batch, classes\]"),
        ({"probs": torch.zeros(2, 1, 3, dtype=torch.int32)}, "must be floating point"),
        ({"lengths": torch.tensor([1, 2])}, "one integer for each of 1 samples"),
        ({"lengths": torch.tensor([1.0])}, "one integer for each of 1 samples"),
        ({"blank": 3}, "blank must be one of 3 classes"),
        ({"top_paths": 101}, "top_paths must be between 1 and beam_width 100"),
        ({"top_paths": 0}, "top_paths must be between 1"),
    ],
    ids=str,
)
def test_decoder_refuses(change: Any, complaint: str) -> None:
    with pytest.raises(poptorch.Error, match=complaint):
        decode(**{"probs": torch.zeros(2, 1, 3), "lengths": torch.tensor([2]), **change})
