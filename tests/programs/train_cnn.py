"""Train a small convolutional network with PopTorch on four IPUs: two replicas, each sharded over two IPUs.

python train_cnn.py --data digits.pt --load initial.pt --output results.pt
"""

import argparse

import poptorch
import torch
from torch import nn


class Images(torch.utils.data.Dataset):
    """One part of a file that holds {part: (images, labels)}."""

    def __init__(self, file, part):
        self.images, self.labels = torch.load(file)[part]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Network(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16 * 3 * 3, 32), nn.ReLU(), nn.Linear(32, classes))
        self.loss = nn.CrossEntropyLoss()
        poptorch.BeginBlock(self.features, user_id="features", ipu_id=0)
        poptorch.BeginBlock(self.classifier, user_id="classifier", ipu_id=1)

    def forward(self, images, labels=None):
        logits = self.classifier(self.features(images))
        if labels is None:
            return logits
        return logits, self.loss(logits, labels)


def train(model, args):
    options = poptorch.Options()
    options.deviceIterations(args.device_iterations)
    options.replicationFactor(args.replicas)
    options.broadcastBuffers(False)  # each replica keeps running statistics of its own
    options.Training.gradientAccumulation(args.accumulation)
    options.outputMode(poptorch.OutputMode.All)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.SameAsIpu))
    options.randomSeed(args.seed)
    loader = poptorch.DataLoader(options, Images(args.data, "train"), batch_size=args.batch_size, num_workers=1)

    optimizer = poptorch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-3)
    training_model = poptorch.trainingModel(model, options=options, optimizer=optimizer)
    losses = []
    for epoch in range(args.epochs):
        for images, labels in loader:
            _, loss = training_model(images, labels)
            losses.append(loss)
        print(f"epoch {epoch}: loss {loss.mean().item():.4f}")
    training_model.detachFromDevice()
    return torch.cat(losses)


def evaluate(model, args):
    options = poptorch.Options()
    options.deviceIterations(4)
    options.setExecutionStrategy(poptorch.ShardedExecution())
    loader = poptorch.DataLoader(options, Images(args.data, "test"), batch_size=args.batch_size)

    inference_model = poptorch.inferenceModel(model.eval(), options)
    results = [(inference_model(images), labels) for images, labels in loader]
    logits, labels = (torch.cat(column) for column in zip(*results))
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    print(f"accuracy {accuracy:.2%}")
    return logits, accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--load", required=True, help="weights to start from")
    parser.add_argument("--output", required=True)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="images in a micro batch")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--device-iterations", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    model = Network(args.classes)
    model.load_state_dict(torch.load(args.load))
    losses = train(model, args)
    logits, accuracy = evaluate(model, args)
    torch.save(
        {"losses": losses, "logits": logits, "accuracy": accuracy, "weights": model.state_dict()},
        args.output,
    )


if __name__ == "__main__":
    main()
