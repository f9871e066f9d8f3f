"""Google `.npz` files made from Hugging Face models: a mapping independent of the one under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy
import pytest
from reference_models import SIZES, difference, randomise, transformers_config
from torch import Tensor, nn

from ipu_vit.models.vit import VisionTransformer

# Names of transformers 5 in terms of transformers 4, which the mapping below speaks.
RENAMED = (
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


class HuggingFaceViT(nn.Module):
    """`transformers.ViTModel` with a linear classifier, after its tanh pooler if asked for."""

    def __init__(self, sizes: Dict[str, Any]) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        representation = sizes.get("representation")
        config = transformers_config(sizes)
        if representation is None:
            self.vit = transformers.ViTForImageClassification(config)
        else:
            assert representation == sizes["width"], "the pooler of transformers 4 keeps the width"
            self.vit = transformers.ViTModel(config, add_pooling_layer=True)
            self.classifier = nn.Linear(representation, sizes["classes"])

    def forward(self, images: Tensor) -> Tensor:
        result = self.vit(pixel_values=images)
        return self.classifier(result.pooler_output) if hasattr(self, "classifier") else result.logits

    def arrays(self, heads: int) -> Dict[str, numpy.ndarray]:
        """The weights in Google's layout."""
        state: Dict[str, numpy.ndarray] = {}
        for name, tensor in self.state_dict().items():
            while name.startswith("vit."):
                name = name[4:]
            for new, old in RENAMED:
                name = name.replace(new, old)
            state[name] = tensor.numpy()
        width = state["layernorm.bias"].shape[0]
        size = width // heads
        arrays = {
            "cls": state["embeddings.cls_token"],
            "Transformer/posembed_input/pos_embedding": state["embeddings.position_embeddings"],
            "embedding/kernel": numpy.einsum("oihw->hwio", state["embeddings.patch_embeddings.projection.weight"]),
            "embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
            "Transformer/encoder_norm/scale": state["layernorm.weight"],
            "Transformer/encoder_norm/bias": state["layernorm.bias"],
            "head/kernel": state["classifier.weight"].T,
            "head/bias": state["classifier.bias"],
        }
        if "pooler.dense.weight" in state:
            arrays["pre_logits/kernel"] = state["pooler.dense.weight"].T
            arrays["pre_logits/bias"] = state["pooler.dense.bias"]
        for i in range(sum(name.endswith("layernorm_before.bias") for name in state)):
            source, target = f"encoder.layer.{i}.", f"Transformer/encoderblock_{i}/"
            attention = target + "MultiHeadDotProductAttention_1/"
            for part in ("query", "key", "value"):
                weight = state[f"{source}attention.attention.{part}.weight"]
                kernel = numpy.zeros((width, heads, size), weight.dtype)
                bias = numpy.zeros((heads, size), weight.dtype)
                for head in range(heads):
                    rows = slice(head * size, (head + 1) * size)
                    kernel[:, head] = weight[rows].T
                    bias[head] = state[f"{source}attention.attention.{part}.bias"][rows]
                arrays[f"{attention}{part}/kernel"], arrays[f"{attention}{part}/bias"] = kernel, bias
            output = state[source + "attention.output.dense.weight"]
            columns = [output[:, head * size : (head + 1) * size].T for head in range(heads)]
            arrays[attention + "out/kernel"] = numpy.stack(columns)
            arrays[attention + "out/bias"] = state[source + "attention.output.dense.bias"]
            for norm, name in (("LayerNorm_0", "layernorm_before"), ("LayerNorm_2", "layernorm_after")):
                arrays[f"{target}{norm}/scale"] = state[f"{source}{name}.weight"]
                arrays[f"{target}{norm}/bias"] = state[f"{source}{name}.bias"]
            for dense, name in (("Dense_0", "intermediate.dense"), ("Dense_1", "output.dense")):
                arrays[f"{target}MlpBlock_3/{dense}/kernel"] = state[f"{source}{name}.weight"].T
                arrays[f"{target}MlpBlock_3/{dense}/bias"] = state[f"{source}{name}.bias"]
        return arrays


@pytest.fixture
def same_logits() -> Callable[..., None]:
    """Holds two models to the same logits, by images that both tell apart."""

    def check(ours: nn.Module, theirs: nn.Module, image_size: int = 12) -> None:
        assert difference(ours, theirs, image_size) <= 1e-4

    return check


@pytest.fixture
def huggingface(tmp_path: Path) -> Callable[..., Tuple[HuggingFaceViT, str]]:
    """Makes a Hugging Face model with random weights and a Google file of them."""

    def make(sizes: Dict[str, Any], std: float = 0.2, dtype: str = "float32") -> Tuple[HuggingFaceViT, str]:
        model = HuggingFaceViT(sizes).eval()
        randomise(model, std, seed=0)
        path = str(tmp_path / "weights.npz")
        arrays: Dict[str, Any] = {name: array.astype(dtype) for name, array in model.arrays(sizes["heads"]).items()}
        numpy.savez(path, **arrays)
        return model, path

    return make


@pytest.fixture
def vit() -> Callable[..., VisionTransformer]:
    """Makes a small model of ours with random weights; keywords change its sizes."""

    def make(**changes: Any) -> VisionTransformer:
        model = VisionTransformer(**{**SIZES, **changes}).eval()
        randomise(model, 0.3, seed=1)
        return model

    return make
