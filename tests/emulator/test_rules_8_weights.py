"""Section 8: a module and its weights while executors train it and run it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options, plain_twin
from torch import Tensor, nn


class Net(nn.Module):
    """A layer, a normalisation, a weight of its own and a buffer; every kind of tensor a module has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x)) * self.scale + self.shift
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return logits, F.cross_entropy(logits, y)


Values = Dict[str, Tensor]


def trainer(model: nn.Module, opts: Optional[Any] = None, **values: Any) -> Any:
    optimizer = poptorch.optim.SGD(model.parameters(), **{"lr": 0.1, **values})
    return poptorch.trainingModel(model, options() if opts is None else opts, optimizer)


def raw(model: nn.Module) -> Values:
    """Copies of the host's numbers as they are, without touching the tensors in a way that PyTorch sees."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch._C.DisableTorchFunctionSubclass():
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def equal(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def after_one_update(make: Callable[[], nn.Module] = Net) -> Values:
    """The weights after one update, fetched explicitly."""
    model = make()
    executor = trainer(model)
    executor(*data(8))
    executor.copyWeightsToHost()
    return raw(model)


# Wrapping (8.1) ----------------------------------------------------------------------------------


def classes(model: nn.Module) -> List[type]:
    return [type(item) for item in (model, *model.modules(), *model.parameters(), *model.buffers())]


def test_rule_8_1_classes_change_while_wrapped_and_come_back() -> None:
    model = Net()
    before = classes(model)
    executor = trainer(model)
    assert executor.model is model and isinstance(model, Net)
    assert type(model).__name__ == "PoptorchNet"
    assert all(type(tensor) not in (nn.Parameter, Tensor) for tensor in (*model.parameters(), *model.buffers()))
    assert all(isinstance(tensor, nn.Parameter) for tensor in model.parameters())
    executor(*data(8))
    executor.destroy()
    assert classes(model) == before
    assert equal(raw(model), after_one_update())


def test_rule_8_1_a_module_trains_once_at_a_time() -> None:
    model = Layers()
    executor = trainer(model)
    for again in (model, executor):
        with pytest.raises(RuntimeError, match="already wrapped"):
            trainer(again)
    executor.compile(*data(1))
    executor.destroy()
    assert trainer(executor).model is model


def test_rule_8_1_the_module_can_destroy_its_executor() -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    assert model.copyWeightsToHostIfNeeded() is True  # type: ignore[operator]
    assert model.copyWeightsToHostIfNeeded() is False  # type: ignore[operator]
    model.destroy()  # type: ignore[operator]
    assert not executor.isCompiled() and not hasattr(model, "destroy")


def test_rule_8_1_an_executor_that_is_not_compiled_leaves_the_module_wrapped() -> None:
    class Refused(Net):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.logits(x)  # no loss

    for model in (Refused(), Net()):
        executor = trainer(model)
        if isinstance(model, Refused):
            with pytest.raises(poptorch.Error, match="loss"):
                executor.compile(*data(8))
        executor.destroy()
        del executor
        with pytest.raises(RuntimeError, match="already wrapped"):
            trainer(model)


def test_rule_8_1_inference_shares_a_module_and_takes_an_executor() -> None:
    model = Net().eval()
    training = trainer(model)
    for shared in (model, training):
        inference = poptorch.inferenceModel(shared, options())
        assert inference.model is model
        x, y = data(8)
        torch.testing.assert_close(inference(x, y)[0], model.logits(x))


def test_rule_8_1_a_destroyed_executor_is_not_compiled() -> None:
    executor = trainer(Net())
    executor(*data(8))
    executor.destroy()
    executor.destroy()
    assert not executor.isCompiled() and not executor.isAttachedToDevice()
    for call in (executor.copyWeightsToHost, executor.copyWeightsToDevice, executor.attachToDevice):
        with pytest.raises(poptorch.Error, match="not compiled"):
            call()
    with pytest.raises(poptorch.Error, match="not compiled"):
        executor.rng_state  # noqa: B018


def test_rule_8_1_a_module_does_not_keep_its_executor() -> None:
    model = Net()
    trainer(model)
    assert model.copyWeightsToHostIfNeeded() is False  # type: ignore[operator]
    model.destroy()  # type: ignore[operator]
    assert not equal(raw(model), after_one_update())


# Touching (8.2) ----------------------------------------------------------------------------------

TOUCHES: Dict[str, Callable[[Net], Any]] = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict with parameters": lambda model: model.state_dict(keep_vars=True)["scale"] + 0,
    "forward": lambda model: model(*data(3)),
    "a method": lambda model: model.logits(torch.ones(2, 6)),
    "a parameter's data": lambda model: model.scale.data,
    "detach": lambda model: model.scale.detach(),
    "numpy": lambda model: model.scale.detach().numpy(),
    "printing": lambda model: repr(model.scale),
    "formatting a scalar": lambda model: f"{model.norm.num_batches_tracked}",
    "a number": lambda model: model.scale[0].item(),
    "tolist": lambda model: model.scale.tolist(),
    "a buffer": lambda model: model.shift + 1,
    "a list of tensors": lambda model: torch.cat([model.scale, model.shift]),
    "torch.equal": lambda model: torch.equal(torch.ones(4), model.scale),
    "to float64": lambda model: model.scale.double(),
    "deepcopy": lambda model: copy.deepcopy(model),
    "deepcopy of a parameter": lambda model: copy.deepcopy(model.scale),
    "copy of a parameter": lambda model: copy.copy(model.scale),
    "pickle": lambda model: pickle.dumps(model),
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "an optimizer's zero_grad": lambda model: torch.optim.SGD(model.parameters(), lr=0.1).zero_grad(),
    "in place": lambda model: nn.init.zeros_(model.shift),
    "norm": lambda model: nn.utils.parameters_to_vector(model.parameters()),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_rule_8_2_touching_a_weight_fetches_them_all(touch: Callable[[Net], Any]) -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    trained = after_one_update()
    touch(model)
    if touch is TOUCHES["in place"]:
        trained["shift"] = torch.zeros(4)
    if touch is TOUCHES["forward"] or touch is TOUCHES["a method"]:  # which updates the statistics on the host
        trained.update({name: value for name, value in raw(model).items() if name.startswith("norm.r")})
        trained["norm.num_batches_tracked"] += 1
    assert equal(raw(model), trained)
    assert executor.copyWeightsToHostIfNeeded() is False


def test_rule_8_2_looking_at_what_is_no_number_fetches_nothing() -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    assert len(list(model.parameters())) == 5 and isinstance(model.scale, nn.Parameter)
    assert repr(model).startswith("PoptorchNet(")
    assert executor.copyWeightsToHostIfNeeded() is True


def test_rule_8_2_results_of_touching_are_plain() -> None:
    model = Net()
    trainer(model)(*data(8))
    assert repr(model.scale) == repr(nn.Parameter(model.scale.data)) and repr(model.shift) == repr(torch.zeros(4))
    plain = [model.scale + 1, model.shift.clone(), model.scale.data, model.logits(torch.ones(2, 6))]
    assert all(type(tensor) is Tensor for tensor in plain)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(twin) is Net and equal(raw(twin), raw(model))
    assert all(type(p) is nn.Parameter for p in copy.deepcopy(model).parameters())


def test_rule_8_2_copies_go_their_own_way() -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    twin = copy.deepcopy(model)
    before = raw(twin)
    executor(*data(8))
    executor.copyWeightsToHost()
    assert equal(raw(twin), before) and not equal(raw(model), before)
    # The copy is no executor's, and goes on from where it was taken.
    follower = trainer(twin)
    follower(*data(8))
    follower.copyWeightsToHost()
    assert equal(raw(twin), raw(model))


def test_rule_8_2_evaluating_on_the_cpu_between_steps_is_correct() -> None:
    model, twin = Layers(), plain_twin(Layers())
    executor = trainer(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for seed in range(3):
        x, y = data(8, seed)
        executor(x, y)
        optimizer.zero_grad()
        F.cross_entropy(twin.logits(x.double()), y).backward()  # type: ignore[operator]
        optimizer.step()
        torch.testing.assert_close(model.logits(x).double(), twin.logits(x.double()))  # type: ignore[operator]


def test_rule_8_2_gradients_of_the_cpu_are_as_ever() -> None:
    """A wrapped module can be differentiated and optimized on the host."""
    model, plain = Net(), Net()
    executor = trainer(model)
    optimizers = [torch.optim.Adam(each.parameters(), lr=0.1) for each in (model, plain)]
    for each, optimizer in zip((model, plain), optimizers):
        optimizer.zero_grad()
        each(*data(8))[1].backward()
        nn.utils.clip_grad_norm_(each.parameters(), 1.0)
        optimizer.step()
    assert equal(raw(model), raw(plain))
    executor.compile(*data(8))
    executor.copyWeightsToHost()
    assert equal(raw(model), raw(plain))


# Host to device (8.3) ----------------------------------------------------------------------------

CHANGES: Dict[str, Callable[[Net], Any]] = {
    "under no_grad": lambda model: _add_without_gradient(model),
    "data": lambda model: model.scale.data.add_(1),
    "new data": lambda model: setattr(model.scale, "data", model.scale.data + 1),
    "init": lambda model: nn.init.constant_(model.scale, 2.0),
    "load_state_dict": lambda model: model.load_state_dict({**model.state_dict(), "scale": torch.full((4,), 2.0)}),
    "another parameter": lambda model: setattr(model, "scale", nn.Parameter(torch.full((4,), 2.0))),
}


def _add_without_gradient(model: Net) -> None:
    with torch.no_grad():
        model.scale.add_(1)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rule_8_3_changes_of_the_host_go_to_the_device_when_told(change: Callable[[Net], Any]) -> None:
    model = Net().eval()
    executor = trainer(model, lr=0.0)
    x, y = data(8)
    before = executor(x, y)[0]
    change(model)
    assert torch.equal(model.scale.detach(), torch.full((4,), 2.0))
    torch.testing.assert_close(executor(x, y)[0], before)
    executor.copyWeightsToHost()  # which undoes it
    assert torch.equal(model.scale.detach(), torch.ones(4))
    change(model)
    executor.copyWeightsToDevice()
    torch.testing.assert_close(executor(x, y)[0], before * 2)


def test_rule_8_3_the_executor_loads_on_to_the_device() -> None:
    model = Net().eval()
    executor = trainer(model, lr=0.0)
    x, y = data(8)
    state = {**model.state_dict(), "scale": torch.full((4,), 2.0)}
    before = executor(x, y)[0]
    assert executor.load_state_dict(state).missing_keys == []
    torch.testing.assert_close(executor(x, y)[0], before * 2)


def test_rule_8_9_loading_takes_a_state_and_whether_to_be_strict() -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    trained = after_one_update()
    state = model.state_dict()
    del state["shift"], state["layer.weight"], state["layer.bias"]
    with pytest.raises(RuntimeError, match="Missing"):
        executor.load_state_dict(state)
    state.update(scale=torch.zeros(4), other=torch.ones(1))
    keys = executor.load_state_dict(state, strict=False)
    assert keys.unexpected_keys == ["other"]
    assert set(keys.missing_keys) == {"shift", "layer.weight", "layer.bias"}
    executor.copyWeightsToHost()
    assert equal(raw(model), {**trained, "scale": torch.zeros(4)})
    with pytest.raises(TypeError):
        executor.load_state_dict(trained, True, True)


def test_rule_8_3_what_changed_after_compile_must_still_fit() -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    model.scale = nn.Parameter(torch.ones(5))
    with pytest.raises(poptorch.Error, match=r"scale of shape \(4,\) was replaced by one of shape \(5,\)"):
        executor.copyWeightsToDevice()


def test_a_module_may_change_its_type_between_wrapping_and_compiling() -> None:
    """model.half() keeps the parameters and replaces the buffers."""
    model = Net()
    executor = trainer(model)
    model.half()
    x, y = data(8)
    logits, _ = executor(x.half(), y)
    assert logits.dtype == torch.float16
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16, torch.int64}
    assert float(model.norm.running_mean.abs().max()) > 0


# Devices (8.4) -----------------------------------------------------------------------------------


def test_rule_8_4_devices_are_attached_and_detached_once() -> None:
    executor = trainer(Layers())
    for call in (executor.attachToDevice, executor.detachFromDevice):
        with pytest.raises(poptorch.Error, match="not compiled"):
            call()
    executor(*data(4))
    with pytest.raises(poptorch.Error, match="attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    assert not executor.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="not attached"):
        executor.detachFromDevice()
    executor.attachToDevice()
    assert executor.isAttachedToDevice()


@pytest.mark.parametrize("explicitly", [True, False])
def test_rule_8_4_training_goes_on_after_a_pause(explicitly: bool) -> None:
    """Weights, momentum and random numbers survive; a call takes the device again."""
    paused, straight = Layers(), Layers()
    executors = [trainer(model, options(seed=1), momentum=0.9, weight_decay=0.01) for model in (paused, straight)]
    for executor in executors:
        executor(*data(4, 1))
    executors[0].detachFromDevice()
    if explicitly:
        executors[0].attachToDevice()
    for executor in executors:
        executor(*data(4, 2))
        assert executor.isAttachedToDevice()
    assert equal(raw_after_copy(paused), raw_after_copy(straight))


def raw_after_copy(model: Any) -> Values:
    model.copyWeightsToHostIfNeeded()
    return raw(model)


def test_rule_8_4_detaching_copies_back_and_attaching_uploads() -> None:
    model = Net().eval()
    executor = trainer(model, lr=0.0)
    x, y = data(8)
    before = executor(x, y)[0]
    executor.detachFromDevice()
    assert executor.copyWeightsToHostIfNeeded() is False
    model.load_state_dict({**model.state_dict(), "scale": torch.full((4,), 3.0)})
    executor.attachToDevice()
    torch.testing.assert_close(executor(x, y)[0], before * 3)


def test_rule_8_4_inference_follows_training() -> None:
    model = Layers()
    training, inference = trainer(model), None
    x, y = data(4)
    for seed in range(3):
        training(*data(8, seed))
        inference = poptorch.inferenceModel(training, options()) if inference is None else inference
        found = inference(x, y)[0]
        torch.testing.assert_close(found, model.logits(x))
        assert training.copyWeightsToHostIfNeeded() is False
    torch.testing.assert_close(inference(x, y)[0], found)  # type: ignore[misc]


def test_rule_8_4_inference_alone_keeps_the_weights_it_was_compiled_with() -> None:
    model = Net().eval()
    inference = poptorch.inferenceModel(model, options())
    x, y = data(4)
    before = inference(x, y)[0]
    with torch.no_grad():
        model.scale.mul_(2)
    assert torch.equal(inference(x, y)[0], before)
    inference.copyWeightsToDevice()
    torch.testing.assert_close(inference(x, y)[0], before * 2)


# Flags and state (8.5, 8.6) ----------------------------------------------------------------------


class Masked(nn.Module):
    """Dropout as a module and by the model's own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.inner = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        own, inner = F.dropout(x, 0.5, self.training), self.inner(x)
        return own, inner, poptorch.identity_loss((x * self.weight).sum(), "none")


