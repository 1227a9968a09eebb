"""Orthogonal matrices H = kron(Sylvester(2**k), base) of every size n, H H^T = n I, for the rotations.

The base is Paley's of order m, of +-1, where the odd part of n is small, and else the discrete Hartley matrix.

Row vectors: activations become x @ H / sqrt(n) and the weights that read them W @ H / sqrt(n).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .errors import QuambaError

PALEY_ORDERS = (1, 12, 20, 28, 36, 44, 52, 60)  # every odd part up to 15
MAX_KERNEL_ORDER = 64  # of a base, in the kernels


def hadamard_base(n: int) -> tuple[int, Tensor]:
    """Return (k, base), the factors of the matrix of order n = m * 2**k: base float32 [m, m], base base^T = m I.

    base is of +-1, with m in `PALEY_ORDERS`, where n has that form; m = 1 where n is a power of two. Else it is
    `_hartley(m)` of the odd part m of n. Raises QuambaError unless n is positive.
    """
    if n < 1:
        raise QuambaError(f"no rotation has size {n}: it is at least 1")
    for order in PALEY_ORDERS:
        copies = n // order
        if n % order == 0 and copies & (copies - 1) == 0:
            return copies.bit_length() - 1, _paley(order)
    k = (n & -n).bit_length() - 1  # how often n can be halved
    return k, _hartley(n >> k)


def check_kernel_size(n: int) -> None:
    """Raise QuambaError naming n where the kernels, which rotate activations, take no base as large as it needs."""
    order = len(hadamard_base(n)[1])
    if order > MAX_KERNEL_ORDER:
        raise QuambaError(
            f"no Hadamard rotation of size {n}: kernels rotate sizes m * 2**k with m up to {MAX_KERNEL_ORDER}, "
            f"and this is {order} * 2**{(n // order).bit_length() - 1}"
        )


def hadamard_matrix(n: int) -> Tensor:
    """Return the matrix of order n, kron(Sylvester(2**k), base): float32 [n, n], H @ H.T = n * identity.

    Unnormalised: `apply_hadamard` is where 1 / sqrt(n) is applied. Raises QuambaError unless n is positive.
    """
    k, matrix = hadamard_base(n)
    sylvester = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32)
    for _ in range(k):
        matrix = torch.kron(sylvester, matrix)
    return matrix


@lru_cache(maxsize=64)
def base_on(n: int, device: torch.device) -> Tensor:
    """The base [m, m] of order n on a device, made once: what the `hadamard` ops take. Raises QuambaError."""
    check_kernel_size(n)
    with torch.inference_mode(False):  # whoever asks first: others may use it with gradients on
        return hadamard_base(n)[1].to(device)


def _hartley(order: int) -> Tensor:
    """Return cos(2 pi i j / m) + sin(2 pi i j / m): symmetric, M M = m I, entries within +-sqrt(2): float32 [m, m].

    Source: R. N. Bracewell, "Discrete Hartley transform", J. Opt. Soc. Am. 73 (1983), 1832-1835.
    """
    index = torch.arange(order)
    angle = (index[:, None] * index[None, :] % order).double() * (2 * math.pi / order)  # [m, m]
    return (angle.cos() + angle.sin()).float()


def _paley(order: int) -> Tensor:
    """A Hadamard matrix of an order q + 1 (construction I, q = 3 mod 4) or 2 (q + 1) (II, q = 1 mod 4).

    q: a prime, or the square of one. Returns float32 [order, order] of +-1; order 1 is the 1 x 1 matrix [1].
    Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933), 311-320.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float32)
    if (order - 1) % 4 == 3 and _is_prime(order - 1):
        return _conference_matrix(order - 1) + torch.eye(order, dtype=torch.float32)
    q = order // 2 - 1
    if order % 2 or q % 4 != 1 or not (_is_prime(q) or _is_prime(math.isqrt(q))):
        raise ValueError(f"no Paley matrix over a field of prime or squared prime order has order {order}")
    # the conference matrix has zeros on its diagonal only: each entry becomes a 2 x 2 block of +-1
    off_diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float32)
    return torch.kron(_conference_matrix(q), off_diagonal) + torch.kron(torch.eye(q + 1, dtype=torch.float32), diagonal)


def _conference_matrix(q: int) -> Tensor:
    """C [q + 1, q + 1] with a zero diagonal, +-1 elsewhere and C C^T = q I; symmetric for q = 1 mod 4, else skew."""
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float32)
    matrix[1:, 1:] = _differences(q) if _is_prime(q) else _differences_of_squared(math.isqrt(q))
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = 1.0 if q % 4 == 1 else -1.0  # the character of -1
    return matrix


def _legendre(p: int) -> Tensor:
    """The Legendre symbol (i / p) of 0 .. p - 1, float32 [p]: 0 for 0, 1 for squares modulo the prime p, else -1."""
    squares = {(i * i) % p for i in range(1, p)}
    return torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, p)], dtype=torch.float32)


def _differences(p: int) -> Tensor:
    """The quadratic character of a - b for all elements a, b of the field of prime order p: float32 [p, p]."""
    index = torch.arange(p)
    return _legendre(p)[(index[:, None] - index[None, :]) % p]


def _differences_of_squared(p: int) -> Tensor:
    """Return the differences in the field of order p**2: float32 [p * p, p * p].

    Its elements are a + b sqrt(r), r no square modulo p; one is a square exactly where its norm a**2 - r b**2 is one
    modulo p.
    """
    symbol = _legendre(p)
    r = symbol.tolist().index(-1.0)
    index = torch.arange(p * p)
    a, b = (part[:, None] - part[None, :] for part in (index // p, index % p))  # of the differences, [p * p, p * p]
    return symbol[(a * a - r * b * b) % p]


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, math.isqrt(q) + 1))
