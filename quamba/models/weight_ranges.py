"""Whether the weights of a float model are of a magnitude that their formats can hold, before they are rounded."""

from collections.abc import Iterator

from torch import Tensor, nn

from .. import numerics
from ..errors import QuambaError
from ..scheme.formats import TensorSpec
from ..scheme.recipe import QuantizationRecipe
from .layer_stack import decoder_layers
from .tensor_checks import extremes


def check_weight_ranges(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Raises QuambaError naming a matrix whose values the format that the recipe gives it would make infinite or zero.

    model: float, on this package's mixers or not; the tables of embedding and head are looked at where they are
    quantized.
    """
    for name, weight, spec in _matrices(model, recipe):
        fault = numerics.range_fault(*extremes(weight.detach()), spec.bits, grouped=spec.group_size is not None)
        if fault:
            raise QuambaError(f"{name} has {fault}")


def _matrices(model: nn.Module, recipe: QuantizationRecipe) -> Iterator[tuple[str, Tensor, TensorSpec]]:
    for index, layer in enumerate(decoder_layers(model)):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                yield f"layers.{index}.{name}.weight", module.weight, recipe.layer_scheme(index).weight
    tables = {
        "the embedding": (model.get_input_embeddings(), recipe.embedding_bits),
        "the head": (model.get_output_embeddings(), recipe.lm_head_bits),
    }
    for name, (module, bits) in tables.items():
        if bits is not None:
            yield name, module.weight, recipe.table(bits)
