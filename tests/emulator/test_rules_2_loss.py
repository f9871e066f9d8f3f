"""The loss: every rule of section 2, and what section 13 says of losses, against plain PyTorch's gradients."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import Calls, infer
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
REDUCTIONS = ("mean", "sum", "none")


def train(forward: Callable[..., Any], weight: Tensor, *inputs: Any, opts: Any = None) -> Tuple[Any, Tensor]:
    """What the device returns, and the gradient by the weight: one step with a learning rate of 1 takes it off."""
    model = Calls(forward, weight)
    trainer = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=1.0))
    result = trainer(*inputs)
    trainer.copyWeightsToHost()
    return result, weight - model.weight.detach()


def plain_gradient(forward: Callable[..., Tensor], weight: Tensor, *inputs: Any) -> Tensor:
    weight = weight.clone().requires_grad_()
    forward(weight, *inputs).sum().backward()
    return weight.grad


def identity_loss(loss: Callable[..., Tensor], reduction: str = "none") -> Callable[..., Tensor]:
    return lambda *given: poptorch.identity_loss(loss(*given), reduction)


def batch(seed: int = 0) -> Tuple[Tensor, Tensor]:
    """Logits of five samples and four classes, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, generator=generator), torch.randint(0, 4, (5,), generator=generator)


LOGITS, CLASSES = batch()
OTHERS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
SIGNS = OTHERS.sign()
PROBABILITIES = OTHERS.softmax(1)
# Losses that PyTorch has, as functions of what is trained.
LOSSES: Dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda x, **how: F.cross_entropy(x, CLASSES, **how),
    "cross_entropy of one sample": lambda x, **how: F.cross_entropy(x[0], CLASSES[0], **how),
    "cross_entropy of pixels": lambda x, **how: F.cross_entropy(x[None].transpose(1, 2), CLASSES[None], **how),
    "cross_entropy, some ignored": lambda x, **how: F.cross_entropy(x, CLASSES, ignore_index=1, **how),
    "nll_loss": lambda x, **how: F.nll_loss(x.log_softmax(1), CLASSES, **how),
    "mse_loss": lambda x, **how: F.mse_loss(x, OTHERS, **how),
    "l1_loss": lambda x, **how: F.l1_loss(x, OTHERS, **how),
    "smooth_l1_loss": lambda x, **how: F.smooth_l1_loss(x, OTHERS, **how),
    "binary_cross_entropy": lambda x, **how: F.binary_cross_entropy(x.sigmoid(), PROBABILITIES, **how),
    "binary_cross_entropy_with_logits": lambda x, **how: F.binary_cross_entropy_with_logits(x, PROBABILITIES, **how),
    "kl_div": lambda x, **how: F.kl_div(x.log_softmax(1), PROBABILITIES, **how),
    "poisson_nll_loss": lambda x, **how: F.poisson_nll_loss(x, PROBABILITIES, **how),
    "hinge_embedding_loss": lambda x, **how: F.hinge_embedding_loss(x, SIGNS, **how),
    "margin_ranking_loss": lambda x, **how: F.margin_ranking_loss(x, OTHERS, SIGNS, **how),
    "soft_margin_loss": lambda x, **how: F.soft_margin_loss(x, SIGNS, **how),
    "triplet_margin_loss": lambda x, **how: F.triplet_margin_loss(x, OTHERS, PROBABILITIES, **how),
    "cosine_embedding_loss": lambda x, **how: F.cosine_embedding_loss(x, OTHERS, SIGNS[:, 0], **how),
    "multilabel_soft_margin_loss": lambda x, **how: F.multilabel_soft_margin_loss(x, PROBABILITIES, **how),
    "ctc_loss": lambda x, **how: F.ctc_loss(
        x[:, None].log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2]), **how
    ),
}


