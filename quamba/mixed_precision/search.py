"""Which scheme each layer takes, so that the blocks fit a budget and the predicted loss is small (mixed precision).

The predicted loss of an assignment is the sum of its layers' losses, each measured with that layer alone quantized
(`layer_sensitivity`); its size is the sum of its layers' bytes. To choose is a knapsack problem of several choices a
layer, solved greedily in three steps:

1. Every layer starts at the scheme of the least loss.
2. Until the budget holds, the one move of one layer to a smaller scheme is made that adds the least loss for every byte
   it saves. The assignments on this path are the `frontier`. Each is optimal for just its size: the moves go along the
   lower convex hulls of the layers' losses over sizes in order of their slopes, which solves the problem's linear
   relaxation (Sinha & Zoltners 1979, The Multiple-Choice Knapsack Problem). So what step 2 ends with has at most its
   last move's added loss more than the optimum for the budget.
3. What the last move left of the budget is used: as long as the predicted loss falls and the budget holds, one layer
   changes its scheme, or two do (one up, another down), whichever lowers the loss most.

Step 3 is also run from the best uniform assignment that fits, and the better of the two is taken. Ties are broken by
sizes, then by the order of layers and schemes: the same figures give the same assignment everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import QuambaError
from .budget import Budget

Losses = Mapping[str, Sequence[float]]  # scheme -> loss of each layer, nats
Sizes = Mapping[str, Sequence[int]]  # scheme -> bytes of each layer


@dataclass(frozen=True)
class Assignment:
    """The scheme of every layer, its predicted loss in nats and its size in bytes."""

    schemes: tuple[str, ...]
    loss: float
    size: int

    def mean_bits(self, weight_count: int) -> float:
        """Bits a weight of blocks with that many weights."""
        return 8 * self.size / weight_count


def choose_schemes(losses: Losses, sizes: Sizes, budget: Budget, weight_count: int) -> Assignment:
    """An assignment of small predicted loss that fits the budget; never worse than a uniform one that fits.

    `losses`: KL divergence in nats of each layer at each scheme, the other layers float; `sizes`, `weight_count`:
    bytes of the same layers and the weights that mean bits are counted by, as `sizes.layer_sizes` gives them.
    Raises QuambaError where even the smallest assignment misses the budget, and for losses that are no numbers.
    """
    table = _Table(losses, sizes)
    check_budget(sizes, budget, weight_count)
    limit = budget.limit(weight_count)
    greedy = next(choice for choice in table.path() if table.size(choice) <= limit)
    starts = [greedy, *([best] if (best := table.best_uniform(limit)) else [])]
    found = [table.assignment(_use_the_rest(table, choice, limit)) for choice in starts]
    return min(found, key=lambda assignment: (assignment.loss, assignment.size))  # the first of equal ones


def frontier(losses: Losses, sizes: Sizes) -> list[Assignment]:
    """The assignments along the greedy path, from that of the least loss to the smallest, each smaller than the last.

    Each has the least predicted loss of all assignments of its size or less. Raises QuambaError as `choose_schemes`.
    """
    table = _Table(losses, sizes)
    return [table.assignment(choice) for choice in table.path()]


def uniform_assignments(losses: Losses, sizes: Sizes) -> list[Assignment]:
    """Return the assignments with one scheme for all layers, in the order of the schemes. Raises QuambaError as
    `choose_schemes`."""
    table = _Table(losses, sizes)
    return [table.assignment([scheme] * table.layers) for scheme in range(len(table.names))]


def check_budget(sizes: Sizes, budget: Budget, weight_count: int) -> None:
    """Raises QuambaError where even the smallest assignment misses the budget, naming the smallest that works."""
    smallest = sum(min(layer) for layer in zip(*sizes.values(), strict=True))
    if smallest > budget.limit(weight_count):
        raise QuambaError(
            f"the budget {budget.text} is too small: with every layer at the smallest of {', '.join(sizes)} the "
            f"weights take {budget.covering(smallest, weight_count)}; give at least that, or allow smaller schemes"
        )


def search_figures(
    chosen: Assignment, losses: Losses, sizes: Sizes, budget: Budget, weight_count: int
) -> dict[str, object]:
    """Return what a search measured and found, as plain data to be kept with its schemes."""
    return {
        "budget": budget.text,
        "mean_bits": chosen.mean_bits(weight_count),
        "bytes": chosen.size,
        "weights": weight_count,
        "predicted_loss": chosen.loss,
        "losses": {name: list(layers) for name, layers in losses.items()},
        "sizes": {name: list(layers) for name, layers in sizes.items()},
    }


Choice = list[int]  # of every layer, the index of its scheme


class _Table:
    """Losses and sizes by layer, then by scheme."""

    def __init__(self, losses: Losses, sizes: Sizes):
        lengths = {len(layers) for layers in (*losses.values(), *sizes.values())}
        if not losses or set(losses) != set(sizes) or len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"losses and sizes are of {list(losses)} and {list(sizes)}, of {sorted(lengths)} layers")
        self.names, (self.layers,) = tuple(losses), lengths
        for name, layers in losses.items():
            for layer, loss in enumerate(layers):
                if not math.isfinite(loss):
                    raise QuambaError(f"the loss of layer {layer} at {name} is {loss}: leave {name} out of the search")
        self.losses = [[losses[name][layer] for name in self.names] for layer in range(self.layers)]
        self.sizes = [[sizes[name][layer] for name in self.names] for layer in range(self.layers)]

    def loss(self, choice: Choice) -> float:
        """Rounded once, so that it does not depend on the order of layers."""
        return math.fsum(losses[scheme] for losses, scheme in zip(self.losses, choice, strict=True))

    def size(self, choice: Choice) -> int:
        return sum(sizes[scheme] for sizes, scheme in zip(self.sizes, choice, strict=True))

    def assignment(self, choice: Choice) -> Assignment:
        return Assignment(tuple(self.names[scheme] for scheme in choice), self.loss(choice), self.size(choice))

    def changes(self, choice: Choice) -> list[tuple[float, int, int, int]]:
        """(added loss, added bytes, layer, scheme) of every other scheme of every layer."""
        return [
            (losses[scheme] - losses[now], sizes[scheme] - sizes[now], layer, scheme)
            for layer, (losses, sizes, now) in enumerate(zip(self.losses, self.sizes, choice, strict=True))
            for scheme in range(len(self.names))
            if scheme != now
        ]

    def path(self) -> list[Choice]:
        """Steps 1 and 2 of the module, down to the smallest assignment."""
        order = range(len(self.names))
        choice = [
            min(order, key=lambda scheme: (losses[scheme], sizes[scheme]))
            for losses, sizes in zip(self.losses, self.sizes, strict=True)
        ]
        path = [choice]
        while moves := [(loss / -size, -size, *place) for loss, size, *place in self.changes(choice) if size < 0]:
            _, _, layer, scheme = min(moves)  # of equal slopes the one that saves least: the finest path
            choice = [*choice[:layer], scheme, *choice[layer + 1 :]]
            path.append(choice)
        return path

    def best_uniform(self, limit: int) -> Choice | None:
        """Return the assignment of one scheme which fits with the least loss, None where none fits."""
        uniform = [[scheme] * self.layers for scheme in range(len(self.names))]
        fitting = [choice for choice in uniform if self.size(choice) <= limit]
        return min(fitting, key=lambda choice: (self.loss(choice), self.size(choice)), default=None)


def _use_the_rest(table: _Table, choice: Choice, limit: int) -> Choice:
    """Step 3 of the module, from a choice within the limit."""
    loss = table.loss(choice)
    while True:
        room = limit - table.size(choice)
        changes = table.changes(choice)
        better = [change for change in changes if change[0] < 0]
        # (added loss, added bytes, changes): one alone, or a better one that another makes room for
        found = [(change[0], change[1], (change[2:],)) for change in better if change[1] <= room]
        found += [
            (up[0] + down[0], up[1] + down[1], (up[2:], down[2:]))
            for up in better
            for down in changes
            if up[2] != down[2] and up[1] + down[1] <= room and up[0] + down[0] < 0
        ]
        if not found:
            return choice
        following = list(choice)
        for layer, scheme in min(found)[2]:
            following[layer] = scheme
        if not table.loss(following) < loss:  # a gain below the rounding of the sum
            return choice
        choice, loss = following, table.loss(following)
