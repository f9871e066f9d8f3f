"""Learning rates against the sources' definitions and the libraries' own schedulers."""

from __future__ import annotations

import math
from typing import Any, Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_references import big_vision_rsqrt, classy_vision, mae, mmcv, vit_jax
from tiny_runs import complaint

from ipu_vit.schedules import learning_rate
from ipu_vit.settings import ScheduleSettings

UPDATES = 50


def published(curve: str) -> ScheduleSettings:
    return ScheduleSettings(lr=0.08, updates=5000, warmup=800, warmup_start=0.02, curve=curve)


def follows(schedule: ScheduleSettings, expected: Callable[[int], float]) -> None:
    for update in range(schedule.updates):
        assert learning_rate(schedule, update) == pytest.approx(expected(update), rel=1e-9, abs=1e-12), update


@pytest.mark.parametrize(
    "curve, rates",
    [
        ("cosine_times_warmup", {800: 0.0750, 1500: 0.0635, 2500: 0.0400, 4000: 0.0076}),
        ("warmup_then_cosine", {800: 0.0800, 1500: 0.0746, 2500: 0.0518, 4000: 0.0107}),
    ],
)
def test_curves_at_published_points(curve: str, rates: Any) -> None:
    for update, rate in rates.items():
        assert learning_rate(published(curve), update) == pytest.approx(rate, abs=6e-5)


# --- the sources' definitions ------------------------------------------------------------------------


schedules = st.tuples(
    st.floats(1e-6, 10), st.integers(2, 5000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True)
)


@given(schedules, st.floats(0, 1))
def test_cosine_times_warmup_is_mmcvs(numbers: Any, final: float) -> None:
    lr, updates, share, start, at = numbers
    warmup, update = int(share * (updates - 1)), int(at * updates)
    schedule = ScheduleSettings(
        lr=lr, updates=updates, warmup=warmup, warmup_start=start, final=final, curve="cosine_times_warmup"
    )
    expected = mmcv(update, lr=lr, updates=updates, warmup=warmup, start=start, end=final * lr)
    assert learning_rate(schedule, update) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("warmup", [0, 1, 10, UPDATES - 1])
def test_cosine_and_line_are_vit_jaxs(warmup: int) -> None:
    cosine = ScheduleSettings(lr=0.03, updates=UPDATES, warmup=warmup, curve="warmup_then_cosine")
    follows(cosine, lambda i: vit_jax(i, lr=0.03, updates=UPDATES, warmup=warmup, decay="cosine"))
    line = ScheduleSettings(lr=0.03, updates=UPDATES, warmup=warmup, curve="warmup_then_linear", final=1e-5 / 0.03)
    follows(line, lambda i: vit_jax(i, lr=0.03, updates=UPDATES, warmup=warmup, decay="linear"))


@pytest.mark.parametrize("warmup, cooldown", [(0, 0), (10, 0), (0, 15), (10, 15), (20, 30)])
def test_rsqrt_is_big_visions(warmup: int, cooldown: int) -> None:
    numbers: Any = {"lr": 1e-3, "updates": UPDATES, "warmup": warmup, "timescale": 7.0, "cooldown": cooldown}
    follows(ScheduleSettings(curve="warmup_then_rsqrt", **numbers), lambda update: big_vision_rsqrt(update, **numbers))


def test_cosine_with_an_end_is_maes() -> None:
    schedule = ScheduleSettings(lr=2e-3, updates=UPDATES, warmup=5, curve="warmup_then_cosine", final=5e-4)
    follows(schedule, lambda update: mae(update, lr=2e-3, updates=UPDATES, warmup=5, end=1e-6))


def test_line_then_cosine_is_classy_visions() -> None:
    schedule = ScheduleSettings(lr=3e-3, updates=UPDATES, warmup=5, curve="warmup_then_cosine")
    follows(schedule, lambda update: classy_vision(update, lr=3e-3, updates=UPDATES, length=0.1))


# --- the libraries' schedulers -----------------------------------------------------------------------


def follows_library(schedule: ScheduleSettings, scheduler: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=schedule.lr)
    theirs = scheduler(optimizer)
    for update in range(schedule.updates):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(schedule, update) == pytest.approx(expected, rel=1e-6, abs=1e-12), update
        optimizer.step()
        theirs.step()


def after_a_line(start: float, warmup: int, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """PyTorch's warm-up, and what follows it."""

    def make(optimizer: Any) -> Any:
        line = torch.optim.lr_scheduler.LinearLR(optimizer, start, 1.0, warmup)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [line, then(optimizer)], [warmup])

    return make


