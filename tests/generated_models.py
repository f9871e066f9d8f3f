"""Models, placements, batches and optimizers drawn at random, and what plain float64 makes of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Tuple

import poptorch
import torch
import torch.nn.functional as F
from emulator_models import options
from hypothesis import strategies as st
from optimizer_references import REFERENCES
from torch import Tensor, nn

CLASSES = 3
ACTIVATIONS: Dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU("tanh"),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "leaky_relu": lambda: nn.LeakyReLU(0.3),
    "none": nn.Identity,
}
# Large epsilons: what is nearly constant must not be blown up together with its rounding errors.
NORMS: Dict[str, Callable[[int, bool], nn.Module]] = {
    "layer": lambda size, image: nn.GroupNorm(1, size, 0.1) if image else nn.LayerNorm(size, 0.1),
    "group": lambda size, image: nn.GroupNorm(2, size, 0.1),
    "batch": lambda size, image: nn.BatchNorm2d(size, 0.1) if image else nn.BatchNorm1d(size, 0.1),
    "none": lambda size, image: nn.Identity(),
}


# Losses ------------------------------------------------------------------------------------------


def _kl_div(x: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.kl_div(F.log_softmax(x, 1), y, reduction="batchmean" if reduction == "mean" else reduction)


def _by_hand(x: Tensor, y: Tensor, reduction: str) -> Tensor:
    return poptorch.identity_loss((x - y).pow(2) + x.cos(), reduction)


def _two_losses(x: Tensor, y: Tensor, reduction: str) -> Tensor:
    total = 0.3 * F.mse_loss(x, y, reduction=reduction) + F.cross_entropy(x, y.argmax(1), reduction=reduction)
    return poptorch.identity_loss(total, "none")


# The loss of outputs and targets; whether targets are classes.
LOSSES: Dict[str, Tuple[Callable[[Tensor, Tensor, str], Tensor], bool]] = {
    "cross entropy": (lambda x, y, reduction: F.cross_entropy(x, y, reduction=reduction), True),
    "nll": (lambda x, y, reduction: F.nll_loss(F.log_softmax(x, 1), y, reduction=reduction), True),
    "mse": (lambda x, y, reduction: F.mse_loss(x, y, reduction=reduction), False),
    "smooth l1": (lambda x, y, reduction: F.smooth_l1_loss(x, y, reduction=reduction), False),
    "bce": (lambda x, y, reduction: F.binary_cross_entropy_with_logits(x, y, reduction=reduction), False),
    "kl": (_kl_div, False),
    "by hand": (_by_hand, False),
    "two": (_two_losses, False),
}


# Models ------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A linear layer or convolution with what follows it."""

    size: int
    bias: bool
    norm: str
    activation: str
    residual: bool
    frozen: bool
    ipu: int


@dataclass
class Case:
    """Everything about one training."""

    image: bool
    layers: List[Layer]
    loss: str
    reduction: str
    blocks: str
    strategy: str
    micro_batch: int
    accumulation: int
    replicas: int
    iterations: int
    sums: bool
    running: bool
    optimizer: str
    values: Dict[str, Any]
    second_group: bool
    seed: int
    #: attributes of the whole optimizer, which change no number in exact arithmetic
    types: Dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return 2

    def options(self) -> Any:
        opts = options(
            accumulation=self.accumulation, replicas=self.replicas, iterations=self.iterations, seed=self.seed
        )
        opts.setExecutionStrategy(self._strategy())
        opts.useIpuModel(True)  # which has any number of IPUs
        training = opts.Training
        if self.sums:
            training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
        if self.running:
            training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)
        return opts

    def _strategy(self) -> Any:
        if self.strategy == "sharded":
            return poptorch.ShardedExecution()
        if self.strategy == "as ipu":
            return poptorch.PipelinedExecution()
        if self.strategy == "counted":
            return poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
        return poptorch.PipelinedExecution(*(poptorch.Stage(f"{i}") for i in range(len(self.layers))))

    def data(self, call: int) -> Tuple[Tensor, Tensor]:
        """Inputs and targets, numbers that half can represent."""
        generator = torch.Generator().manual_seed(self.seed + call)
        rows = self.micro_batch * self.accumulation * self.replicas * self.iterations
        x = torch.randn(rows, *((2, 4, 4) if self.image else (4,)), generator=generator).half().float()
        if LOSSES[self.loss][1]:
            return x, torch.randint(0, CLASSES, (rows,), generator=generator)
        return x, torch.rand(rows, CLASSES, generator=generator).softmax(1).half().float()

    def groups(self, model: nn.Module) -> List[Tuple[List[str], Dict[str, Any]]]:
        """Names of the parameters with gradients, and what their optimizer is given."""
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not self.second_group:
            return [(names, self.values)]
        other = {**self.values, "lr": self.values["lr"] / 2, "weight_decay": 0.05}
        return [(names[::2], self.values), (names[1::2], other)]


