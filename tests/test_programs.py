"""Programs as PopTorch users write them run unmodified, and learn what plain PyTorch learns.

Each program in `programs/` is run by the command line, and its results compared with those of the training loop, or
the model, below, which know PyTorch only.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import run
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent


def run_program(name: str, *arguments: Any, cwd: Path, stdin: str = "") -> str:
    """Run one of the programs to its end; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ipu_vit.emulator", str(ROOT / "tests" / "programs" / name), *map(str, arguments)]
    result = run(command, cwd=cwd, env=environment, input=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_same(ours: Dict[str, Tensor], theirs: Dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# The convolutional network ----------------------------------------------------------------------

REPLICAS, ACCUMULATION, BATCH, EPOCHS = 2, 2, 4, 2


def blobs(count: int, seed: int) -> Tuple[Tensor, Tensor]:
    """Noisy 12×12 images with a bright blob, whose row tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 1, 12, 12, generator=generator)
    for image, label in zip(images, labels):
        image[0, 4 * int(label) : 4 * int(label) + 4, 3:9] += 1.0
    return images, labels


class PlainNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(images))
        return out


def train_plainly(network: PlainNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """One loss per micro batch; replicas share the weights and have running statistics of their own."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    replicas = [network, *(copy.deepcopy(network, dict(shared)) for _ in range(REPLICAS - 1))]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    micro_batches = list(zip(images.split(BATCH), labels.split(BATCH)))
    losses: List[Tensor] = []
    for _ in range(EPOCHS):
        for number, (some_images, some_labels) in enumerate(micro_batches, start=1):
            loss = F.cross_entropy(replicas[(number - 1) % REPLICAS](some_images), some_labels)
            (loss / (REPLICAS * ACCUMULATION)).backward()
            losses.append(loss.detach())
            if number % (REPLICAS * ACCUMULATION) == 0:
                optimizer.step()
                optimizer.zero_grad()
    return torch.stack(losses)


def test_convolutional_network_with_replicas_and_sharding(tmp_path: Path) -> None:
    data = {"train": blobs(128, seed=1), "test": blobs(32, seed=2)}
    torch.manual_seed(0)
    network = PlainNetwork()
    torch.save(data, tmp_path / "data.pt")
    torch.save(network.state_dict(), tmp_path / "initial.pt")
    files = ["--data", "data.pt", "--load", "initial.pt", "--output", "results.pt"]
    run_program("train_cnn.py", *files, "--epochs", EPOCHS, cwd=tmp_path)
    results = torch.load(tmp_path / "results.pt")

    losses = train_plainly(network, *data["train"])
    images, labels = data["test"]
    with torch.no_grad():
        logits = network.eval()(images)
    assert losses[-8:].mean() < losses[:8].mean() / 4
    torch.testing.assert_close(results["losses"], losses, rtol=1e-5, atol=1e-5)
    assert_same(results["weights"], network.state_dict(), tolerance=1e-5)
    torch.testing.assert_close(results["logits"], logits, rtol=1e-5, atol=1e-5)
    assert results["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


# The pipelined transformer ----------------------------------------------------------------------

VOCABULARY, LENGTH, WIDTH, HEADS = 24, 12, 32, 4
UPDATES, WARMUP, RATE, UPDATE_BATCH = 16, 4, 0.02, 32
UNMASKED, MASK = -100, 0


def masked_words(count: int) -> Dict[str, Tensor]:
    """Sequences of several lengths, each of one word repeated, in which some are to be guessed."""
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(1, VOCABULARY, (count, 1), generator=generator).expand(count, LENGTH)
    present = torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (count, 1), generator=generator)
    masked = (torch.rand(count, LENGTH, generator=generator) < 0.3) & present
    masked[:, 2] = True
    return {
        "tokens": words.masked_fill(masked, MASK),
        "present": present.int(),
        "labels": words.masked_fill(~masked, UNMASKED),
    }


class PlainEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("position_ids", torch.arange(LENGTH)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.norm(self.words(tokens) + self.positions.weight)
        return out


class PlainAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.value, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, present.bool()[:, None, None])
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class PlainLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attention_norm = PlainAttention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden, present))
        out: Tensor = self.norm(hidden + self.down(F.gelu(self.up(hidden), approximate="tanh")))
        return out


