"""Numbers of a prime field: exact, as large as one machine word, and never equal by chance.

An agent's parameter is an element of the integers modulo the prime 2^61 - 1, and so are its
local steps and the mixing weights (symmetric, otherwise arbitrary). What a round does,
`x+ = z + sum_j w_ij (z_j - z)` with `z = x + step`, is linear, and the invariants are linear
identities: what holds for all real numbers holds here, and what does not hold for all of them
holds for random elements of the field with a probability below 10^-17 (Schwartz and Zippel).
Fractions or dyadic integers would be as exact, but their length grows in every round, and
symmetric steps cancel by chance. Floating point could not tell a lost step from rounding.
"""

from __future__ import annotations

__all__ = ["PRIME", "Value", "digest", "inverse"]

PRIME = (1 << 61) - 1

Value = tuple[int, int]
"""A payload: the parameter after the local step, and the tracker (0 for rules without)."""


def digest(value: Value) -> int:
    """Name of a payload: the same for the same bytes, never 0."""
    return ((value[0] * 0x9E3779B97F4A7C15 + value[1] * 0xC2B2AE3D27D4EB4F + 1) & (2**63 - 1)) | 1


def inverse(number: int) -> int:
    """The number that multiplies with this one to 1."""
    return pow(number, -1, PRIME)
