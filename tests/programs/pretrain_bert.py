"""Pre-train a small BERT on masked words with PopTorch, pipelined over four IPUs.

python pretrain_bert.py --data words.pt --load initial.pt --output results.pt --precision 16
"""

import argparse
import math

import poptorch
import torch
import torch.nn.functional as F
from torch import nn


class Embeddings(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.words = nn.Embedding(args.vocabulary, args.width)
        self.positions = nn.Embedding(args.length, args.width)
        self.norm = nn.LayerNorm(args.width)
        self.dropout = nn.Dropout(args.dropout)
        self.register_buffer("position_ids", torch.arange(args.length).unsqueeze(0))

    def forward(self, tokens, present):
        hidden = self.dropout(self.norm(self.words(tokens) + self.positions(self.position_ids)))
        # What is added to attention scores; made here because an input can be used on one IPU only.
        mask = (1.0 - present.to(hidden.dtype)) * -10000.0
        return hidden, mask[:, None, None, :]


class Attention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.heads = args.heads
        self.query = nn.Linear(args.width, args.width)
        self.key = nn.Linear(args.width, args.width, bias=False)  # softmax would cancel it
        self.value = nn.Linear(args.width, args.width)
        self.output = nn.Linear(args.width, args.width)
        self.dropout = nn.Dropout(args.dropout)

    def split(self, x):
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, hidden, mask):
        query, key, value = (self.split(layer(hidden)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = self.dropout(torch.softmax(scores + mask, dim=-1))
        return self.output((weights @ value).transpose(1, 2).reshape(hidden.shape))


class Layer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.attention = Attention(args)
        self.attention_norm = nn.LayerNorm(args.width)
        self.up = nn.Linear(args.width, 4 * args.width)
        self.down = nn.Linear(4 * args.width, args.width)
        self.norm = nn.LayerNorm(args.width)
        self.dropout = nn.Dropout(args.dropout)

    def forward(self, hidden, mask):
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, mask)))
        return self.norm(hidden + self.dropout(self.down(F.gelu(self.up(hidden)))))


class Head(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.dense = nn.Linear(args.width, args.width)
        self.norm = nn.LayerNorm(args.width)
        self.words = nn.Linear(args.width, args.vocabulary)

    def forward(self, hidden):
        return self.words(self.norm(F.gelu(self.dense(hidden))))


class Bert(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.embeddings = Embeddings(args)
        self.layers = nn.ModuleList(Layer(args) for _ in range(2))
        self.head = Head(args)

    def pipelined(self):
        blocks = {
            "embeddings": self.embeddings,
            "layer 0": self.layers[0],
            "layer 1": self.layers[1],
            "head": self.head,
        }
        for ipu, (name, module) in enumerate(blocks.items()):
            poptorch.BeginBlock(module, user_id=name, ipu_id=ipu)
        return self

    def forward(self, tokens, present, labels):
        hidden, mask = self.embeddings(tokens, present)
        for layer in self.layers:
            hidden = poptorch.recomputationCheckpoint(layer(hidden, mask))
        logits = self.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return poptorch.identity_loss(loss, reduction="none")


def get_options(args):
    options = poptorch.Options()
    options.Training.gradientAccumulation(args.accumulation)
    options.outputMode(poptorch.OutputMode.All)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.setAvailableMemoryProportion({f"IPU{ipu}": 0.2 for ipu in range(4)})
    options.randomSeed(args.seed)
    if args.precision == 16:
        options.Precision.setPartialsType(torch.half)
        options.Precision.enableStochasticRounding(True)
        options.Training.setAutomaticLossScaling(True)
    return options


def get_optimizer(model, args):
    """AdamW, without weight decay for biases and norms."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    half = torch.float16 if args.precision == 16 else torch.float32
    return poptorch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        eps=1e-6,
        loss_scaling=2.0**10 if args.precision == 16 else 1.0,
        accum_type=half,
        first_order_momentum_accum_type=half,
        second_order_momentum_accum_type=torch.float32,
    )


def get_scheduler(optimizer, args):
    """Linear warm-up, then linear decay to zero after the last update."""

    def factor(update):
        return min((update + 1) / args.warmup, (args.updates - update) / (args.updates - args.warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="file with tokens, present and labels")
    parser.add_argument("--load", required=True, help="weights to start from")
    parser.add_argument("--output", required=True)
    parser.add_argument("--precision", type=int, choices=[16, 32], default=32)
    parser.add_argument("--vocabulary", type=int, default=24)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=4, help="sequences in a micro batch")
    parser.add_argument("--accumulation", type=int, default=8)
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    model = Bert(args).train()
    model.load_state_dict(torch.load(args.load))
    if args.precision == 16:
        model.half()
    options = get_options(args)
    data = torch.load(args.data)
    dataset = torch.utils.data.TensorDataset(data["tokens"], data["present"], data["labels"])
    loader = poptorch.DataLoader(options, dataset, batch_size=args.batch_size)

    optimizer = get_optimizer(model, args)
    scheduler = get_scheduler(optimizer, args)
    training_model = poptorch.trainingModel(model.pipelined(), options, optimizer=optimizer)
    losses = []
    batches = iter(loader)
    for update in range(args.updates):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        loss = training_model(*batch)
        losses.append(loss.mean())
        print(f"update {update}: loss {losses[-1]:.4f}, lr {scheduler.get_last_lr()[0]:.4f}")
        scheduler.step()
        training_model.setOptimizer(optimizer)
    torch.save({"losses": torch.stack(losses), "weights": model.state_dict()}, args.output)


if __name__ == "__main__":
    main()
