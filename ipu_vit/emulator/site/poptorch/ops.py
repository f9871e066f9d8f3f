"""Stands in for `poptorch.ops`."""

from __future__ import annotations

from ipu_vit.emulator.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from ipu_vit.emulator.control_flow import cond, for_loop
from ipu_vit.emulator.cpu_op import CPU
from ipu_vit.emulator.ctc import ctc_beam_search_decoder
from ipu_vit.emulator.ops import (
    custom_op,
    dynamic_slice,
    dynamic_update,
    identity_loss,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from ipu_vit.emulator.point_clouds import fps, nearest
from ipu_vit.emulator.printing import ipu_print_tensor
from ipu_vit.emulator.scopes import MultiConv, NameScope

__all__ = [
    "CPU",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]
