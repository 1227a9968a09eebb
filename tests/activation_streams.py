"""Streams of activations for the tests of observers."""

import torch

from quamba.observers.per_tensor import Observer


def batches(n: int = 4, shape=(3, 40, 50)) -> list[torch.Tensor]:
    """Heavy-tailed, lopsided activations, each batch of another size."""
    return [torch.randn(shape) * torch.exp(torch.randn(shape)) * (i + 1) + 0.2 for i in range(n)]


def watch(observer: Observer, stream: list[torch.Tensor]) -> Observer:
    for x in stream:
        observer.update(x)
    return observer
