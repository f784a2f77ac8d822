"""Workload `cifar10`, read by torchvision."""

from __future__ import annotations

from clients.images import Images

__all__ = ["Cifar10"]


class Cifar10(Images):
    """Objects of ten classes: 50,000 to train on and 10,000 to test with, color, 32 x 32.

    Source: Krizhevsky, technical report 2009.
    """

    name = "cifar10"
    kind = "CIFAR10"
    shape = (3, 32, 32)
    classes = 10
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    varied = True
