"""Vision Transformer training on Graphcore IPUs, and on a CPU that emulates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipu_vit.api import load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch only when it is asked for."""
    if name == "load_model":
        from ipu_vit.api import load_model

        return load_model
    raise AttributeError(f"module 'ipu_vit' has no attribute {name!r}")