class PlainBert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = PlainEmbeddings()
        self.layers = nn.ModuleList(PlainLayer() for _ in range(2))
        self.head = nn.ModuleDict(
            {"dense": nn.Linear(WIDTH, WIDTH), "norm": nn.LayerNorm(WIDTH), "words": nn.Linear(WIDTH, VOCABULARY)}
        )

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, present)
        hidden = self.head["norm"](F.gelu(self.head["dense"](hidden), approximate="tanh"))
        out: Tensor = self.head["words"](hidden)
        return out


def rates() -> Iterator[float]:
    """The learning rate of each update: four steps up, then down to zero after the last."""
    for update in range(UPDATES):
        yield RATE * min((update + 1) / WARMUP, (UPDATES - update) / (UPDATES - WARMUP))


def pretrain_plainly(model: PlainBert, data: Dict[str, Tensor]) -> Tensor:
    """The mean loss of each update; a micro batch's loss is the mean over its masked words."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, eps=1e-6)
    losses = []
    for update, rate in enumerate(rates()):
        first = update * UPDATE_BATCH % len(data["tokens"])
        batch = [data[name][first : first + UPDATE_BATCH] for name in ("tokens", "present", "labels")]
        micro_batches = list(zip(*(tensor.split(BATCH) for tensor in batch)))
        loss = torch.stack(
            [
                F.cross_entropy(model(tokens, present).flatten(0, 1), labels.flatten(), ignore_index=UNMASKED)
                for tokens, present, labels in micro_batches
            ]
        ).mean()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("precision", [32, 16])
def test_transformer_in_a_pipeline(tmp_path: Path, precision: int) -> None:
    data = masked_words(4 * UPDATE_BATCH)
    torch.manual_seed(0)
    model = PlainBert()
    torch.save(data, tmp_path / "words.pt")
    torch.save(model.state_dict(), tmp_path / "initial.pt")
    files = ["--data", "words.pt", "--load", "initial.pt", "--output", "results.pt"]
    run_program("pretrain_bert.py", *files, "--precision", precision, "--dropout", 0, cwd=tmp_path)
    results = torch.load(tmp_path / "results.pt")

    losses = pretrain_plainly(model, data)
    assert losses[-1] < losses[0] / 2
    if precision == 32:
        torch.testing.assert_close(results["losses"], losses, rtol=1e-5, atol=1e-5)
        assert_same(results["weights"], model.state_dict(), tolerance=1e-5)
    else:
        assert results["weights"]["head.words.weight"].dtype == torch.float16
        torch.testing.assert_close(results["losses"], losses, rtol=0.01, atol=0.01)


# The service ------------------------------------------------------------------------------------


class PlainClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(256, 32), nn.Linear(32, 5)
        self.convolution = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, characters: List[int]) -> Tensor:
        """The logits of one text; what is behind its end is zeros, as far as the convolution sees."""
        padded = F.pad(torch.tensor(characters, dtype=torch.int64), (0, 24 - len(characters)))
        features = F.relu(self.convolution(self.embedding(padded).T[None]))[0, :, : len(characters)]
        out: Tensor = self.classifier(features.sum(dim=1) / max(1, len(characters)))
        return out


def test_inference_service(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PlainClassifier()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    texts = ["IPU", "a text that is longer than what counts of it", "", "Grüße", "x" * 24, "y"]
    requests = [json.dumps({"id": f"request {number}", "text": text}) for number, text in enumerate(texts)]

    run_program("classify_text.py", "export", "--load", "weights.pt", "classifier.poptorch", cwd=tmp_path)
    (tmp_path / "weights.pt").unlink()
    output = run_program("classify_text.py", "serve", "classifier.poptorch", cwd=tmp_path, stdin="\n".join(requests))
    responses = [json.loads(line) for line in output.splitlines()]

    assert [response["id"] for response in responses] == [f"request {number}" for number in range(len(texts))]
    for response, text in zip(responses, texts):
        with torch.no_grad():
            logits = model(list(text.encode()[:24]))
        torch.testing.assert_close(torch.tensor(response["logits"]), logits, rtol=1e-5, atol=1e-5)
        assert response["label"] == int(logits.argmax())
