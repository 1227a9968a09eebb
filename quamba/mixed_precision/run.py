"""The search for the scheme of every layer as one run: calibrate, quantize each layer alone, choose (mixed precision).

Dims: C windows, L tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.anatomy import Anatomy
from ..architectures.convert import check_transformable, install_float_mixers, quantized_mixer
from ..calibration.channel_groups import ChannelGroups
from ..calibration.run import calibrate
from ..errors import QuambaError
from ..models.model_checks import check_float_model, check_float_tensors
from ..models.original import in_eval_mode, own_configs, plain_computation
from ..nn.norm import PassThroughNorm
from ..pipeline.transform import transform
from ..scheme.formats import fitting_scheme
from ..scheme.recipe import QuantizationRecipe
from .budget import Budget
from .search import Assignment, check_budget, choose_schemes, search_figures
from .sensitivity import layer_sensitivities
from .sizes import layer_sizes

SEARCH_WINDOWS = 16  # of calibration text, on which the predictions of every layer and scheme are compared


@dataclass(frozen=True)
class MixedPrecisionSearch:
    """Hold what a search may use, and how the model will be quantized beside it.

    `schemes`: the names that layers choose from; `group_size`, `dynamic`, `rotate_residual`, `group_heads`: as of
    `quamba.quantize`, for the schemes that have a use for them. Raises QuambaError for less than two schemes.
    """

    budget: Budget
    schemes: tuple[str, ...] = ("w4a8", "w8a8")
    group_size: int | None = None
    dynamic: bool = False
    rotate_residual: bool = False
    group_heads: ChannelGroups | None = None

    def __post_init__(self):
        if len(set(self.schemes)) < 2:
            raise QuambaError(f"a search needs two schemes to choose from, got {', '.join(self.schemes) or 'none'}")
        self.recipes()

    def recipes(self) -> dict[str, QuantizationRecipe]:
        """Return, by name, the recipe of a model whose layers all have that scheme. Raises QuambaError for unknown
        ones."""
        return {name: QuantizationRecipe(fitting_scheme(name, self.group_size, self.dynamic)) for name in self.schemes}

    def check(self, model: PreTrainedModel) -> tuple[dict[str, list[int]], int]:
        """(scheme -> bytes of each layer, weights of all layers) of a float model.

        Raises QuambaError for a model without blocks to search, and for a budget that not even the smallest fits.
        """
        if not Anatomy.of(model).has_blocks_alone:
            raise QuambaError(
                f"a search measures the blocks of Mamba models, not of {model.config.model_type!r}: name the schemes "
                "of its layers in a file"
            )
        check_transformable(model)
        if self.group_heads:
            self.group_heads.check(model)
        schemes = {name: recipe.scheme for name, recipe in self.recipes().items()}
        sizes, weight_count = layer_sizes(model.backbone.layers, schemes)
        check_budget(sizes, self.budget, weight_count)
        return sizes, weight_count


@dataclass(frozen=True)
class FoundSchemes:
    """Hold what a search found, and what it measured: KL in nats and bytes, by scheme and layer."""

    assignment: Assignment
    losses: Mapping[str, Sequence[float]]
    sizes: Mapping[str, Sequence[int]]
    weight_count: int
    budget: Budget

    def figures(self) -> dict:
        """Plain data for the file of the schemes."""
        return search_figures(self.assignment, self.losses, self.sizes, self.budget, self.weight_count)


def search_schemes(
    model: PreTrainedModel,
    windows: Tensor,
    search: MixedPrecisionSearch,
    observers: Mapping[str, str],
    *,
    options: Mapping[str, Mapping] | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> FoundSchemes:
    """The scheme of every layer of a float Mamba, by the least predicted loss within the budget.

    The loss of a scheme at a layer is the KL divergence of the predictions from the float model's while that layer
    alone has it, weights rounded to nearest, scales from a calibration on `windows` int64 [C, L]; the first of them
    are predicted. `observers`, `options`: as of `calibrate`. The model is used up: its weights are transformed.
    Raises QuambaError for a model without blocks to quantize, for tensors that `quamba.quantize` refuses, and for a
    budget that nothing fits, before the slow part.
    """
    check_float_model(model)
    sizes, weight_count = search.check(model)
    check_float_tensors(model)
    with plain_computation(model), in_eval_mode(model), own_configs(model):
        losses = _measure(model, windows, search, observers, dict(options or {}), batch_size, progress)
    chosen = choose_schemes(losses, sizes, search.budget, weight_count)
    return FoundSchemes(chosen, losses, sizes, weight_count, search.budget)


def _measure(
    model: PreTrainedModel,
    windows: Tensor,
    search: MixedPrecisionSearch,
    observers: Mapping[str, str],
    options: dict,
    batch_size: int,
    progress: bool,
) -> dict[str, list[float]]:
    """scheme -> the loss of each layer; transforms the model."""
    recipes = search.recipes()
    install_float_mixers(model)
    model.float()
    orders = search.group_heads and search.group_heads.orders(model, windows, batch_size, progress)
    transform(model, search.rotate_residual, orders)
    scales = {}
    if any(recipe.quantizes_activations for recipe in recipes.values()):
        result = calibrate(
            model,
            windows,
            dict(observers),
            fingerprint="",
            options=options,
            batch_size=batch_size,
            orders=orders,
            progress=progress,
        )
        scales = result.scales()
    quantize_layer = _layer_swapper(model, recipes, scales)
    return layer_sensitivities(
        model, windows[:SEARCH_WINDOWS], quantize_layer, recipes, batch_size=batch_size, progress=progress
    )


def _layer_swapper(model: PreTrainedModel, recipes: Mapping[str, QuantizationRecipe], scales: Mapping[str, Tensor]):
    """A context manager that puts the quantized block of one layer in place of the float one; made once, kept."""
    made: dict[tuple[int, str], nn.Module] = {}
    anatomy = Anatomy.of(model)  # with a slot in each layer

    @contextmanager
    def quantize_layer(layer_idx: int, scheme: str) -> Iterator[None]:
        slot = anatomy.slots[layer_idx]
        if (layer_idx, scheme) not in made:
            made[layer_idx, scheme] = quantized_mixer(anatomy, slot, recipes[scheme], scales)
        mixer, norm = slot.mixer, slot.norm
        slot.mixer, slot.norm = made[layer_idx, scheme], PassThroughNorm()
        try:
            yield
        finally:
            slot.mixer, slot.norm = mixer, norm

    return quantize_layer
