"""A compiled model on its "device", from compiling until its executor gives it up.

Compiling traces the model into a tape (`compiler`), and copies the weights to the device: tensors of
the emulator's own (`weights`). A `Runner` then replays the tape for each micro batch and updates the
weights.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from torch import nn

from ipu_vit.emulator.batches import HostBatch, Layout
from ipu_vit.emulator.compiler import compile_program
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.malloc import return_free_memory
from ipu_vit.emulator.optim import Attributes
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.program import Program
from ipu_vit.emulator.random import DeviceRandom
from ipu_vit.emulator.replica_groups import joined, parted
from ipu_vit.emulator.runner import Runner, SharedUpdate, tensor_names
from ipu_vit.emulator.update import WeightUpdate
from ipu_vit.emulator.update.reduction import of_first_process
from ipu_vit.emulator.weights import DeviceWeights


class CompiledModel:
    """A program with its runner, for host batches like the one that it was compiled for."""

    def __init__(
        self,
        model: nn.Module,
        batch: HostBatch,
        layout: Layout,
        options: Options,
        weights: DeviceWeights,
        random: DeviceRandom,
        attributes: Optional[Attributes],
    ) -> None:
        """Compile for training with an optimizer's attributes, or for inference without."""
        training = attributes is not None
        self.batch = batch
        self.program = compile_program(model, batch, layout, options, training, weights, random)
        if training and options.Distributed.numProcesses > 1:
            random.seed = of_first_process(random.seed)
        weights.to_device()
        weights.separate([name for name in self.program.tape.written_weights if name in weights.buffers])
        updates = [] if attributes is None else _shared_updates(self.program, attributes, options, weights)
        if training:
            weights.lend_host()
            return_free_memory()
        self.runner = Runner(self.program, options, layout, weights, random, updates)

    # The optimizer ----------------------------------------------------------------------------

    def replace_attributes(self, attributes: Attributes) -> None:
        """Update with other values from now on; raises Error for those that are compiled in."""
        for shared in self.runner.updates:
            shared.update.replace(attributes)

    def optimizer_state(self) -> Dict[str, Any]:
        """The state of all updates together, as the optimizer tells it."""
        states = [shared.update.state() for shared in self.runner.updates]
        return {**states[0], "ipu_state": joined([state["ipu_state"] for state in states])} if states else {}

    def load_optimizer_state(self, state: Dict[str, Any]) -> None:
        """Take over what `optimizer_state` returned."""
        updates = [shared.update for shared in self.runner.updates]
        parts = parted(state["ipu_state"], [update.state()["ipu_state"] for update in updates])
        for update, part in zip(updates, parts):
            update.load({**state, "ipu_state": part})

    # Tensors ----------------------------------------------------------------------------------

    def tensor_names(self) -> List[str]:
        """What can be anchored."""
        return tensor_names(self.program)


def _shared_updates(
    program: Program, attributes: Attributes, options: Options, weights: DeviceWeights
) -> List[SharedUpdate]:
    """An update for each group of replicas that share weights, with its weights end to end in memory."""
    attributes = attributes.named(weights.names_by_address())
    by_all_weights = attributes.max_grad_norm != float("inf") or options.Training.automatic_loss_scaling
    if weights.has_groups and by_all_weights:
        raise Error(
            "Weights that groups of replicas have for themselves cannot be emulated together with max_grad_norm or "
            "automatic loss scaling, which depend on all weights"
        )
    if weights.has_groups and options.Distributed.numProcesses > 1:
        raise Error("Weights that groups of replicas have for themselves cannot be emulated in several processes")
    updates: List[SharedUpdate] = []
    for members, names in weights.sharers(program.trained).items():
        tensors = weights.replicas[members[0]]
        update = WeightUpdate(attributes, options, tensors, names, program.uses_half)
        updates.append(SharedUpdate(members, names, update))
        # The update has put its weights end to end; the other replicas use the same tensors.
        for other in members[1:]:
            weights.replicas[other].update({name: tensors[name] for name in names})
    return updates
