"""Models of the transformers library, wrapped as PopTorch's users do, learn what they learn in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict

import poptorch
import pytest
import torch
from emulator_models import options
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

SMALL: Dict[str, Any] = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    hidden_act="gelu_pytorch_tanh",
)
BERT: Dict[str, Any] = dict(vocab_size=30, max_position_embeddings=10, tie_word_embeddings=False, **SMALL)
ROWS = 8


def images() -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "labels": torch.randint(0, 3, (ROWS,), generator=generator)}


def text() -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (ROWS, 7), generator=generator)
    lengths = torch.randint(3, 8, (ROWS, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < lengths).long(), "token_type_ids": ids % 2}


def masked_text() -> Dict[str, Tensor]:
    inputs = text()
    chosen = torch.rand(ROWS, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    return {**inputs, "labels": inputs["input_ids"].masked_fill(~chosen, -100)}


def classified_text() -> Dict[str, Tensor]:
    return {**text(), "labels": torch.arange(ROWS) % 3}


MODELS: Dict[str, Any] = {
    "ViTForImageClassification": (
        lambda **how: ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL, **how)),
        images,
    ),
    "BertForMaskedLM": (lambda **how: BertForMaskedLM(BertConfig(**BERT, **how)), masked_text),
    "BertForSequenceClassification": (
        lambda **how: BertForSequenceClassification(BertConfig(num_labels=3, **BERT, **how)),
        classified_text,
    ),
}
# The library leaves PyTorch 2.0's fused attention alone.
ATTENTION = ("eager",) if torch.__version__.startswith("2.0.") else ("eager", "sdpa")


def made(build: Callable[..., nn.Module], **how: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(**how).train()


class WithLoss(nn.Module):
    """A model of the library with its loss marked; its second layer and what follows may be on another IPU."""

    def __init__(self, model: nn.Module, ipus: int) -> None:
        super().__init__()
        self.model = model
        if ipus == 2:
            layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
            layers[1] = poptorch.BeginBlock(layers[1], "second half", ipu_id=1)

    def forward(self, **inputs: Tensor) -> Any:
        output = self.model(**inputs)
        return poptorch.identity_loss(output.loss, "none"), output.logits


@pytest.mark.parametrize("ipus", [1, 2])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", MODELS)
def test_they_learn_the_same(name: str, attention: str, ipus: int) -> None:
    build, inputs = MODELS[name][0], MODELS[name][1]()
    model = made(build, attn_implementation=attention)
    twin = copy.deepcopy(model)
    trainer = poptorch.trainingModel(
        WithLoss(model, ipus), options(accumulation=4), poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        losses, logits = trainer(**inputs)
        optimizer.zero_grad()
        for step in range(4):
            rows = slice(2 * step, 2 * step + 2)
            expected = twin(**{key: value[rows] for key, value in inputs.items()})
            (expected.loss / 4).backward()
            torch.testing.assert_close(losses[step], expected.loss.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[rows], expected.logits.detach(), rtol=1e-4, atol=1e-5)
        optimizer.step()
    trainer.copyWeightsToHost()
    trained = dict(model.named_parameters())
    for key, weight in twin.named_parameters():
        torch.testing.assert_close(trained[key].detach(), weight.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_they_return_their_own_outputs(name: str) -> None:
    build, inputs = MODELS[name][0], MODELS[name][1]()
    model = made(build).eval()
    found = poptorch.inferenceModel(model, options(iterations=2))(**inputs, output_hidden_states=True)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
    assert type(found) is type(expected) and list(found) == list(expected) == ["loss", "logits", "hidden_states"]
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert found.loss.shape == (2,) and len(found.hidden_states) == 3
    for ours, theirs in zip(found.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_they_run_in_half_precision(name: str) -> None:
    build, inputs = MODELS[name][0], MODELS[name][1]()
    model = made(build).eval()
    with torch.no_grad():
        expected = model(**inputs)
    halves = {key: value.half() if value.is_floating_point() else value for key, value in inputs.items()}
    found = poptorch.inferenceModel(copy.deepcopy(model).half())(**halves)
    assert found.logits.dtype == torch.float16
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0.02, atol=0.005)