# --- which loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        lambda w: w.sum(),
        lambda w: w.log_softmax(1),
        lambda w: -w.log_softmax(1)[0].mean(),
        lambda w: None,
        lambda w: F.cosine_similarity(w, OTHERS).sum(),
    ],
)
def test_rule_2_1_training_needs_a_loss(forward: Any) -> None:
    model = Calls(forward, LOGITS)
    executor = poptorch.trainingModel(model)
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph"):
        executor.compile()
    poptorch.inferenceModel(Calls(forward, LOGITS)).compile()  # inference needs none


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_rule_2_1_losses_of_pytorch_bring_their_own(name: str, reduction: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return LOSSES[name](x, reduction=reduction)

    value, gradient = train(loss, LOGITS)
    torch.testing.assert_close(value, loss(LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(loss, LOGITS))


@pytest.mark.parametrize(
    "kind, inputs",
    [
        (torch.nn.CrossEntropyLoss(), (CLASSES,)),
        (torch.nn.NLLLoss(), (CLASSES,)),
        (torch.nn.MSELoss(), (OTHERS,)),
        (torch.nn.L1Loss(reduction="sum"), (OTHERS,)),
        (torch.nn.SmoothL1Loss(beta=0.5), (OTHERS,)),
        (torch.nn.BCEWithLogitsLoss(), (PROBABILITIES,)),
        (torch.nn.KLDivLoss(reduction="batchmean"), (PROBABILITIES,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rule_2_1_losses_of_pytorch_may_be_modules(kind: Any, inputs: Any) -> None:
    value, gradient = train(lambda w, *given: kind(w, *given), LOGITS, *inputs)
    torch.testing.assert_close(value, kind(LOGITS, *inputs))
    torch.testing.assert_close(gradient, plain_gradient(kind, LOGITS, *inputs))


def test_rule_2_1_two_losses_need_a_common_one() -> None:
    def separate(w: Tensor) -> Any:
        return F.mse_loss(w, OTHERS), F.l1_loss(w, OTHERS)

    def added(w: Tensor) -> Tensor:
        first, second = separate(w)
        return first + second

    for forward in (separate, added):
        with pytest.raises(poptorch.Error, match="Multiple independent losses"):
            poptorch.trainingModel(Calls(forward, LOGITS)).compile()
    value, gradient = train(identity_loss(added), LOGITS)
    torch.testing.assert_close(value, added(LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(added, LOGITS))


def test_rule_2_1_a_third_loss_beside_a_common_one_is_one_too_many() -> None:
    def forward(w: Tensor) -> Any:
        joined = poptorch.identity_loss(F.mse_loss(w, OTHERS) + F.l1_loss(w, OTHERS), "none")
        return joined, F.cross_entropy(w, CLASSES.to(w.device))

    with pytest.raises(poptorch.Error, match="Multiple independent losses"):
        poptorch.trainingModel(Calls(forward, LOGITS)).compile()


# --- absorbed losses ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(LOSSES)), st.sampled_from(REDUCTIONS)), min_size=1, max_size=4),
    st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    st.sampled_from(REDUCTIONS),
)
def test_rule_2_2_a_loss_may_feed_a_later_one(
    terms: List[Tuple[str, str]], factors: List[float], reduction: str
) -> None:
    def total(w: Tensor) -> Tensor:
        losses = [LOSSES[name](w, reduction=how).mean() * f for (name, how), f in zip(terms, factors)]
        # A loss of losses, in two steps: all but the last of them, then that one too.
        return poptorch.identity_loss(sum(losses[:-1], torch.zeros((), device=w.device)), reduction) + losses[-1]

    value, gradient = train(identity_loss(total), LOGITS)
    torch.testing.assert_close(value, total(LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(total, LOGITS), atol=1e-5, rtol=1e-4)


# --- arithmetic after the loss -----------------------------------------------------------------------

AFTER: Dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda loss, w: loss * 1000,
    "div": lambda loss, w: loss / 8,
    "add": lambda loss, w: loss + 100 * w.square().sum(),
    "neg": lambda loss, w: -loss,
    "exp": lambda loss, w: loss.exp(),
}


@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("wrapped", [False, True])
def test_rule_2_3_arithmetic_after_the_loss_has_no_gradient(name: str, wrapped: bool, log: Any) -> None:
    def loss(w: Tensor) -> Tensor:
        ce = F.cross_entropy(w, CLASSES.to(w.device))
        return poptorch.identity_loss(ce, "none") if wrapped else ce

    value, gradient = train(lambda w: AFTER[name](loss(w), w), LOGITS)
    torch.testing.assert_close(value, AFTER[name](loss(LOGITS), LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(loss, LOGITS))
    (record,) = log.records
    assert record.levelname == "WARNING" and f"The loss goes through {name} (" in record.getMessage()
    assert "test_rules_2_loss.py" in record.getMessage()


@pytest.mark.parametrize("name", AFTER)
def test_rule_2_3_the_last_value_is_to_be_wrapped(name: str, log: Any) -> None:
    def loss(w: Tensor) -> Tensor:
        return AFTER[name](F.cross_entropy(w, CLASSES.to(w.device)), w)

    value, gradient = train(identity_loss(loss), LOGITS)
    torch.testing.assert_close(value, loss(LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(loss, LOGITS))
    assert not log.records


def test_rule_2_3_a_mean_of_losses_is_arithmetic_too(log: Any) -> None:
    value, gradient = train(lambda w: F.cross_entropy(w, CLASSES.to(w.device), reduction="none").mean(), LOGITS)
    torch.testing.assert_close(value, F.cross_entropy(LOGITS, CLASSES))
    # Each sample's loss starts with a gradient of one.
    torch.testing.assert_close(
        gradient, plain_gradient(lambda w: F.cross_entropy(w, CLASSES.to(w.device), reduction="sum"), LOGITS)
    )
    assert "goes through mean" in log.text


@pytest.mark.parametrize(
    "shown",
    [
        lambda loss, w: loss,
        lambda loss, w: (w * 2, loss),
        lambda loss, w: {"loss": loss, "accuracy": (w.argmax(1) == CLASSES.to(w.device)).float().mean()},
        lambda loss, w: loss.detach(),
        lambda loss, w: loss.clone(),
        lambda loss, w: loss.reshape(1),
        lambda loss, w: loss[None],
        lambda loss, w: loss.half(),
        lambda loss, w: torch.stack([loss, loss]),
        lambda loss, w: torch.cat([loss[None], torch.zeros(1, device=w.device)]),
        lambda loss, w: w,
        lambda loss, w: None,
    ],
)
def test_rule_2_3_no_warning_without_arithmetic(shown: Any, log: Any) -> None:
    _, gradient = train(lambda w: shown(F.cross_entropy(w, CLASSES.to(w.device)), w), LOGITS)
    torch.testing.assert_close(gradient, plain_gradient(lambda w: F.cross_entropy(w, CLASSES.to(w.device)), LOGITS))
    assert not log.records


def test_rule_2_3_inference_has_nothing_to_warn_of(log: Any) -> None:
    infer(lambda x: F.cross_entropy(x, CLASSES.to(x.device)) * 2, LOGITS)
    assert not log.records


# --- losses of ordinary operators --------------------------------------------------------------------

SOFT: Dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda w: F.cross_entropy(w, PROBABILITIES),
    "sum": lambda w: F.cross_entropy(w, PROBABILITIES, reduction="sum"),
    "none": lambda w: F.cross_entropy(w, PROBABILITIES, reduction="none"),
    "smoothed": lambda w: F.cross_entropy(w, PROBABILITIES, label_smoothing=0.1),
    "weighted": lambda w: F.cross_entropy(w, PROBABILITIES, weight=torch.arange(4.0, device=w.device)),
    "one sample": lambda w: F.cross_entropy(w[0], PROBABILITIES[0]),
    "pixels": lambda w: F.cross_entropy(w.reshape(1, 5, 2, 2), PROBABILITIES.reshape(1, 5, 2, 2)),
    "one_hot": lambda w: F.cross_entropy(w, F.one_hot(CLASSES, 4).float()),
    "written out": lambda w: -(PROBABILITIES * w.log_softmax(1)).sum(1).mean(),
}


@pytest.mark.parametrize("name", SOFT)
def test_rule_2_4_probabilities_leave_no_loss_operator(name: str) -> None:
    loss = SOFT[name]
    with pytest.raises(poptorch.Error, match="Couldn't find a loss"):
        poptorch.trainingModel(Calls(loss, LOGITS)).compile()
    value, gradient = train(identity_loss(loss), LOGITS)
    torch.testing.assert_close(value, loss(LOGITS))
    torch.testing.assert_close(gradient, plain_gradient(loss, LOGITS))


# --- identity_loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction, expected", [("sum", 6.0), ("mean", 2.0)])
def test_rule_2_5_identity_loss_reduces(reduction: str, expected: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert poptorch.identity_loss(x, reduction).item() == expected
    assert infer(lambda x: poptorch.identity_loss(x, reduction), x).item() == expected
    _, gradient = train(lambda w: poptorch.identity_loss(w, reduction), x)
    torch.testing.assert_close(gradient, torch.full((3,), expected / 6))


def test_rule_2_5_identity_loss_without_reduction_copies() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = poptorch.identity_loss(x, "none")
    assert torch.equal(loss, x) and loss.data_ptr() != x.data_ptr()
    loss.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))


@pytest.mark.parametrize("reduction", ["max", "", None, "Mean"])
def test_rule_2_5_identity_loss_asserts_its_reduction(reduction: Any) -> None:
    with pytest.raises(AssertionError, match="Unsupported reduction"):
        poptorch.identity_loss(LOGITS, reduction)
    with pytest.raises(AssertionError, match="Unsupported reduction"):
        train(lambda w: poptorch.identity_loss(w, reduction), LOGITS)


# --- where the loss goes -----------------------------------------------------------------------------


@pytest.mark.parametrize("returned", ["loss last", "loss first", "prediction", "nothing"])
def test_rule_2_6_the_loss_need_not_be_returned(returned: str) -> None:
    def forward(w: Tensor) -> Any:
        loss = F.cross_entropy(w, CLASSES.to(w.device))
        return {"loss last": (w, loss), "loss first": (loss, w), "prediction": w, "nothing": None}[returned]

    result, gradient = train(forward, LOGITS)
    torch.testing.assert_close(gradient, plain_gradient(lambda w: F.cross_entropy(w, CLASSES.to(w.device)), LOGITS))
    assert (result is None) == (returned == "nothing")


@pytest.mark.parametrize("own", ["mean", "sum"])
@pytest.mark.parametrize("reduction", [poptorch.ReductionType.Mean, poptorch.ReductionType.Sum])
def test_rule_2_7_the_losss_own_reduction_is_its_own(own: str, reduction: Any) -> None:
    opts = options(accumulation=3)
    opts.Training.accumulationAndReplicationReductionType(reduction)
    model = Layers()
    x, y = data(12)
    with torch.no_grad():
        expected = [F.cross_entropy(model.logits(a), b, reduction=own) for a, b in zip(x.split(4), y.split(4))]
    weight = torch.randn(6, 3)
    losses, gradient = train(lambda w, x, y: F.cross_entropy(x @ w, y, reduction=own), weight, x, y, opts=opts)
    assert losses.shape == (3,) and len(expected) == 3
    whole = plain_gradient(lambda w: F.cross_entropy(x @ w, y, reduction="sum"), weight)
    divisor = (4 if own == "mean" else 1) * (3 if reduction == poptorch.ReductionType.Mean else 1)
    torch.testing.assert_close(gradient, whole / divisor)


# --- what section 13 says of cross entropy -----------------------------------------------------------


def test_section_13_label_smoothing_of_a_mean_is_unusable() -> None:
    with pytest.raises(poptorch.Error, match=r"label_smoothing.*masked_select.*test_rules_2_loss.py:\d+"):
        train(lambda w: F.cross_entropy(w, CLASSES.to(w.device), label_smoothing=0.1), LOGITS)
    with pytest.raises(poptorch.Error, match="masked_select"):
        infer(lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1), LOGITS)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_section_13_label_smoothing_ends_in_arithmetic(reduction: str, ignore_index: int, log: Any) -> None:
    how: Dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}

    def smoothed(w: Tensor) -> Tensor:
        return F.cross_entropy(w, CLASSES.to(w.device), label_smoothing=0.1, **how)

    value, gradient = train(smoothed, LOGITS)
    torch.testing.assert_close(value, smoothed(LOGITS))
    torch.testing.assert_close(
        gradient, plain_gradient(lambda w: F.cross_entropy(w, CLASSES.to(w.device), **how), LOGITS)
    )
    assert "The loss goes through" in log.text
    _, gradient = train(identity_loss(smoothed), LOGITS)
    torch.testing.assert_close(gradient, plain_gradient(smoothed, LOGITS))


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_section_13_class_weights_are_refused(loss: Any) -> None:
    with pytest.raises(poptorch.Error, match=r"Class weights .*test_rules_2_loss.py:\d+"):
        infer(lambda x, y: loss(x, y, torch.ones(4, device=x.device)), LOGITS, CLASSES)
    with pytest.raises(poptorch.Error, match="Class weights"):
        infer(torch.nn.CrossEntropyLoss(weight=torch.ones(4)), LOGITS, CLASSES)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_section_13_classes_may_be_int32(dtype: torch.dtype) -> None:
    found = infer(lambda x, y: F.cross_entropy(x, y), LOGITS, CLASSES.to(dtype))
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, CLASSES))
