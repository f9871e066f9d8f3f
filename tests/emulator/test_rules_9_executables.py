"""Section 9: compiling once, saving what was compiled, and where it may run."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Tuple

import poptorch
import pytest
import torch
from emulator_models import Layers, data, largest_difference, options
from operator_models import Calls
from torch import Tensor, nn

from ipu_vit.emulator import exported


class Scale(nn.Module):
    """One weight, one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        y = x * self.weight + self.shift
        return y, poptorch.identity_loss(y, "sum")


def test_rule_9_1_compile_runs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = Layers()
    executor = poptorch.trainingModel(model, options(accumulation=2), poptorch.optim.SGD(model.parameters(), lr=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    executor.compile(*data(4))
    assert executor.isCompiled() and executor.isAttachedToDevice()
    executor.copyWeightsToHost()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    executor.compile(*data(4))
    assert "already compiled" in capfd.readouterr().err


def test_rule_9_1_a_compiled_shape_stays() -> None:
    executor = poptorch.inferenceModel(Scale())
    executor.compile(torch.zeros(4, 2))
    with pytest.raises(poptorch.Error, match="shape"):
        executor(torch.zeros(5, 2))


def test_rule_9_3_an_exported_model_serves_in_another_process(tmp_path: Path) -> None:
    model = Layers(ipus=2)
    x, y = data(6)
    opts = options(iterations=2)
    executor = poptorch.inferenceModel(model, opts)
    file = tmp_path / "new" / "model.poptorch"
    executor.compileAndExport(str(file), x, y)
    torch.save((x, y), tmp_path / "data.pt")
    program = (
        "import sys, ipu_vit.emulator; ipu_vit.emulator.install(); import torch, poptorch\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        f"executor = poptorch.load({str(file)!r})\n"
        "assert executor.isCompiled()\n"
        f"torch.save(executor(*torch.load({str(tmp_path / 'data.pt')!r})), {str(tmp_path / 'result.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    logits, _ = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(logits, model.logits(x).detach())


@pytest.mark.parametrize("export_model", [True, False])
def test_rule_9_3_training_goes_on_from_a_saved_executable(tmp_path: Path, export_model: bool) -> None:
    """Trained, saved, loaded and trained on equals trained on without a stop."""
    batches = [data(8, seed) for seed in range(4)]
    opts = options(accumulation=2, seed=5)

    def trainer(model: nn.Module) -> Any:
        return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01))

    model, straight = Layers(), Layers()
    executor, reference = trainer(model), trainer(straight)
    for batch in batches[:2]:
        executor(*batch)
        reference(*batch)
    file = str(tmp_path / "trainer.poptorch")
    executor.save(file, export_model=export_model)
    if export_model:
        executor = poptorch.load(file)
    else:
        executor.destroy()
        executor = trainer(model)
        executor.loadExecutable(file)
    assert executor.isCompiled()
    for batch in batches[2:]:
        executor(*batch)
        reference(*batch)
    executor.copyWeightsToHost()
    reference.copyWeightsToHost()
    assert executor.model is not model if export_model else executor.model is model
    assert largest_difference(executor.model, straight) == 0


def test_rule_9_3_a_file_is_whole_whoever_writes_it(tmp_path: Path) -> None:
    """Two processes write it again and again while this one reads."""
    file = str(tmp_path / "shared.poptorch")
    poptorch.inferenceModel(Scale()).compileAndExport(file, torch.ones(1000, 2))
    executable = exported.read_executable(file)

    def write() -> None:
        for _ in range(200):
            exported.write_executable(file, executable)

    writers = [multiprocessing.get_context("fork").Process(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert exported.read_executable(file).version == executable.version
    assert [writer.exitcode for writer in writers] == [0, 0] and len(list(tmp_path.iterdir())) == 1


def test_rule_9_3_loading_edits_options_and_drops_the_offline_target(tmp_path: Path) -> None:
    opts = poptorch.Options()
    opts.useOfflineIpuTarget(2)
    offline = poptorch.inferenceModel(Scale(), opts)
    file = str(tmp_path / "offline.poptorch")
    offline.compileAndExport(file, torch.ones(3, 2))

    def edit(loaded: Any) -> None:
        loaded.modelName("edited")

    executor = poptorch.load(file, edit)
    assert executor.options.model_name == "edited"
    assert executor.options.connection_type == poptorch.ConnectionType.Always
    y, _ = executor(torch.ones(3, 2))
    assert torch.equal(y, torch.tensor([[2.0, 3.0]] * 3))


def test_rule_9_3_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = poptorch.inferenceModel(Scale())
    file = tmp_path / "model.poptorch"
    with pytest.raises(poptorch.Error, match="not compiled"):
        executor.save(str(file))
    with pytest.raises(poptorch.Error, match="no executable"):
        poptorch.load(str(file))
    executor.compileAndExport(str(file), torch.ones(1, 2), export_model=False)
    with pytest.raises(poptorch.Error, match="loadExecutable"):
        poptorch.load(str(file))
    trainer = poptorch.trainingModel(Scale())
    with pytest.raises(poptorch.Error, match="inference"):
        trainer.loadExecutable(str(file))
    monkeypatch.setattr(exported, "POPTORCH_VERSION", "3.5.0")
    with pytest.raises(poptorch.Error, match="3.4.0"):
        poptorch.load(str(file))
    file.write_bytes(b"something else")
    with pytest.raises(poptorch.Error, match="no executable"):
        poptorch.load(str(file))


def test_rule_9_3_models_must_pickle(tmp_path: Path) -> None:
    class Local(Scale):
        pass

    executor = poptorch.inferenceModel(Local())
    with pytest.raises(poptorch.Error, match="export_model=False"):
        executor.compileAndExport(str(tmp_path / "model.poptorch"), torch.ones(1, 2))
    executor.save(str(tmp_path / "model.poptorch"), export_model=False)


def test_rule_9_4_an_offline_target_compiles_and_never_runs() -> None:
    opts = poptorch.Options()
    opts.useOfflineIpuTarget(21)
    executor = poptorch.inferenceModel(Scale(), opts)
    executor.compile(torch.ones(1, 2))
    assert executor.isCompiled() and not executor.isAttachedToDevice()
    with pytest.raises(AssertionError, match="offline"):
        executor(torch.ones(1, 2))


def test_rule_9_5_a_device_on_demand_is_taken_by_the_first_run() -> None:
    opts = poptorch.Options()
    opts.connectionType(poptorch.ConnectionType.OnDemand)
    executor = poptorch.inferenceModel(Scale(), opts)
    executor.compile(torch.ones(1, 2))
    assert not executor.isAttachedToDevice()
    executor(torch.ones(1, 2))
    assert executor.isAttachedToDevice()


def test_rule_9_6_a_trace_knows_that_it_is_one() -> None:
    seen: List[bool] = []

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(poptorch.isRunningOnIpu())
            return x + 1

    model = Asks()
    model(torch.ones(1))
    poptorch.inferenceModel(model)(torch.ones(1))
    assert seen == [False, True] and not poptorch.isRunningOnIpu()


def test_rule_9_9_anchored_tensors_come_back() -> None:
    model = Scale()
    probe = poptorch.inferenceModel(model)
    probe.compile(torch.ones(2, 2))
    names = probe.getTensorNames()
    assert {"weight", "shift"} <= set(names)
    product = next(name for name in names if name.startswith("mul"))
    opts = poptorch.Options()
    opts.deviceIterations(2)
    assert opts.anchorTensor("product", product) is None
    opts.anchorTensor("last", product, poptorch.OutputMode.Final)
    executor = poptorch.inferenceModel(model, opts)
    x = torch.arange(8.0).reshape(4, 2)
    executor(x)
    assert torch.equal(executor.getAnchoredTensor("product"), x * model.weight)
    assert torch.equal(executor.getAnchoredTensor("last"), (x * model.weight)[2:])
    with pytest.raises(AssertionError, match="anchored"):
        executor.getAnchoredTensor("other")
    with pytest.raises(AssertionError, match="not compiled"):
        poptorch.inferenceModel(model).getTensorNames()


def test_rule_9_9_anchored_gradients_are_those_of_micro_batches() -> None:
    """Multiplied by the loss scale, as they are before they are accumulated."""

    class Product(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return poptorch.identity_loss(self.weight * x, "sum")

    model, opts = Product(), poptorch.Options()
    opts.Training.gradientAccumulation(3)
    opts.anchorTensor("gradient", "Gradient___weight", poptorch.OutputMode.All)
    opts.anchorTensor("same", "Gradient___weight", poptorch.OutputMode.Final)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=4.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    x = torch.arange(6.0).reshape(3, 2)
    executor(x)
    assert "Gradient___weight" in executor.getTensorNames()
    assert torch.equal(executor.getAnchoredTensor("gradient").reshape(3, 2), 4 * x)
    assert torch.equal(executor.getAnchoredTensor("same"), 4 * x[2])


def test_anchoring_what_is_not_there() -> None:
    opts = poptorch.Options()
    opts.anchorTensor("short", "nothing of this name")
    with pytest.raises(poptorch.Error, match="getTensorNames"):
        poptorch.inferenceModel(Scale(), opts)(torch.ones(1, 2))


def test_counters_without_hardware() -> None:
    executor = poptorch.inferenceModel(Scale(), options(iterations=3))
    assert executor.getLatency() == executor.getComputeLatency() == (0, 0, 0)
    assert set(map(str, executor.getPerfCounters().values())) == {"[[]]"}
    executor(torch.ones(6, 2))
    counters = executor.getPerfCounters()
    assert {name: [len(times) for times in tensors] for name, tensors in counters.items()} == {
        "input": [3],
        "input_complete": [3],
        "output": [3, 3],
        "output_complete": [3, 3],
    }
    order = zip(counters["input"][0], counters["output"][0], counters["output_complete"][0])
    assert all(came <= computed <= gone for came, computed, gone in order)
    for shortest, longest, mean in (
        executor.getLatency(),
        executor.getComputeLatency(),
        executor.getHostIpuLatency(),
        executor.getIpuHostLatency(),
    ):
        assert 0 <= shortest <= mean * (1 + 1e-9) <= longest * (1 + 1e-6) + 1e-12
    with pytest.raises(poptorch.Error, match="hardware"):
        executor.cycleCount()
    assert executor.compilationTime().total_seconds() > 0


def test_hooks_are_called_around_compilation() -> None:
    calls: List[str] = []
    handles = [
        poptorch.registerPreCompileHook(lambda: calls.append("before")),
        poptorch.registerPostCompileHook(lambda: calls.append("after")),
    ]
    executor = poptorch.inferenceModel(Scale())
    executor(torch.ones(1, 2))
    executor(torch.ones(1, 2))
    for handle in handles:
        handle.remove()
    poptorch.inferenceModel(Scale())(torch.ones(1, 2))
    assert calls == ["before", "after"]


def test_hooks_after_compiling_are_called_when_it_fails() -> None:
    calls: List[str] = []
    with pytest.raises(RuntimeError, match="must be callable"):
        poptorch.registerPostCompileHook("after")
    hook = poptorch.registerPostCompileHook(lambda: calls.append("after"))
    try:
        with pytest.raises(poptorch.Error, match="item"):
            poptorch.inferenceModel(Calls(lambda x: x * x.sum().item()))(torch.ones(2))
    finally:
        hook.remove()
    assert calls == ["after"]


def test_a_folder_gets_a_file_of_poptorch_s_name(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    model, x = Scale(), torch.rand(2, 2)
    poptorch.inferenceModel(model).compileAndExport(str(tmp_path), x)
    assert f"{tmp_path} is a folder" in log.text
    log.clear()
    loaded = poptorch.load(str(tmp_path / "model.poptorch"))
    torch.testing.assert_close(loaded(x)[0], model(x)[0].detach())
    assert "contiguous" not in log.text
