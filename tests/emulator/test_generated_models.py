"""Any model, any placement, any batches, any optimizer: the numbers are those of plain float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from generated_models import Case, cases, largest_error, train_emulated, train_plainly
from hypothesis import given, settings

# Of the largest number of each tensor. In half, every operator and every store of some updates rounds by up
# to 2^-11 of a number; norms and adaptive optimizers pass that on magnified.
FLOAT32_BOUND, FLOAT16_BOUND = 2e-6, 0.02
# Batch norms of a few similar values lose digits, in PyTorch's own float32 too.
BATCH_NORM_BOUND = 2e-5


@settings(max_examples=300)
@given(case=cases())
def test_float32_training_is_that_of_float64(case: Case) -> None:
    bound = BATCH_NORM_BOUND if any(layer.norm == "batch" for layer in case.layers) else FLOAT32_BOUND
    assert largest_error(train_emulated(case, torch.float32), train_plainly(case), case) < bound


@settings(max_examples=120)
@given(case=cases(half=True))
def test_float16_training_stays_close_to_that_of_float64(case: Case) -> None:
    assert largest_error(train_emulated(case, torch.float16), train_plainly(case), case) < FLOAT16_BOUND


@settings(max_examples=30)
@given(case=cases())
def test_a_slightly_wrong_step_would_be_noticed(case: Case) -> None:
    wrong = replace(case, values={**case.values, "lr": case.values["lr"] * 1.1})
    assert largest_error(train_plainly(wrong), train_plainly(case), case) > FLOAT32_BOUND
