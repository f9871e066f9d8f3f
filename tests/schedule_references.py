"""Learning rates as the sources define them, one function each.

Each gives the learning rate of an update counted from 0; `lr` is the peak, `end` the last learning rate.
"""

from __future__ import annotations

import math


def mmcv(update: int, *, lr: float, updates: int, warmup: int, start: float, end: float = 0.0) -> float:
    """mmcv 1.x: `annealing_cos` over all iterations; a warm-up takes `k` of it away."""
    annealed = end + 0.5 * (lr - end) * (math.cos(math.pi * update / updates) + 1)
    k = (1 - update / warmup) * (1 - start) if update < warmup else 0.0
    return annealed * (1 - k)


def vit_jax(update: int, *, lr: float, updates: int, warmup: int, decay: str, linear_end: float = 1e-5) -> float:
    """vit_jax: a decay whose progress is clipped to 0 ... 1, times min(1, step / warm-up)."""
    progress = min(max((update - warmup) / float(updates - warmup), 0.0), 1.0)
    rate = linear_end + (lr - linear_end) * (1.0 - progress)
    if decay == "cosine":
        rate = lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate * min(1.0, update / warmup) if warmup else rate


def big_vision_rsqrt(update: int, *, lr: float, updates: int, warmup: int, timescale: float, cooldown: int) -> float:
    """big_vision: 1 / sqrt(1 + steps since the warm-up / timescale), warmed up and cooled down by lines."""
    rate = lr / math.sqrt(1 + (update - warmup) / timescale) if warmup <= update else lr
    if warmup:
        rate *= min(1.0, update / warmup)
    if cooldown:
        rate *= min(1.0, (updates - update) / cooldown)
    return rate


def mae(update: int, *, lr: float, updates: int, warmup: int, end: float) -> float:
    """MAE's `adjust_learning_rate`, where an epoch is an update: up from 0, then half a cosine down to the end."""
    if update < warmup:
        return lr * update / warmup
    return end + (lr - end) * 0.5 * (1.0 + math.cos(math.pi * (update - warmup) / (updates - warmup)))


def classy_vision(update: int, *, lr: float, updates: int, length: float) -> float:
    """ClassyVision: schedulers of a share of the run each, rescaled: a line from 0 to lr, a cosine from lr to 0."""
    where = update / updates
    if where + 1e-6 <= length:
        return lr * where / length
    return 0.5 * lr * (1 + math.cos(math.pi * (where - length) / (1 - length)))