def test_rule_8_5_flags_count_as_they_are_when_wrapped() -> None:
    """The wrapped module is a shallow copy: its own flag stays, those of modules inside are shared."""
    model = Masked().eval()
    executor = poptorch.inferenceModel(model, options(seed=1))
    model.train()
    x = torch.ones(1, 1000)
    own, inner, _ = executor(x)
    assert torch.equal(own, x) and not torch.equal(inner, x)


@pytest.mark.parametrize("training", [True, False])
def test_rule_8_5_dropout_in_inference_follows_the_flag(training: bool) -> None:
    x = torch.ones(1, 1000)
    own, inner, _ = poptorch.inferenceModel(Masked().train(training), options(seed=1))(x)
    assert torch.equal(own, x) is torch.equal(inner, x) is not training


def test_rule_8_6_a_saved_state_needs_no_poptorch(tmp_path: Path) -> None:
    model = Net()
    executor = trainer(model)
    executor(*data(8))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(list(model.parameters()), tmp_path / "parameters.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['ipu_vit'] = sys.modules['poptorch'] = None\n"
        f"state, parameters = (torch.load(f'{tmp_path}/{{name}}.pt') for name in ('state', 'parameters'))\n"
        "assert {type(value) for value in state.values()} == {torch.Tensor}\n"
        "assert {type(value) for value in parameters} == {torch.nn.Parameter}\n"
        f"torch.save(state, r'{tmp_path / 'again.pt'}')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert equal(torch.load(tmp_path / "again.pt"), after_one_update())


# Buffers (8.7, 8.8) ------------------------------------------------------------------------------


class Counter(nn.Module):
    """Adds its input into a buffer, and counts its calls in Python."""

    def __init__(self, how: str = "in place") -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        if self.how == "in place":
            self.total += x.sum(0)
        elif self.how == "copied":
            self.total.copy_(self.total + x.sum(0))
        elif self.how == "assigned":
            self.total = self.total + x.sum(0)
        elif self.how == "a new parameter":
            self.weight = nn.Parameter(self.weight * 2)
        elif self.how == "removed":
            del self.total
        loss = poptorch.identity_loss((x * self.weight).mean(), "none")
        return self.total.clone().unsqueeze(0), x[:, 0] * 0 + self.calls, loss


@pytest.mark.parametrize("how", ["in place", "copied"])
def test_rule_8_7_a_buffer_changed_in_place_goes_on_from_run_to_run(how: str) -> None:
    model = Counter(how)
    executor = trainer(model, options(accumulation=2, iterations=2))
    x = torch.arange(16.0).reshape(8, 2)
    totals, calls, _ = executor(x)
    assert torch.equal(totals, x.reshape(4, 2, 2).sum(1).cumsum(0))
    totals, calls, _ = executor(x)
    assert torch.equal(totals[-1], 2 * x.sum(0)) and torch.equal(model.total, 2 * x.sum(0))
    assert torch.equal(calls, torch.ones(8)) and model.calls == 0  # the copy's counter froze at compile


@pytest.mark.parametrize("how, name", [("assigned", "total"), ("a new parameter", "weight"), ("removed", "total")])
def test_rule_8_7_buffers_and_parameters_are_not_assigned(how: str, name: str) -> None:
    model = Counter(how)
    with pytest.raises((poptorch.Error, AttributeError), match=name):
        trainer(model).compile(torch.ones(1, 2))
    assert set(model.state_dict()) == {"weight", "total"} and torch.equal(model.total, torch.zeros(2))


def test_rule_8_7_replicas_do_not_share_a_changed_buffer() -> None:
    with pytest.raises(poptorch.Error, match=r"total .*broadcastBuffers\(False\)"):
        trainer(Counter(), options(replicas=2)).compile(torch.ones(2, 2))
    opts = options(replicas=2, accumulation=2)
    opts.broadcastBuffers(False)
    model = Counter()
    executor = trainer(model, opts)
    x = torch.arange(8.0).reshape(4, 2)
    for _ in range(3):
        totals, _, _ = executor(x)
    # Two micro batches of one row each for each replica, three times.
    assert torch.equal(totals[2:].sum(0), 3 * x.sum(0))
    first = [torch.equal(model.total, rows) for rows in totals[2:]]
    assert any(first)
    executor.copyWeightsToDevice()
    totals, _, _ = executor(torch.zeros(4, 2))
    assert torch.equal(totals, model.total.expand(4, 2))


def test_rule_8_7_each_replica_has_statistics_of_its_own() -> None:
    class OneGroup(Net):
        """Its inputs have one value per row, so that each replica's mean is known."""

    model = OneGroup()
    executor = trainer(model, options(replicas=2), lr=0.0)
    x, y = data(16)
    executor(x, y)
    means = []
    for part in x.chunk(2):
        twin = OneGroup()
        twin.logits(part)
        means.append(twin.norm.running_mean)
    found = model.norm.running_mean
    assert any(torch.allclose(found, mean, atol=1e-6) for mean in means if mean is not None)
    assert int(model.norm.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_rule_8_7_statistics_may_be_assigned() -> None:
    class Assigns(Net):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            self.norm.num_batches_tracked = self.norm.num_batches_tracked + 1
            return super().forward(x, y)

    trainer(Assigns())(*data(8))


def test_rule_8_7_buffers_are_plain_tensors() -> None:
    class Own(Tensor):
        pass

    model = Net()
    model.register_buffer("odd", torch.ones(2).as_subclass(Own))
    with pytest.raises(poptorch.Error, match="odd is of type Own"):
        trainer(model)


def test_rule_8_7_a_buffer_between_models_is_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.one, self.other = nn.Module(), nn.Module()
            shared = torch.zeros(1)
            self.one.register_buffer("count", shared)
            self.other.register_buffer("count", shared)

        def forward(self, x: Tensor) -> Any:
            self.one.count += 1  # type: ignore[operator]
            return self.other.count.clone(), poptorch.identity_loss((x * self.weight).sum(), "none")

    executor = trainer(Two(), options(iterations=3))
    assert torch.equal(executor(torch.ones(3))[0], torch.tensor([1.0, 2.0, 3.0]))


def test_rule_8_8_inference_does_not_copy_buffers_back_by_itself() -> None:
    model = Counter()
    executor = poptorch.inferenceModel(model, options())
    x = torch.ones(1, 2)
    assert torch.equal(executor(x)[0], x) and torch.equal(executor(x)[0], 2 * x)
    assert executor.copyWeightsToHostIfNeeded() is False
    assert torch.equal(model.total, torch.zeros(2))
    executor.copyWeightsToHost()
    assert torch.equal(model.total, torch.full((2,), 2.0))


def test_named_buffers_are_updated_alone() -> None:
    model = Net().eval()
    opts = options()
    opts.updatableNamedBuffers(["shift"])
    executor = poptorch.inferenceModel(model, opts)
    x, y = data(4)
    before = executor(x, y)[0]
    with torch.no_grad():
        model.scale.mul_(5)
        model.shift.add_(1)  # type: ignore[operator]
    executor.copyNamedBuffersToDevice()
    torch.testing.assert_close(executor(x, y)[0], before + 1)


def test_named_buffers_must_be_buffers() -> None:
    opts = options()
    opts.updatableNamedBuffers(["scale"])
    executor = poptorch.inferenceModel(Net(), opts)
    executor.compile(*data(4))
    with pytest.raises(poptorch.Error, match="'scale', which is no buffer"):
        executor.copyNamedBuffersToDevice()


# What executors are beside ------------------------------------------------------------------------


def test_an_executor_has_its_modules_attributes() -> None:
    model = Net()
    executor = trainer(model)
    assert executor.layer is model.layer and executor.training is True
    assert executor.state_dict().keys() == model.state_dict().keys()
    assert executor.scale.shape == (4,) and torch.equal(executor.scale.data, torch.ones(4))
    assert repr(executor) == repr(model)
    with pytest.raises(AttributeError, match="nothing"):
        executor.nothing  # noqa: B018


SHARES: Dict[str, Callable[[Net], Any]] = {
    "a state dictionary": lambda model: model.state_dict()["scale"],
    "a numpy array": lambda model: model.scale.detach().numpy(),
    "data": lambda model: model.scale.data,
    "a view": lambda model: model.scale.view(2, 2),
}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("when", ["before wrapping", "before compiling", "after a run"])
def test_rule_8_2_weights_are_copied_into_the_memory_they_have(share: Callable[[Net], Any], when: str) -> None:
    """Whoever shares the host's memory sees what is copied back, as late as that."""
    model = Net()
    seen = share(model) if when == "before wrapping" else None
    executor = trainer(model)
    seen = share(model) if when == "before compiling" else seen
    executor.compile(*data(8))
    executor(*data(8, 1))
    seen = share(model) if when == "after a run" else seen
    before = torch.as_tensor(seen).detach().clone()
    executor(*data(8, 2))
    assert torch.equal(torch.as_tensor(seen).detach(), before)
    executor.copyWeightsToHost()
    assert torch.equal(torch.as_tensor(seen).detach().flatten(), model.scale.detach())
    assert not torch.equal(torch.as_tensor(seen).detach(), before)


def test_rule_8_2_weights_in_shared_memory_stay_there() -> None:
    model = Net().share_memory()
    executor = trainer(model)
    address = model.scale.data_ptr()
    executor(*data(8))
    executor.copyWeightsToHost()
    assert model.scale.is_shared() and model.scale.data_ptr() == address
