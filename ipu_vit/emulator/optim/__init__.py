"""`poptorch.optim`: attributes that a program sets, read by the device's own update.

PopTorch's optimizers subclass torch's for their parameter groups and schedulers, but `step` never
runs on the device: the executor reads their attributes when a model is wrapped and at `setOptimizer`
(rules 4.1, 4.12, 4.14).
"""

from __future__ import annotations

from ipu_vit.emulator.optim.adam import Adam, AdamW
from ipu_vit.emulator.optim.attributes import SGD_KINDS, Attributes, Group, Kind, read_attributes
from ipu_vit.emulator.optim.base import Optimizer, VariableAttributes
from ipu_vit.emulator.optim.lamb import LAMB
from ipu_vit.emulator.optim.rmsprop import RMSprop
from ipu_vit.emulator.optim.sgd import SGD