def test_warmup_then_cosine_is_pytorchs() -> None:
    """As the later version of mmclassification's recipe has it."""
    schedule = ScheduleSettings(
        lr=0.3, updates=UPDATES, warmup=8, warmup_start=0.02, curve="warmup_then_cosine", final=0.1
    )
    follows_library(
        schedule,
        after_a_line(0.02, 8, lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, UPDATES - 8, eta_min=0.03)),
    )


def test_warmup_then_steps_is_pytorchs() -> None:
    schedule = ScheduleSettings(
        lr=0.3, updates=UPDATES, warmup=8, warmup_start=0.5, curve="warmup_then_steps", milestones=[20, 35],
        step_factor=0.25,
    )  # fmt: skip
    # PyTorch counts milestones from where the warm-up has ended.
    follows_library(
        schedule, after_a_line(0.5, 8, lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [12, 27], gamma=0.25))
    )


@pytest.mark.parametrize(
    "curve, own, name, arguments",
    [
        ("warmup_then_cosine", {}, "get_cosine_schedule_with_warmup", {"num_training_steps": UPDATES}),
        ("warmup_then_cosine", {"final": 0.1}, "get_cosine_with_min_lr_schedule_with_warmup",
         {"num_training_steps": UPDATES, "min_lr_rate": 0.1}),
        ("warmup_then_linear", {}, "get_linear_schedule_with_warmup", {"num_training_steps": UPDATES}),
        ("warmup_then_constant", {}, "get_constant_schedule_with_warmup", {}),
        ("warmup_then_rsqrt", {"timescale": 12}, "get_inverse_sqrt_schedule", {"timescale": 12}),
    ],
)  # fmt: skip
def test_curves_are_transformers(curve: str, own: Any, name: str, arguments: Any) -> None:
    """Graphcore's example takes its cosine from there."""
    library = pytest.importorskip("transformers.optimization")
    schedule = ScheduleSettings(lr=0.08, updates=UPDATES, warmup=8, curve=curve, **own)
    follows_library(schedule, lambda opt: getattr(library, name)(opt, num_warmup_steps=8, **arguments))


# --- what all have in common -------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["cosine_times_warmup", "warmup_then_cosine"])
def test_without_warmup_both_are_the_cosine(curve: str) -> None:
    schedule = ScheduleSettings(lr=2.0, updates=4, curve=curve)
    rates = [learning_rate(schedule, update) for update in range(5)]
    assert rates == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0])


@pytest.mark.parametrize("curve", ["cosine_times_warmup", "warmup_then_linear", "warmup_then_constant"])
def test_cooldown_goes_to_zero_on_a_line(curve: str) -> None:
    plain = ScheduleSettings(lr=2.0, updates=20, warmup=4, curve=curve)
    cooled = plain.model_copy(update={"cooldown": 8})
    for update in range(13):
        assert learning_rate(cooled, update) == learning_rate(plain, update)
    for update in range(12, 21):
        assert learning_rate(cooled, update) == pytest.approx(learning_rate(plain, update) * (20 - update) / 8)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["warmup=80"], "schedule.warmup=80 must be below schedule.updates=80; accepted: 0 to 79"),
        (["cooldown=73"], "schedule.cooldown=73 does not fit between schedule.warmup=8 and schedule.updates=80; "
                          "accepted: 0 to 72"),
        (["timescale=5"], "schedule.timescale=5.0 is a setting of warmup_then_rsqrt, which "
                          "schedule.curve=cosine_times_warmup has not; accepted: 10000.0"),
        (["curve=warmup_then_constant", "final=0.5"],
         "schedule.final=0.5 is a setting of cosine_times_warmup and warmup_then_cosine and warmup_then_linear, which "
         "schedule.curve=warmup_then_constant has not; accepted: 0.0"),
        (["curve=warmup_then_steps"], "schedule.milestones=[] leaves schedule.curve=warmup_then_steps without a step; "
                                      "accepted: a list of updates"),
        (["curve=warmup_then_steps", "milestones=[40, 40]"],
         "schedule.milestones=[40, 40] must rise; accepted: updates from schedule.warmup=8 to 79"),
        (["curve=warmup_then_steps", "milestones=[7]"],
         "schedule.milestones=[7] must rise; accepted: updates from schedule.warmup=8 to 79"),
        (["curve=cosine"], "schedule.curve=cosine is not cosine_times_warmup or warmup_then_cosine or "
                           "warmup_then_linear or warmup_then_constant or warmup_then_rsqrt or warmup_then_steps "
                           "(on the command line)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides: Any, message: str) -> None:
    assert complaint("quickstart", *(f"schedule.{override}" for override in overrides)) == message
