"""A weight matrix of 8 or 4 bits and its product with a quantized or a float input: bit width is data, not a class.

Dims: I in features, O out features (V vocabulary rows and H hidden in an embedding), G groups of a row.
"""

import torch
from torch import Tensor

from .. import numerics, ops
from ..ops import layout
from ..scheme.formats import TensorSpec
from ..weights.rounded import RoundedWeight
from .module import FIRST_USE, QuantModule

# the op by (whether the weights have groups, whether the input is int8, whether the result is)
PRODUCTS = {
    (False, True, False): "linear_w8a8",
    (False, True, True): "linear_w8a8_requant",
    (False, False, False): "linear_w8a16",
    (True, True, False): "linear_w4a8",
    (True, True, True): "linear_w4a8_requant",
    (True, False, False): "linear_w4a16",
}


class QuantWeight(QuantModule):
    """The matrix in the format of `spec`.

    8 bits: weight int8 [O, I], weight_scale float32 [O]. 4 and 3 bits: weight uint8 [O, ceil(I / 2)], two integers a
    byte, weight_scale float16 and weight_zero uint8 [O, G], G = ceil(I / group_size). So they are made, saved
    and loaded; the first product replaces them by the tiles that kernels read (ops/layout.py), of the same values,
    all at once: several threads may compute the first product, or save the rows meanwhile.
    """

    tiled = False

    def __init__(self, out_features: int, in_features: int, spec: TensorSpec):
        super().__init__()
        self.out_features, self.in_features, self.spec = out_features, in_features, spec
        if spec.group_size is None:
            columns, scales, scale_dtype = in_features, (out_features,), torch.float32
        else:
            groups = -(-in_features // spec.group_size)
            columns, scales, scale_dtype = -(-in_features // 2), (out_features, groups), torch.float16
        integers = torch.int8 if spec.symmetric else torch.uint8
        self.register_buffer("weight", torch.zeros(out_features, columns, dtype=integers))
        self.register_buffer("weight_scale", torch.ones(scales, dtype=scale_dtype))
        self.register_buffer("weight_zero", None if spec.symmetric else torch.zeros(scales, dtype=torch.uint8))

    @property
    def group_size(self) -> int | None:
        """Columns that share a scale, None where a whole row does."""
        return self.spec.group_size

    def round_to_nearest(self, weight: Tensor) -> None:
        """Fills the buffers with the integers nearest to `weight`, float [O, I]."""
        self.tiled = False
        weight, bits, group_size = weight.detach(), self.spec.bits, self.group_size
        if group_size is None:
            self.weight_scale = numerics.per_channel_scale(weight, bits)  # [O]
            self.weight = numerics.quantize(weight, self.weight_scale[:, None], bits=bits)  # [O, I]
            return
        self.weight_scale, self.weight_zero = numerics.group_parameters(weight, group_size, bits)  # [O, G]
        integers = numerics.quantize_groups(weight, self.weight_scale, self.weight_zero, group_size, bits)  # [O, I]
        self.weight = numerics.pack_uint4(integers)  # [O, ceil(I / 2)]

    def take(self, rounded: RoundedWeight) -> None:
        """Fills the buffers with integers that are chosen already, in this weight's format."""
        rows = self.rows()
        self.tiled = False
        integers = rounded.integers  # [O, I]
        self.weight = integers.clone() if self.group_size is None else numerics.pack_uint4(integers)
        self.weight_scale = rounded.scale.reshape(rows["weight_scale"].shape).to(self.weight_scale.dtype)
        if self.weight_zero is not None:
            self.weight_zero = rounded.zero.reshape(rows["weight_zero"].shape).to(torch.uint8)

    def tile(self) -> None:
        """Lays the buffers out as kernels read them, once: a thread that comes meanwhile waits for the tiles."""
        if self.tiled:
            return
        # whoever runs the first product: the buffers are to stay ordinary tensors
        with FIRST_USE, torch.inference_mode(False):
            if self.tiled:
                return
            if self.group_size is None:
                tiles = {"weight": layout.tile_int8(self.weight)}
            else:
                tiles = {"weight": layout.tile_uint4(self.weight)}
                tiles |= {name: layout.tile_groups(getattr(self, name)) for name in ("weight_scale", "weight_zero")}
            for name, tensor in tiles.items():
                setattr(self, name, tensor)
            self.tiled = True  # last: who sees it finds all of them

    def rows(self) -> dict[str, Tensor]:
        """The buffers as files hold them, by name."""
        with FIRST_USE:
            tensors = {name: getattr(self, name) for name in ("weight", "weight_scale", "weight_zero")}
            tiled = self.tiled
        if tiled:
            sizes = (self.out_features, self.in_features)
            if self.group_size is None:
                tensors["weight"] = layout.untile_int8(tensors["weight"], *sizes)
            else:
                tensors["weight"] = layout.untile_uint4(tensors["weight"], *sizes)
                for name in ("weight_scale", "weight_zero"):
                    tensors[name] = layout.untile_groups(tensors[name], self.out_features)
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        with FIRST_USE:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if self.tiled:
                destination.update({prefix + name: tensor for name, tensor in self.rows().items()})
                self._shape_for_file(destination, prefix)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        with FIRST_USE:
            if self.tiled and prefix + "weight" in state_dict:  # what is loaded is rows, and tiled at its first use
                for name, tensor in self.rows().items():
                    setattr(self, name, tensor)
                self.tiled = False
            super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self):
        """Return what a copy or a pickle is made of: rows or tiles, never some of each."""
        with FIRST_USE:
            return {**self.__dict__, "_buffers": dict(self._buffers)}

    def dequantized(self) -> Tensor:
        """The values that the integers stand for, float32 [O, I]."""
        rows = self.rows()
        if self.group_size is None:
            return numerics.dequantize(rows["weight"], rows["weight_scale"][:, None])
        integers = numerics.unpack_uint4(rows["weight"], self.in_features)
        return numerics.dequantize_groups(integers, rows["weight_scale"], rows["weight_zero"], self.group_size)

    def product(
        self,
        x: Tensor,
        x_scale: Tensor | None = None,
        bias: Tensor | None = None,
        out_scale: Tensor | None = None,
        rows: range | None = None,
    ) -> Tensor:
        """x int8 [..., I] with its scale (one, or [...]: one a row), or float32 without -> float32 [..., O].

        Where `out_scale` [O] is given the result is int8, quantized with it. `rows`: only those of the matrix, from a
        multiple of 16 on.
        """
        self.tile()
        weight, scale, zero, out_features = self._rows_of(rows)
        grouped = self.group_size is not None
        op = getattr(ops, PRODUCTS[grouped, x_scale is not None, out_scale is not None])
        return op(
            x,
            weight,
            scale,
            *([zero] if grouped else []),
            *([] if x_scale is None else [x_scale]),
            bias,
            *([out_features, self.group_size] if grouped else []),
            *([] if out_scale is None else [out_scale]),
        )

    def _rows_of(self, rows: range | None) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """(tiles, scales, zeros, their number) of some rows of the matrix, as views; None: all."""
        if rows is None:
            return self.weight, self.weight_scale, self.weight_zero, self.out_features
        tiles = slice(rows.start // layout.OUTPUTS, -(-rows.stop // layout.OUTPUTS))
        if self.group_size is None:
            return self.weight[tiles], self.weight_scale[rows.start : rows.stop], None, len(rows)
        return self.weight[tiles], self.weight_scale[tiles], self.weight_zero[tiles], len(rows)
