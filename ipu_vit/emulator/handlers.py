"""Operators that a device can run.

PopTorch lowers a model's operators one by one and refuses a model that has others (rule 12.6). It sees
some before PyTorch takes them apart, and most after.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import torch

# Operators that PopTorch 3.4 has a lowering for, by their names in aten.
_HANDLED = """
    Int __and__ __or__ __xor__ _cdist_forward _convolution _embedding_bag _log_softmax _prelu_kernel
    _reshape_alias _softmax _unsafe_view _weight_norm _weight_norm_interface abs acos acosh adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d add addcdiv addcmul addmm addmv alias all amax amin any arange
    argmax argmin argsort as_strided asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bernoulli bilinear binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and
    bitwise_not bitwise_or bitwise_xor bmm broadcast_to bucketize cartesian_prod cat cdist ceil celu chunk clamp
    clamp_max clamp_min clone col2im constant_pad_nd contiguous conv2d convolution convolution_overrideable copy
    copy_ cos cosh cosine_embedding_loss cosine_similarity count_nonzero cross cross_entropy_loss ctc_loss
    cumprod cumsum detach div dot dropout einsum elu embedding embedding_bag empty empty_strided eq erf erfc exp
    expand expand_as expm1 exponential_ feature_dropout flatten flip floor floor_divide fmod frac frobenius_norm
    full full_like gather ge gelu glu group_norm gru gt hardshrink hardsigmoid hardswish hardtanh
    hinge_embedding_loss im2col index index_fill index_put index_reduce index_select instance_norm is_complex
    isnan kl_div l1_loss layer_norm le leaky_relu linalg_cross linalg_vector_norm linear log log10 log1p log2
    log_sigmoid log_sigmoid_forward log_softmax logical_and logical_not logical_or logsumexp lstm lt
    margin_ranking_loss masked_fill matmul max max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean median meshgrid min minimum mish
    mkldnn_convolution mm mse_loss mul multilabel_soft_margin_loss mv nansum narrow native_batch_norm
    native_group_norm native_layer_norm ne neg new_full new_ones new_zeros nll_loss2d nll_loss2d_forward
    nll_loss_forward nll_loss_nd norm normal normal_ numpy_T one_hot ones ones_like pairwise_distance permute
    pixel_shuffle poisson_nll_loss pow prelu prod rand randint randn random_ randperm reciprocal
    reflection_pad1d reflection_pad2d relu remainder repeat replication_pad1d replication_pad2d
    replication_pad3d reshape rnn_relu rnn_tanh roll round rrelu rrelu_with_noise rsqrt rsub scatter scatter_add
    scatter_reduce select select_scatter selu sigmoid sign silu sin sinh size slice smooth_l1_loss
    soft_margin_loss softmax softplus softshrink sort split split_with_sizes sqrt square squeeze stack std
    std_mean sub sum t take_along_dim tan tanh tensordot threshold to topk transpose transpose_
    triplet_margin_loss triu true_divide trunc type_as unbind unfold uniform_ unsafe_chunk unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d var var_mean view where zeros zeros_like
"""

# What PyTorch 2.0 itself takes apart into these before PopTorch sees it.
_COMPOSITES = "addr dist isinf ldexp rot90"

# What PyTorch's versions make of these, and of what they consist of, when they take a model apart.
_PARTS = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_with_update _ctc_loss _embedding_bag_forward_only
    _index_put_impl _is_all_true _is_any_true _local_scalar_dense _log_softmax_backward_data
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _to_copy
    _trilinear clip cross_entropy empty_like fill is_same_size lift_fresh lift_fresh_copy
    multi_head_attention_forward native_dropout new_empty new_empty_strided nll_loss pixel_unshuffle rand_like
    randint_like randn_like rrelu_with_noise_functional scalar_tensor slice_scatter unsafe_split
    unsafe_split_with_sizes vdot zero
"""


#: Functions that PopTorch meets whole, though later versions of PyTorch take them apart.
WHOLE = frozenset({"repeat_interleave"})


def _plain(name: str) -> str:
    return name if name.startswith("__") else name.rstrip("_")


_NAMES = {_plain(name) for name in " ".join([_HANDLED, _COMPOSITES, _PARTS]).split()}


def is_handled(name: str) -> bool:
    """Whether a device can run a function or operator of this name (in place or not)."""
    return _plain(name) in _NAMES


Check = Callable[[Any, Any, Any], Optional[str]]
"""Of a call of an operator: why a device refuses it, or None."""


def _argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """The value of a named argument of a call of an operator."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None


def _if_equal(name: str, value: Any, why: str) -> Check:
    def check(func: Any, args: Any, kwargs: Any) -> Optional[str]:
        given = _argument(func, args, kwargs, name)
        return why if given is value else None

    return check


def _unless_divisible(func: Any, args: Any, kwargs: Any) -> Optional[str]:
    """Pooling to a size that the input's is no multiple of."""
    wanted = _argument(func, args, kwargs, "output_size")
    given = args[0].shape[-len(wanted) :]
    if all(old % new == 0 for old, new in zip(given, wanted)):
        return None
    return f"an input of {list(given)} does not divide by the output of {list(wanted)}"


def _has_padding(func: Any, args: Any, kwargs: Any) -> Optional[str]:
    padding = _argument(func, args, kwargs, "padding_idx")
    return None if padding in (None, -1) else f"padding_idx={padding} is not supported: leave it out"


def _any_of(*checks: Check) -> Check:
    return lambda func, args, kwargs: next(filter(None, (check(func, args, kwargs) for check in checks)), None)


def _always(why: str) -> Check:
    return lambda func, args, kwargs: why


# Operators that are handled, but not with every argument (rules 12.6 and section 13).
_RESTRICTED: Dict[str, Check] = {
    "_adaptive_avg_pool2d": _unless_divisible,
    "_adaptive_avg_pool3d": _unless_divisible,
    "embedding": _any_of(
        _if_equal("sparse", True, "sparse=True is not supported: leave it out"),
        _if_equal("scale_grad_by_freq", True, "scale_grad_by_freq=True is not supported: leave it out"),
    ),
    "embedding_renorm_": _always("max_norm is not supported: leave it out"),
    "_embedding_bag": _has_padding,
    "_embedding_bag_forward_only": _has_padding,
    "topk": _if_equal("sorted", False, "sorted=False is not supported: leave it out"),
    "upsample_bicubic2d": _if_equal("align_corners", True, "align_corners=True is not supported: use False"),
    "upsample_linear1d": _always("linear interpolation of one dimension is not supported: use nearest or bilinear"),
    "upsample_trilinear3d": _always("trilinear interpolation is not supported: use nearest"),
}


def restriction(func: Any, args: Any, kwargs: Any) -> Optional[str]:
    """Why a device refuses a call of an operator that it otherwise has; None if it does not."""
    check = _RESTRICTED.get(func._schema.name.split("::")[1])
    return None if check is None else check(func, args, kwargs)


#: Functions that make tensors from nothing: without `device=` PopTorch makes them on the device (rule 12.3).
FACTORIES = frozenset(
    {
        torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint,
        torch.randn, torch.randperm, torch.zeros,
    }
)  # fmt: skip
