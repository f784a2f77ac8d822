"""Workload `cifar100`, read by torchvision."""

from __future__ import annotations

from clients.images import Images

__all__ = ["Cifar100"]


class Cifar100(Images):
    """Objects of 100 classes: 50,000 to train on and 10,000 to test with, color, 32 x 32.

    Source: Krizhevsky, technical report 2009.
    """

    name = "cifar100"
    kind = "CIFAR100"
    shape = (3, 32, 32)
    classes = 100
    mean, deviation = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    varied = True
