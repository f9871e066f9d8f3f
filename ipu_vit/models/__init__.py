"""The mathematics of the models: plain PyTorch, no word about devices.

Sizes and costs are plain numbers and may be read without PyTorch, which is imported when a model is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Sequence

if TYPE_CHECKING:
    from ipu_vit.models.image_model import ImageModel

#: What means nothing to a Mixer: it has no attention, no class token, and always takes the mean of its tokens.
NOT_OF_MIXERS = (
    "heads", "representation", "dropout", "attention_dropout", "class_token", "pooling", "pool_norm", "fixed_positions"
)  # fmt: skip


def build(
    *,
    kind: str = "vit",
    tokens_mlp_width: Optional[int] = None,
    resnet_depths: Optional[Sequence[int]] = None,
    resnet_width: int = 64,
    **sizes: Any,
) -> ImageModel:
    """A model of a kind (vit, hybrid, mixer) with initial weights.

    `sizes` are the keywords of `VisionTransformer`; a Mixer leaves out what means nothing to it.
    """
    if kind == "mixer":
        from ipu_vit.models.mixer import Mixer

        if tokens_mlp_width is None:
            raise ValueError("a mixer needs tokens_mlp_width")
        fitting = {name: value for name, value in sizes.items() if name not in NOT_OF_MIXERS}
        return Mixer(tokens_mlp_width=tokens_mlp_width, **fitting)
    if kind == "hybrid":
        from ipu_vit.models.hybrid import Hybrid

        if resnet_depths is None:
            raise ValueError("a hybrid needs resnet_depths")
        return Hybrid(resnet_depths=resnet_depths, resnet_width=resnet_width, **sizes)
    if kind == "vit":
        from ipu_vit.models.vit import VisionTransformer

        return VisionTransformer(**sizes)
    raise ValueError(f"there is no kind of model {kind!r}; there are vit, hybrid and mixer")
