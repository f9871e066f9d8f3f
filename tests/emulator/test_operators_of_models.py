"""What models consist of: layers and functions give plain PyTorch's outputs, gradients and buffers, or are refused."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict, List, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from operator_models import Calls
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

Case = Tuple[Any, ...]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# Inputs: matrices, sequences, images, volumes, and indices. None has equal elements: gradients there are
# a matter of taste.
X, ROWS, IMAGES, VOLUMES = _random(2, 6), _random(2, 4, 6), _random(2, 4, 8, 8), _random(2, 4, 6, 6, 6)
POSITIVE, OTHER = X.abs() + 0.5, _random(6, 2).t().contiguous()
IDS = torch.tensor([[1, 5, 0, 2], [3, 3, 1, 4]])
FEW = torch.tensor([[2, 0, 1], [5, 3, 4]])

ACTIVATIONS: Dict[str, Case] = {
    type(module).__name__: (module, X)
    for module in (
        nn.ReLU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Hardswish(),
        nn.Hardsigmoid(), nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.Softplus(), nn.Softshrink(),
        nn.Hardshrink(), nn.Softsign(), nn.Tanhshrink(), nn.LogSigmoid(), nn.GLU(), nn.Threshold(0.1, 0.2),
        nn.RReLU(0.2, 0.2), nn.Softmin(-1), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.Tanh(), nn.Identity(),
    )
}  # fmt: skip

LAYERS: Dict[str, Case] = {
    "linear": (nn.Linear(6, 3), X),
    "linear without bias": (nn.Linear(6, 3, bias=False), ROWS),
    "bilinear": (nn.Bilinear(6, 6, 3), X, OTHER),
    "conv1d": (nn.Conv1d(4, 3, 3), ROWS),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), IMAGES),
    "conv2d same": (nn.Conv2d(4, 3, 3, padding="same", dilation=2), IMAGES),
    "conv2d reflect": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGES),
    "conv3d": (nn.Conv3d(4, 3, 3), VOLUMES),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 3, 3), ROWS),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGES),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 2, 2), VOLUMES),
    "batch_norm1d": (nn.BatchNorm1d(4), ROWS),
    "batch_norm2d": (nn.BatchNorm2d(4), IMAGES),
    "batch_norm3d": (nn.BatchNorm3d(4, momentum=0.3), VOLUMES),
    "batch_norm in evaluation": (nn.BatchNorm2d(4).eval(), IMAGES),
    "batch_norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
    "group_norm": (nn.GroupNorm(2, 4), IMAGES),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), IMAGES),
    "layer_norm": (nn.LayerNorm(6), ROWS),
    "layer_norm without weights": (nn.LayerNorm(6, elementwise_affine=False), ROWS),
    "embedding": (nn.Embedding(7, 4), None, IDS),
    "embedding with padding": (nn.Embedding(7, 4, padding_idx=1), None, IDS),
    "embedding_bag": (nn.EmbeddingBag(7, 4, mode="sum"), None, IDS),
    "lstm": (nn.LSTM(6, 5, batch_first=True), ROWS),
    "gru": (nn.GRU(6, 5), ROWS),
    "rnn": (nn.RNN(6, 5, nonlinearity="relu"), ROWS),
    "lstm_cell": (nn.LSTMCell(6, 5), X),
    "max_pool1d": (nn.MaxPool1d(2), ROWS),
    "max_pool2d": (nn.MaxPool2d(3, 2, 1), IMAGES),
    "max_pool3d": (nn.MaxPool3d(2), VOLUMES),
    "avg_pool1d": (nn.AvgPool1d(2), ROWS),
    "avg_pool2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGES),
    "avg_pool3d": (nn.AvgPool3d(2), VOLUMES),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(2), ROWS),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((2, 1)), IMAGES),
    "adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(2), VOLUMES),
    "upsample nearest": (nn.Upsample(scale_factor=2), IMAGES),
    "upsample bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGES),
    "upsample bilinear, aligned": (nn.Upsample((5, 9), mode="bilinear", align_corners=True), IMAGES),
    "upsample bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGES),
    "upsample a sequence": (nn.Upsample(scale_factor=2), ROWS),
    "upsample a volume": (nn.Upsample(scale_factor=2), VOLUMES),
    "pixel_shuffle": (nn.PixelShuffle(2), IMAGES),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), IMAGES),
    "unfold": (nn.Unfold(2), IMAGES),
    "fold": (nn.Fold((4, 4), 2), _random(2, 8, 9)),
    "zero_pad": (nn.ZeroPad2d(1), IMAGES),
    "constant_pad": (nn.ConstantPad1d(2, 3.0), ROWS),
    "reflection_pad": (nn.ReflectionPad2d(1), IMAGES),
    "replication_pad": (nn.ReplicationPad2d(1), IMAGES),
    "flatten": (nn.Flatten(), IMAGES),
    "unflatten": (nn.Unflatten(1, (2, 3)), X),
    "cosine_similarity": (nn.CosineSimilarity(), X, OTHER),
    "pairwise_distance": (nn.PairwiseDistance(), X, OTHER),
    "dropout of nothing": (nn.Dropout(0.0), X),
    "dropout in evaluation": (nn.Dropout(0.5).eval(), X),
    "dropout2d of nothing": (nn.Dropout2d(0.0), IMAGES),
    "alpha_dropout of nothing": (nn.AlphaDropout(0.0), X),
    "attention": (nn.MultiheadAttention(6, 2, batch_first=True), (ROWS, ROWS, ROWS)),
    "attention of others": (nn.MultiheadAttention(6, 2, kdim=3, vdim=5), (ROWS, _random(3, 4, 3), _random(3, 4, 5))),
    "encoder layer": (nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True), ROWS),
    "encoder layer in evaluation": (nn.TransformerEncoderLayer(6, 2, 12, batch_first=True).eval(), ROWS),
    "encoder layer, norm first": (nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, norm_first=True), ROWS),
    "encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, 0.0), 2, enable_nested_tensor=False), ROWS
    ),
    "decoder layer": (nn.TransformerDecoderLayer(6, 2, 12, dropout=0.0), (ROWS, _random(3, 4, 6))),
    "transformer": (nn.Transformer(6, 2, 1, 1, 12, 0.0, batch_first=True), (ROWS, _random(2, 3, 6))),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), X)
    if hasattr(nn.utils.parametrizations, "weight_norm")
    else (nn.Linear(6, 3), X),
    "spectral_norm in evaluation": (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)).eval(), X),
    "sequential": (nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), X),
}  # fmt: skip


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0
    y[:, 1:3] += 1
    y[0].mul_(2)
    y[y > 2] = 2.0
    return y


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    y.mul_(3).sub_(x).div_(2).clamp_(-5, 5)
    return y.relu_()


def _masked(x: Tensor) -> Tensor:
    mask = torch.ones(4, 4, dtype=torch.bool, device=x.device).triu(1)
    return (x @ x.transpose(1, 2)).masked_fill(mask, float("-inf")).softmax(-1)


FUNCTIONS: Dict[str, Case] = {
    name: (function, *inputs)
    for name, (function, *inputs) in {
        # What PyTorch takes apart before a device sees it
        "isinf": (lambda x: torch.where(torch.isinf(x / 0).any(), x * 2, x), X), "rot90": (torch.rot90, X),
        "dist": (lambda x: torch.dist(x, x + 1), X), "addr": (lambda x: torch.addr(x, x[:, 0], x[0]), X),
        "bincount": (lambda x: torch.bincount(x.argmax(1), minlength=7), X),
        "weighted bincount": (lambda x: torch.bincount(x.argmax(1), x[:, 0].detach(), 7), X),
        # Elementwise
        "abs": (torch.abs, X), "neg": (torch.neg, X), "exp": (torch.exp, X), "expm1": (torch.expm1, X),
        "log": (torch.log, POSITIVE), "log2": (torch.log2, POSITIVE), "log10": (torch.log10, POSITIVE),
        "log1p": (torch.log1p, POSITIVE), "sqrt": (torch.sqrt, POSITIVE), "rsqrt": (torch.rsqrt, POSITIVE),
        "square": (torch.square, X), "reciprocal": (torch.reciprocal, POSITIVE), "sin": (torch.sin, X),
        "cos": (torch.cos, X), "tan": (torch.tan, X), "asin": (lambda x: torch.asin(x.tanh()), X),
        "acos": (lambda x: torch.acos(x.tanh()), X), "atan": (torch.atan, X), "sinh": (torch.sinh, X),
        "cosh": (torch.cosh, X), "asinh": (torch.asinh, X), "acosh": (lambda x: torch.acosh(x + 1), POSITIVE),
        "atanh": (lambda x: torch.atanh(x / 9), X), "erf": (torch.erf, X), "erfc": (torch.erfc, X),
        "sign": (torch.sign, X), "floor": (torch.floor, X), "ceil": (torch.ceil, X), "round": (torch.round, X),
        "trunc": (torch.trunc, X), "frac": (torch.frac, X), "pow": (lambda x: x**3 + 2**x, X),
        "pow of tensors": (torch.pow, POSITIVE, OTHER), "atan2": (torch.atan2, X, OTHER),
        "add": (lambda x, y: x + y + 1, X, OTHER), "sub": (lambda x, y: 1 - x - y, X, OTHER),
        "rsub": (lambda x: torch.rsub(x, 2), X), "mul": (lambda x, y: x * y * 2, X, OTHER),
        "div": (lambda x, y: x / y / 2, X, OTHER), "floor_divide": (lambda x: x.detach() // 0.3 * x, X),
        "div rounded": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), X),
        "fmod": (lambda x: torch.fmod(x, 0.4), X),
        "remainder": (lambda x: x % 0.4, X), "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=2), X, OTHER),
        "addcdiv": (lambda x, y: torch.addcdiv(x, x, y.abs() + 1), X, OTHER), "clamp": (lambda x: x.clamp(-1, 0.5), X),
        "clamp to tensors": (lambda x, y: torch.clamp(x, y - 1, y), X, OTHER), "clip": (lambda x: x.clip(max=0.5), X),
        "maximum": (torch.maximum, X, OTHER), "minimum": (torch.minimum, X, OTHER),
        "where": (lambda x, y: torch.where(x > y, x, y * x), X, OTHER),
        "masked_fill": (lambda x: x.masked_fill(x > 0, -1e4), X), "isnan": (lambda x: (x, x.isnan()), X),
        "compare": (lambda x, y: (x == y, x != y, x > y, x >= y, x < y, x <= y), X, OTHER),
        "logic": (lambda x, y: ((x > 0) & (y > 0), (x > 0) | ~(y > 0), (x > 0) ^ (y > 0), torch.logical_not(x > 0)),
                  X, OTHER),
        "bits": (lambda x, i: (i & 3, i | 3, i ^ 3, ~i), X, IDS),
        # Reductions
        "sum": (lambda x: (x.sum(), x.sum(1), x.sum((0, 1), keepdim=True)), X),
        "mean": (lambda x: (x.mean(), x.mean(-1, keepdim=True)), X), "prod": (lambda x: x.prod(1), X),
        "std": (lambda x: (x.std(1), x.std(unbiased=False)), X), "var": (lambda x: torch.var(x, 1, unbiased=False), X),
        "std_mean": (lambda x: torch.std_mean(x, 1), X), "var_mean": (lambda x: torch.var_mean(x, 1), X),
        "norm": (lambda x: (x.norm(), x.norm(dim=1), x.norm(p=1, dim=0)), X),
        "vector_norm": (lambda x: (torch.linalg.vector_norm(x, dim=1), torch.linalg.norm(x, dim=1)), X),
        "normalize": (lambda x: F.normalize(x, dim=-1), X), "logsumexp": (lambda x: x.logsumexp(1), X),
        "amax": (lambda x: (x.amax(1), x.amin(0)), X), "max": (lambda x: (x.max(), x.max(1), x.min(0)), X),
        "argmax": (lambda x: (x.argmax(1), x.argmin(), x.argmax(1, keepdim=True)), X),
        "median": (lambda x: x.median(1), X), "any": (lambda x: ((x > 0).any(1), (x > 0).all()), X),
        "cumsum": (lambda x: x.cumsum(1), X), "cumprod": (lambda x: x.cumprod(1), X),
        "count_nonzero": (lambda x: torch.count_nonzero(x > 0, 1), X), "nansum": (torch.nansum, X),
        # Products
        "matmul": (lambda x: x @ x.t(), X), "matmul of batches": (lambda x: x @ x.mT, ROWS),
        "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)), ROWS), "mv": (lambda x: torch.mv(x, x[0]), X),
        "dot": (lambda x: torch.dot(x[0], x[1]), X), "addmm": (lambda x: torch.addmm(x[:, :2], x, x.T, beta=2), X),
        "baddbmm": (lambda x: torch.baddbmm(x @ x.mT, x, x.mT, alpha=2), ROWS),
        "einsum": (lambda x: torch.einsum("bcd,bed->bce", x, x), ROWS), "outer": (lambda x: torch.outer(x[0], x[1]), X),
        "tensordot": (lambda x: torch.tensordot(x, x, dims=([1, 2], [1, 2])), ROWS),
        "cross": (lambda x: torch.cross(x[:, :3], x[:, 3:], dim=1), X), "cdist": (torch.cdist, ROWS, _random(2, 3, 6)),
        "attention": (F.scaled_dot_product_attention, (IMAGES, IMAGES * 2, IMAGES + 1)),
        "attention, causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), IMAGES),
        "attention, masked": (
            lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m), IMAGES, _random(8, 8) > -0.5
        ),
        "attention, biased": (lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m), IMAGES, _random(8, 8)),
        "causal softmax": (_masked, ROWS),
        # Shapes
        "reshape": (lambda x: (x.reshape(4, -1), x.view(3, 4), x.flatten(), x.reshape_as(x)), X),
        "permute": (lambda x: (x.permute(2, 0, 1), x.transpose(0, 2), x.movedim(0, 2), x.swapaxes(0, 1)), ROWS),
        "squeeze": (lambda x: (x[:, None].squeeze(1), x.unsqueeze(-1), x[None].squeeze()), X),
        "expand": (lambda x: (x[:, None].expand(-1, 3, -1), x[:1].expand_as(x), torch.broadcast_to(x, (3, 2, 6))), X),
        "repeat": (lambda x: (x.repeat(1, 2), x.tile(2, 1)), X), "cat": (lambda x: torch.cat([x, x * 2], 1), X),
        "stack": (lambda x: (torch.stack([x, x]), torch.hstack([x, x]), torch.vstack([x, x])), X),
        "split": (lambda x: (x.split(2, 1), x.split([1, 5], 1), x.chunk(3, 1), x.unbind(1)), X),
        "iterate": (lambda x: [row * i for i, row in enumerate(x)], X), "roll": (lambda x: x.roll(1, 1), X),
        "flip": (lambda x: (x.flip(1), x.fliplr()), X), "triu": (lambda x: x.triu(1), X),
        "meshgrid": (lambda x: torch.meshgrid(x[0], x[1], indexing="ij"), X),
        "cartesian_prod": (lambda x: torch.cartesian_prod(x[0], x[1]), X),
        "tensor.unfold": (lambda x: x.unfold(1, 3, 2), X), "as_strided": (lambda x: x.as_strided((2, 3), (6, 2)), X),
        "pad": (lambda x: (F.pad(x, (1, 2)), F.pad(x, (1, 1), mode="circular")), ROWS), "T": (lambda x: x.T @ x, X),
        # Places
        "index": (lambda x, i: (x[0], x[:, 1:3], x[..., -1], x[:, ::2], x[:, None], x[1, 2], x[:, i[0]]), X, IDS),
        "index by tensors": (lambda x, i: (x[i % 2], x[i[:, :2] % 2, i[:, :2]]), X, IDS),
        "index_select": (lambda x, i: x.index_select(1, i[0]), X, IDS), "gather": (lambda x, i: x.gather(1, i), X, FEW),
        "take_along_dim": (lambda x, i: torch.take_along_dim(x, i, 1), X, FEW),
        "narrow": (lambda x: x.narrow(1, 2, 3), X),
        "scatter": (lambda x, i: x.scatter(1, i, 1.0) + x.scatter(1, i, x[:, :3]), X, FEW),
        "scatter_add": (lambda x, i: x.scatter_add(1, i, x[:, :3]), X, FEW),
        "scatter_reduce": (lambda x, i: x.scatter_reduce(1, i, x[:, :3], "sum"), X, FEW),
        "index_put": (lambda x, i: x.index_put((i[0] % 2, i[1]), x[0, :4]), X, IDS),
        "index_fill": (lambda x, i: x.index_fill(1, i[0], 2.0), X, IDS),
        "select_scatter": (lambda x: x.select_scatter(x[:, 0] * 2, 1, 3), X), "write": (_written, X),
        "in place": (_in_place, X), "sort": (lambda x: x.sort(1), X), "argsort": (lambda x: x.argsort(1), X),
        "topk": (lambda x: x.topk(2), X), "one_hot": (lambda x, i: F.one_hot(i, 6).float() @ x[0], X, IDS),
        "bucketize": (lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0], device=x.device)), X),
        # Types and new tensors
        "to": (lambda x: (x.int(), x.long() + 1, x.bool(), x.to(torch.int16), x.type(torch.int32), x.type_as(x)), X),
        "double": (lambda x: x.double() / 3, X), "detach": (lambda x: x.detach() * x, X),
        "new": (lambda x: (x + x.new_zeros(6) + x.new_ones(2, 1) + x.new_full((6,), 3.0) + x.new_tensor([2.0])), X),
        "like": (lambda x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 2), X),
        "created": (lambda x: x + torch.arange(6, device=x.device) + torch.zeros(2, 1, device=x.device), X),
        "literal": (lambda x: x * torch.tensor([1.0, 2, 3, 4, 5, 6], device=x.device), X),
        "random of no effect": (lambda x: x + 0 * (torch.rand_like(x) + torch.randn_like(x)), X),
        "drop path": (lambda x: x * x.new_empty(2, 1).bernoulli_(1.0), X),
        "bernoulli": (lambda x: x * torch.bernoulli(torch.ones_like(x)), X),
        "no_grad": (torch.no_grad()(lambda x: x * 2), X), "deepcopy": (lambda x: copy.deepcopy(x.detach()) * x, X),
        "distribution": (lambda x: x + 0 * torch.distributions.Uniform(0.0, 2.0).sample(x.shape), X),
        "distribution of tensors": (
            lambda x, y: torch.distributions.Normal(x, y.exp(), validate_args=False).log_prob(y), X, OTHER
        ),
    }.items()
}  # fmt: skip


class Sums(nn.Module):
    """Trains the first inputs and the layer's weights: its loss weighs each output's elements differently."""

    def __init__(self, layer: Any, first: Any) -> None:
        super().__init__()
        self.layer = layer
        tensors: List[Tensor] = [] if first is None else list(first) if isinstance(first, tuple) else [first]
        self.first = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in tensors])

    def outputs_and_loss(self, *others: Tensor) -> Tuple[Any, Tensor]:
        result = self.layer(*self.first, *others)
        total: Any = sum((tensor.sum() for tensor in self.parameters()), 0.0) * 0.0
        for output in tree_flatten(result)[0]:
            if output.dtype.is_floating_point:
                finite = output.masked_fill(output.isnan(), 0.0).flatten()
                total = total + (finite + torch.arange(len(finite), device=finite.device)).sin().sum()
        return result, total

    def forward(self, *others: Tensor) -> Any:
        result, loss = self.outputs_and_loss(*others)
        return result, poptorch.identity_loss(loss, "none")


def leaves(result: Any) -> List[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [leaf for item in result for leaf in leaves(item)]


def check(case: Case) -> None:
    function, first, *others = case
    model = Sums(copy.deepcopy(function), first)
    twin = copy.deepcopy(model)
    trainer = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    result, loss = trainer(*others)
    trainer.copyWeightsToHost()
    expected, expected_loss = twin.outputs_and_loss(*others)
    expected_loss.backward()
    close = {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(leaves(result), leaves(expected)):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs.detach().to(ours.dtype), **close)
    assert len(leaves(result)) == len(leaves(expected))
    torch.testing.assert_close(loss, expected_loss.detach().to(loss.dtype), **close)
    trained = dict(model.named_parameters())
    for name, weight in twin.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(
            weight.detach() - trained[name].detach(), gradient, msg=lambda m, n=name: f"{n}: {m}", **close
        )
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(buffers[name].detach(), buffer, **close)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    check(ACTIVATIONS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    check(LAYERS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    check(FUNCTIONS[name])


def test_decoders_do_not_look_at_their_masks() -> None:
    """Later versions of PyTorch than the SDK's would, to learn whether it is causal."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 1)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

        def forward(self, x: Any) -> Any:
            return self.decoder(x, x, tgt_mask=self.mask)

    model, x = Decoder(), torch.randn(2, 5, 8)
    torch.testing.assert_close(poptorch.inferenceModel(model)(x), model(x), atol=1e-5, rtol=1e-5)


