"""Hadamard matrices H = kron(Sylvester(2**k), Paley(m)) for every size that a model of ours has.

Row vectors: activations become x @ H / sqrt(n) and the weights that read them W @ H / sqrt(n).
"""

from functools import lru_cache

import torch
from torch import Tensor

from .errors import QuambaError

BASE_ORDERS = (1, 12, 20, 28)  # tried in this order; 28 * 2**k covers sizes whose odd part is 7
SUPPORTED_FORM = "m * 2**k with m in {" + ", ".join(str(order) for order in BASE_ORDERS) + "}"


def hadamard_base(n: int) -> tuple[int, Tensor]:
    """The two factors of the Hadamard matrix of order n = m * 2**k.

    Returns (k, base): base is float32 [m, m] of +-1, with m in {1, 12, 20, 28}; m = 1 where n is a power of two.
    Raises QuambaError naming n where it is not of that form.
    """
    for order in BASE_ORDERS:
        copies = n // order
        if n > 0 and n % order == 0 and copies & (copies - 1) == 0:
            return copies.bit_length() - 1, _paley(order)
    raise QuambaError(f"no Hadamard rotation of size {n}: supported sizes are {SUPPORTED_FORM}")


def hadamard_matrix(n: int) -> Tensor:
    """The Hadamard matrix of order n, kron(Sylvester(2**k), base): float32 [n, n] of +-1, so H @ H.T = n * identity.

    Unnormalised: `apply_hadamard` is where 1 / sqrt(n) is applied. Raises QuambaError for sizes that have no form here.
    """
    k, matrix = hadamard_base(n)
    sylvester = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32)
    for _ in range(k):
        matrix = torch.kron(sylvester, matrix)
    return matrix


@lru_cache(maxsize=64)
def base_on(n: int, device: torch.device) -> Tensor:
    """The base [m, m] of order n on a device, made once: what the `hadamard` ops take."""
    with torch.inference_mode(False):  # whoever asks first: others may use it with gradients on
        return hadamard_base(n)[1].to(device)


def _paley(order: int) -> Tensor:
    """A Hadamard matrix of an order q + 1 (construction I, q = 3 mod 4) or 2 (q + 1) (II, q = 1 mod 4), q prime.

    Returns float32 [order, order] of +-1; order 1 is the 1 x 1 matrix [1].
    Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933), 311-320.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float32)
    if (order - 1) % 4 == 3 and _is_prime(order - 1):
        return _conference_matrix(order - 1) + torch.eye(order, dtype=torch.float32)
    q = order // 2 - 1
    if order % 2 or q % 4 != 1 or not _is_prime(q):
        raise ValueError(f"no Paley matrix over a prime field has order {order}")
    # the conference matrix has zeros on its diagonal only: each entry becomes a 2 x 2 block of +-1
    off_diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float32)
    return torch.kron(_conference_matrix(q), off_diagonal) + torch.kron(torch.eye(q + 1, dtype=torch.float32), diagonal)


def _conference_matrix(q: int) -> Tensor:
    """C [q + 1, q + 1] with a zero diagonal, +-1 elsewhere and C C^T = q I; symmetric for q = 1 mod 4, else skew."""
    squares = {(i * i) % q for i in range(1, q)}
    # Legendre symbol (i / q)
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float32)
    index = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float32)
    matrix[1:, 1:] = character[(index[:, None] - index[None, :]) % q]
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = character[-1]  # the character of -1: +1 for q = 1 mod 4, -1 for q = 3 mod 4
    return matrix


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, int(q**0.5) + 1))
