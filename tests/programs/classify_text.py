"""A service that classifies texts with a PopTorch executable that was compiled earlier, without IPUs.

    python classify_text.py export --load weights.pt classifier.poptorch
    python classify_text.py serve classifier.poptorch < requests.jsonl > responses.jsonl

A request is a line {"id": ..., "text": ...}, its response a line {"id": ..., "label": ..., "logits": [...]}.
"""

import argparse
import itertools
import json
import sys

import poptorch
import torch
from torch import nn

LENGTH = 24  # bytes of a text that count
MICRO_BATCH, DEVICE_ITERATIONS = 2, 2
BATCH = MICRO_BATCH * DEVICE_ITERATIONS


class Classifier(nn.Module):
    """Classifies the bytes of a text, of which 0 stands for none."""

    def __init__(self, classes=5, width=32):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, text):
        present = (text != 0).float().unsqueeze(1)
        features = torch.relu(self.convolution(self.embedding(text).transpose(1, 2)))
        mean = (features * present).sum(dim=2) / present.sum(dim=2).clamp(min=1.0)
        return self.classifier(mean)


def encode(texts):
    """Texts as a batch of the size that was compiled; missing ones are empty."""
    batch = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    for row, text in zip(batch, texts):
        characters = torch.tensor(list(text.encode()[:LENGTH]), dtype=torch.int64)
        row[: len(characters)] = characters
    return batch


def export(args):
    model = Classifier().eval()
    model.load_state_dict(torch.load(args.load))
    options = poptorch.Options()
    options.deviceIterations(DEVICE_ITERATIONS)
    options.useOfflineIpuTarget()
    inference_model = poptorch.inferenceModel(model, options)
    inference_model.compileAndExport(args.executable, encode([]))
    print(f"wrote {args.executable}", file=sys.stderr)


def serve(args):
    model = poptorch.load(args.executable)
    requests = (json.loads(line) for line in sys.stdin)
    while True:
        group = list(itertools.islice(requests, BATCH))
        if not group:
            break
        logits = model(encode([request["text"] for request in group]))
        for request, row in zip(group, logits):
            response = {"id": request["id"], "label": int(row.argmax()), "logits": row.tolist()}
            print(json.dumps(response), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="compile the model and write the executable")
    exporting.add_argument("--load", required=True, help="trained weights")
    exporting.set_defaults(run=export)
    serving = commands.add_parser("serve", help="answer the requests on stdin")
    serving.set_defaults(run=serve)
    for command in (exporting, serving):
        command.add_argument("executable")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
