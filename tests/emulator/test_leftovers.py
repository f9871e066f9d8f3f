"""Tensors that forward makes while it is traced, and keeps."""

from __future__ import annotations

import copy
import functools
from typing import Any, Dict, List, Optional

import poptorch
import pytest
import torch
from operator_models import Calls
from torch import Tensor, nn

X = torch.arange(6.0).reshape(2, 3)


class Keeping(nn.Module):
    """Makes a mask once, and keeps it in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mask: Optional[Tensor] = None
        self.masks: Dict[int, Tensor] = {}
        self.all: List[Any] = ["first"]
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.ones(x.size(0), 1, device=x.device) * 2
        if self.how == "attribute":
            self.mask = made if self.mask is None else self.mask
            return x * self.mask
        if self.how == "new attribute":
            self.made = (made, 1)
            return x * self.made[0]
        if self.how == "dictionary":
            return x * self.masks.setdefault(x.size(0), made)
        if self.how == "list":
            self.all.append(made)
            return x * self.all[-1]
        self.none = made if self.none is None else self.none
        return x * self.none


@pytest.mark.parametrize("how", ["attribute", "new attribute", "dictionary", "list", "buffer"])
def test_modules_are_left_as_they_were(how: str) -> None:
    model = nn.Sequential(Keeping(how))
    assert torch.equal(poptorch.inferenceModel(model)(X), 2 * X)
    kept = model[0]
    assert kept.mask is None and kept.masks == {} and kept.all == ["first"] and kept.none is None
    assert not hasattr(kept, "made")
    assert torch.equal(poptorch.inferenceModel(copy.deepcopy(model))(X), 2 * X)
    assert torch.equal(model(X), 2 * X)


def test_modules_are_left_as_they_were_when_tracing_fails() -> None:
    def fail(x: Tensor) -> Tensor:
        return x * x.sum().item()

    model = nn.Sequential(Keeping("attribute"), Calls(fail))
    with pytest.raises(poptorch.Error, match="item"):
        poptorch.inferenceModel(model)(X)
    assert model[0].mask is None


def test_what_is_kept_elsewhere_says_so() -> None:
    @functools.lru_cache
    def mask(rows: int) -> Tensor:
        return torch.ones(rows, 1, device="ipu" if poptorch.isRunningOnIpu() else "cpu")

    model = Calls(lambda x: x * mask(2))
    assert torch.equal(poptorch.inferenceModel(model)(X), X)
    for use in (lambda: model(X), lambda: mask(2).sum().item(), lambda: copy.deepcopy(mask(2))):
        with pytest.raises(poptorch.Error, match="has kept it, for example in a cache"):
            use()
    with pytest.raises(poptorch.Error, match="kept in a cache"):
        poptorch.inferenceModel(model)(X)