class Generated(nn.Module):
    """The model of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(case.seed)
        self.case = case
        self.layers = nn.ModuleList()
        before = 2 if case.image else 4
        for layer in case.layers:
            self.layers.append(_Step(layer, before, case.image))
            before = layer.size
        self.head = nn.Linear(before * 16 if case.image else before, CLASSES)
        if case.blocks == "begun":
            for number, (module, layer) in enumerate(zip(self.layers, case.layers)):
                poptorch.BeginBlock(module, f"{number}", layer.ipu)

    def finish(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.head(x.flatten(1))
        return out, LOSSES[self.case.loss][0](out, y, self.case.reduction)

    def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
        if self.case.blocks == "begun":
            for module in self.layers:
                x = module(x)
            return self.finish(x, y)
        for number, (module, layer) in enumerate(zip(self.layers, self.case.layers)):
            with poptorch.Block(f"{number}", layer.ipu):
                x = module(x)
                if number == len(self.layers) - 1:
                    return self.finish(x, y)
        raise AssertionError("a model has layers")


class _Step(nn.Module):
    def __init__(self, layer: Layer, before: int, image: bool) -> None:
        super().__init__()
        self.residual = layer.residual and before == layer.size
        self.main = (
            nn.Conv2d(before, layer.size, 3, padding=1, bias=layer.bias)
            if image
            else nn.Linear(before, layer.size, layer.bias)
        )
        self.norm = NORMS[layer.norm](layer.size, image)
        self.activation = ACTIVATIONS[layer.activation]()
        if layer.frozen:
            self.main.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.main(x)))
        return x + out if self.residual else out


# Drawing -----------------------------------------------------------------------------------------

_decays = st.sampled_from([0.0, 0.01, 0.1])
_momenta = st.sampled_from([0.0, 0.5, 0.9])
_betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.99]))
# Adaptive steps are quotients of gradients: with a small eps those of tiny gradients would be rounding errors.
_eps = st.sampled_from([0.1, 1.0])
_OPTIMIZERS: Dict[str, Any] = {
    "SGD": st.fixed_dictionaries(
        {"lr": st.floats(0.01, 0.3)},
        optional={"momentum": _momenta, "weight_decay": _decays, "dampening": st.sampled_from([0.0, 0.25])},
    )
    | st.fixed_dictionaries(
        {"lr": st.floats(0.01, 0.3), "momentum": st.just(0.9), "nesterov": st.just(True)},
        optional={"weight_decay": _decays},
    ),
    "Adam": st.fixed_dictionaries(
        {"lr": st.floats(0.001, 0.03), "eps": _eps}, optional={"betas": _betas, "weight_decay": _decays}
    ),
    "AdamW": st.fixed_dictionaries(
        {"lr": st.floats(0.001, 0.03), "eps": _eps}, optional={"betas": _betas, "weight_decay": _decays}
    ),
    "LAMB": st.fixed_dictionaries(
        {"lr": st.floats(0.001, 0.03), "eps": _eps},
        optional={"betas": _betas, "weight_decay": _decays, "bias_correction": st.booleans()},
    ),
    "RMSprop": st.fixed_dictionaries(
        {"lr": st.floats(0.001, 0.03), "eps": _eps},
        optional={
            "alpha": st.sampled_from([0.5, 0.99]),
            "momentum": _momenta,
            "weight_decay": _decays,
            "centered": st.booleans(),
            "use_tf_variant": st.booleans(),
        },
    ),
}


def _forward_stages(ipus: List[int]) -> int:
    return 1 + sum(one != other for one, other in zip([0, *ipus], ipus))


@st.composite
def _layers(draw: Any, ipu: int) -> Layer:
    norm = draw(st.sampled_from(sorted(NORMS)))
    return Layer(
        size=draw(st.sampled_from([4, 6])),
        # Norms take a channel's bias off again; its gradient would be rounding errors, which LAMB makes large.
        bias=norm not in ("batch", "group") and draw(st.booleans()),
        norm=norm,
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        residual=draw(st.booleans()),
        frozen=draw(st.integers(0, 5)) == 0,
        ipu=ipu,
    )


@st.composite
def cases(draw: Any, half: bool = False) -> Case:
    """Cases for float32; or for half, where gradients and sums must not overflow."""
    image = draw(st.booleans())
    strategy = draw(st.sampled_from(["sharded", "as ipu", "counted", "listed"]))
    count = draw(st.integers(1, 4))
    ipus = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    if strategy == "as ipu":
        ipus = sorted(ipus)
    least = 1 if strategy == "sharded" else 2 * _forward_stages(ipus) - 1
    layers = [draw(_layers(ipu)) for ipu in ipus]
    optimizer = draw(st.sampled_from(sorted(_OPTIMIZERS)))
    loss, reduction = (
        draw(st.sampled_from(sorted(LOSSES))),
        draw(st.sampled_from(["mean"] if half else ["mean", "sum"])),
    )
    micro_batch, accumulation = draw(st.integers(2, 4)), draw(st.integers(least, least + 2))
    replicas, sums = draw(st.sampled_from([1, 1, 2, 3])), draw(st.booleans())
    values = dict(draw(_OPTIMIZERS[optimizer]))
    # Of sums the steps must not be larger than of means: in training that diverges rounding errors grow as well.
    terms = (accumulation * replicas if sums else 1) * (micro_batch * CLASSES if reduction == "sum" else 1)
    values.update({"eps": values["eps"] * terms} if "eps" in values else {"lr": values["lr"] / terms})
    types: Dict[str, Any] = {"loss_scaling": draw(st.sampled_from([1.0, 16.0, 64.0 if half else 1024.0]))}
    if optimizer == "SGD":
        types["use_combined_accum"] = draw(st.booleans())
    if half:
        types["accum_type"] = draw(st.sampled_from([torch.float16, torch.float32]))
    return Case(
        image=image,
        layers=layers,
        loss=loss,
        reduction=reduction,
        blocks=draw(st.sampled_from(["begun", "contexts"])),
        strategy=strategy,
        micro_batch=micro_batch,
        accumulation=accumulation,
        replicas=replicas,
        iterations=draw(st.sampled_from([1, 1, 2])),
        sums=sums,
        running=draw(st.booleans()),
        optimizer=optimizer,
        values=values,
        second_group=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
        types=types,
    )


# Training both ways ------------------------------------------------------------------------------

Weights = Dict[str, Tensor]


class Trained:
    """Outputs and losses of every call, and the state of the model after the last."""

    def __init__(self, outputs: List[Tensor], losses: List[Tensor], state: Weights) -> None:
        self.outputs, self.losses = (torch.cat(parts).double() for parts in (outputs, losses))
        self.state = {name: value.double() for name, value in state.items()}


def train_emulated(case: Case, dtype: torch.dtype) -> Trained:
    """What the emulated device makes of a case."""
    model = Generated(case).to(dtype)
    parameters = dict(model.named_parameters())
    groups = [{"params": [parameters[name] for name in names], **values} for names, values in case.groups(model)]
    own = {"bias_correction", "use_tf_variant"} & set(case.values)
    whole = {**{name: case.values[name] for name in own}, **case.types, "lr": case.values["lr"]}
    groups = [{name: value for name, value in group.items() if name not in own} for group in groups]
    optimizer = getattr(poptorch.optim, case.optimizer)(groups, **whole)
    executor = poptorch.trainingModel(model, case.options(), optimizer)
    outputs, losses = [], []
    for call in range(case.calls):
        x, y = case.data(call)
        out, loss = executor(x.to(dtype), y.to(dtype) if y.is_floating_point() else y)
        outputs.append(out)
        losses.append(loss.reshape(-1))
    executor.copyWeightsToHost()
    return Trained(outputs, losses, copy.deepcopy(model).state_dict())


def train_plainly(case: Case) -> Trained:
    """What float64, autograd and the optimizers' formulas make of it."""
    model = Generated(case).double()
    poptorch.removeBlocks(model)
    parameters = dict(model.named_parameters())
    references = [
        (names, REFERENCES[case.optimizer]([parameters[name].detach().numpy() for name in names], **values))
        for names, values in case.groups(model)
    ]
    outputs, losses = [], []
    for call in range(case.calls):
        x, y = case.data(call)
        x, y = x.double(), y.double() if y.is_floating_point() else y
        for images, targets in zip(x.chunk(case.iterations), y.chunk(case.iterations)):
            model.zero_grad()
            count = case.accumulation * case.replicas
            for image, target in zip(images.chunk(count), targets.chunk(count)):
                out, loss = model(image, target)
                (loss if case.sums else loss / count).backward()
                outputs.append(out.detach())
                losses.append(loss.detach().reshape(1))
            for names, reference in references:
                reference.update([parameters[name].grad.numpy() for name in names])  # type: ignore[union-attr]
                with torch.no_grad():
                    for name, weight in zip(names, reference.weights):
                        parameters[name].copy_(torch.from_numpy(weight))
    return Trained(outputs, losses, model.state_dict())


def largest_error(found: Trained, expected: Trained, case: Case) -> float:
    """The largest difference of weights, outputs and losses, relative to the largest number of each."""
    pairs = {"outputs": (found.outputs, expected.outputs), "losses": (found.losses, expected.losses)}
    for name, value in expected.state.items():
        # Statistics of batch norm are each replica's own; the host has the first one's.
        if case.replicas == 1 or not name.split(".")[-1].startswith(("running", "num")):
            pairs[name] = (found.state[name], value)
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1.0)) for one, other in pairs.values())
