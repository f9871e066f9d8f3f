"""How programs get an executor: from a module, or from a file."""

from __future__ import annotations

import copy
from typing import Callable, Optional, Union

import torch
from torch import nn

from ipu_vit.emulator.enums import ConnectionType
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.executor import PoplarExecutor
from ipu_vit.emulator.exported import read_executable
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.version import POPTORCH_VERSION


def trainingModel(
    model: Union[nn.Module, PoplarExecutor],
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """`poptorch.trainingModel`; it takes a shallow copy, so flags that are set later do not count (rule 8.5)."""
    module = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(copy.copy(module), options, True, POPTORCH_VERSION, optimizer, module)


def inferenceModel(model: Union[nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """`poptorch.inferenceModel`; a training executor may stand for its module (rule 8.1)."""
    module = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(copy.copy(module), options, False, POPTORCH_VERSION, None, module)


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """`poptorch.load`: an executor from a file that `save` or `compileAndExport` wrote, with its model."""
    executable = read_executable(filename)
    if executable.model is None:
        raise Error(f"{filename} holds no model: make an executor with the model and call its loadExecutable()")
    options = executable.options.clone()
    options.connectionType(ConnectionType.Always)
    options.deleteIfExists("ipu_version")
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    executor = (
        trainingModel(executable.model, options, executable.optimizer)
        if executable.training
        else inferenceModel(executable.model, options)
    )
    executor.take(executable)
    return executor
