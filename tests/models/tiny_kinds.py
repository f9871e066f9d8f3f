"""One tiny model of each kind, in all its variants, for the emulator."""

from __future__ import annotations

from typing import Any, Dict, List

from ipu_vit.settings import Settings

IMAGE_SIZE, CLASSES, DEPTH = 16, 3, 4

_SIZES = {"image_size": IMAGE_SIZE, "width": 16, "depth": DEPTH, "heads": 2, "mlp_width": 32, "classes": CLASSES}
KINDS: Dict[str, Dict[str, Any]] = {
    "vit": {"patch_size": 8},
    "vit, representation": {"patch_size": 8, "representation": 24},
    "vit, mean before norm": {"patch_size": 8, "pooling": "mean", "pool_norm": "after"},
    "vit, mean without class token": {"patch_size": 8, "pooling": "mean", "class_token": False},
    "hybrid": {"kind": "hybrid", "patch_size": 1, "resnet_depths": [1, 2], "resnet_width": 32},
    "hybrid, stem alone": {"kind": "hybrid", "patch_size": 2, "resnet_depths": [], "resnet_width": 32},
    "mixer": {"kind": "mixer", "patch_size": 8, "tokens_mlp_width": 6, "pooling": "mean", "class_token": False},
}


def kind_settings(kind: str, layers_per_ipu: List[int], precision: str = "float32", **model: Any) -> Settings:
    """Settings of a run of seven micro batches, which fill a pipeline of four stages."""
    return Settings(
        precision=precision,
        model={**_SIZES, **KINDS[kind], **model},
        data={"evaluation_resize": IMAGE_SIZE},
        pipeline={
            "layers_per_ipu": layers_per_ipu,
            "available_memory_proportion": [0.3],
            "global_batch": 14,
            "micro_batch": 2,
            "stochastic_rounding": False,
        },
        optimizer={"weight_decay": 0.0, "accumulator_type": precision, "velocity_type": precision},
        evaluation={"micro_batch": 1},
    )