def _run(layer: nn.RNNBase, dropout: float = 0.0) -> Callable[[Tensor], Tensor]:
    layer.dropout = dropout  # of which its constructor would warn
    return lambda x: layer(x)[0]


# --- what is refused ---------------------------------------------------------------------------------

# Operators without a lowering, each with its name, or with what is said against its arguments.
REFUSED: Dict[str, Tuple[Callable[..., Any], str]] = {
    "lerp": (lambda x: torch.lerp(x, x, 0.5), "Unsupported ops .*aten::lerp at"),
    "tril": (lambda x: x.tril(), "Unsupported ops .*aten::tril at"),
    "repeat_interleave": (lambda x: x.repeat_interleave(2), "repeat_interleave"),
    "repeat_interleave of a dimension": (lambda x: torch.repeat_interleave(x, 2, dim=1), "repeat_interleave"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select.* shape depends on data"),
    "nonzero": (lambda x: x.nonzero(), "nonzero.* shape depends on data"),
    "antialiased bilinear": (
        lambda x: F.interpolate(x[None, None], (4, 4), mode="bilinear", antialias=True), "aten::_upsample_bilinear2d_aa"
    ),
    "antialiased bicubic": (
        lambda x: F.interpolate(x[None, None], (4, 4), mode="bicubic", antialias=True), "aten::_upsample_bicubic2d_aa"
    ),
    "aligned bicubic": (
        lambda x: F.interpolate(x[None, None], (4, 4), mode="bicubic", align_corners=True), "align_corners=True"
    ),
    "linear": (lambda x: F.interpolate(x[None], 9, mode="linear"), "linear interpolation of one dimension"),
    "trilinear": (lambda x: F.interpolate(x[None, None, None], (2, 4, 4), mode="trilinear"), "trilinear"),
    "unsorted topk": (lambda x: x.topk(2, sorted=False), "sorted=False"),
    "one_hot of unknown classes": (lambda x: F.one_hot(x.argmax(1)), "num_classes"),
    "class weights": (lambda x: F.cross_entropy(x, x.argmax(1), torch.ones(6, device=x.device)), "Class weights"),
    "eye": (lambda x: x @ torch.eye(6, device=x.device), "aten::eye"),
    "linspace": (lambda x: x + torch.linspace(0, 1, 6, device=x.device), "aten::linspace"),
    "fft": (lambda x: torch.fft.rfft(x).real, "aten::_fft_r2c"),
    "svd": (lambda x: torch.linalg.svd(x)[1], "aten::_linalg_svd"),
    "grid_sample": (
        lambda x: F.grid_sample(x[None, None], x[:, :4].reshape(1, 2, 2, 2), align_corners=False), "grid_sampler_2d"
    ),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x[None], 1), "aten::adaptive_max_pool2d"),
    "huber_loss": (lambda x: F.huber_loss(x, x + 1), "aten::huber_loss"),
    "multinomial": (lambda x: x.abs().multinomial(2), "aten::multinomial"),
    "bincount of unknown length": (lambda x: x.argmax(1).bincount(), "bincount needs minlength"),
    "tensor of tensors": (lambda x: torch.tensor([x[0, 0], x[0, 1]]), "aten::item is only supported in eager mode"),
    "sparse embedding": (lambda x: F.embedding(x.argmax(1), x, sparse=True), "sparse=True"),
    "scaled embedding": (lambda x: F.embedding(x.argmax(1), x, scale_grad_by_freq=True), "scale_grad_by_freq=True"),
    "embedding of bounded norm": (lambda x: F.embedding(x.argmax(1), x.detach(), max_norm=1.0), "max_norm"),
    "bag with padding": (lambda x: F.embedding_bag(x.argmax(1)[None], x, padding_idx=1), "padding_idx=1"),
    "pooling to no divisor": (lambda x: F.adaptive_avg_pool2d(x[None], (1, 4)), "does not divide"),
    "pooling with indices": (lambda x: F.max_pool1d(x, 2, return_indices=True)[0], "return_indices=True"),
    "two layers of lstm": (_run(nn.LSTM(6, 4, 2)), "Only LSTM with 1 layer"),
    "lstm both ways": (_run(nn.LSTM(6, 4, bidirectional=True)), "bidirectional LSTM"),
    "gru with dropout": (_run(nn.GRU(6, 4), dropout=0.1), "GRU only supports dropout"),
    "rnn without biases": (_run(nn.RNN(6, 4, bias=False)), "RNN without biases"),
    "bfloat16": (lambda x: x.to(torch.bfloat16) + 1, "a device has no bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("training", [False, True])
def test_rule_12_6_refused_operators(name: str, training: bool) -> None:
    function, complaint = REFUSED[name]
    if training:
        model = Calls(lambda w: tuple(tree_flatten(function(w))[0]) and poptorch.identity_loss(w, "sum"), X)
        executor, inputs = poptorch.trainingModel(model), ()
    else:
        executor, inputs = poptorch.inferenceModel(Calls(function)), (X,)
    with pytest.raises(poptorch.Error, match=rf"(?s){complaint}.*{__file__}:\d+"):
        executor.compile(*inputs)


@pytest.mark.parametrize("function", [
    lambda x, i: x.gather(0, i), lambda x, i: x.scatter(0, i, 5.0), lambda x, i: x.scatter_add(0, i, x),
    lambda x, i: torch.scatter_reduce(x, 0, i, x, "amax"), lambda x, i: torch.take_along_dim(x, i, dim=0),
    lambda x, i: x.index_fill(0, i[0, :1], 5.0), lambda x, i: torch.gather(x, dim=0, index=i),
])  # fmt: skip
def test_rule_1_16_indices_that_came_back_as_int32_are_taken_again(function: Callable[..., Tensor]) -> None:
    places = poptorch.inferenceModel(Calls(lambda x: x.argsort(0)))(X)
    assert places.dtype == torch.int32
    executor = poptorch.inferenceModel(Calls(function))
    torch.testing.assert_close(executor(X, places), function(X, places.long()))


def test_instance_norms_have_no_statistics() -> None:
    """Not even in evaluation, and they leave the host's alone."""
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval()
    expected = F.instance_norm(IMAGES, weight=norm.weight, bias=norm.bias)
    executor = poptorch.inferenceModel(norm)
    torch.testing.assert_close(executor(IMAGES), expected.detach())
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_the_divisor_of_a_pool_is_its_size() -> None:
    executor = poptorch.inferenceModel(nn.AvgPool2d(2, divisor_override=3))
    torch.testing.assert_close(executor(IMAGES), F.avg_pool2d(IMAGES, 2))
