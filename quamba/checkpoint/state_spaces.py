"""The original state-spaces format: config.json with d_model, n_layer and ssm_cfg, and the weights beside it.

They are in pytorch_model.bin, or, of fine-tuned and converted models, in model.safetensors; both may be shards.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Mamba2Config, MambaConfig, PreTrainedConfig

from ..borders import foreign
from ..errors import QuambaError
from .resolve import Checkpoint
from .sizes import check_counts
from .weight_files import load_tensors, stored_tensors, weight_files

EMBEDDING, HEAD = "backbone.embeddings.weight", "lm_head.weight"


@dataclass(frozen=True)
class Layer:
    """Say how one kind of layer reads its `ssm_cfg`, as mamba_ssm's constructors do."""

    config_class: type[PreTrainedConfig]
    vocab_multiple: int  # the default of pad_vocab_size_multiple
    fields: dict  # option -> (its name in transformers, mamba_ssm's default)
    fixed: dict  # option -> the only value that transformers' class computes


_COMMON = {"d_conv": ("conv_kernel", 4), "expand": ("expand", 2)}
_BIASES = {"conv_bias": ("use_conv_bias", True), "bias": ("use_bias", False)}
LAYERS = {
    "Mamba1": Layer(
        MambaConfig,
        vocab_multiple=8,
        fields={"d_state": ("state_size", 16), "dt_rank": ("time_step_rank", "auto"), **_COMMON, **_BIASES},
        fixed={},
    ),
    "Mamba2": Layer(
        Mamba2Config,
        vocab_multiple=16,
        fields={
            "d_state": ("state_size", 128),
            "headdim": ("head_dim", 64),
            "ngroups": ("n_groups", 1),
            "chunk_size": ("chunk_size", 256),
            "dt_limit": ("time_step_limit", (0.0, float("inf"))),
            **_COMMON,
            **_BIASES,
        },
        fixed={"D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "d_ssm": None},
    ),
}
# these choose initial values or a kernel, never what the trained layer computes
IGNORED_OPTIONS = {"layer", "dt_init", "dt_scale", "dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init"} | {
    "use_fast_path",
    "use_mem_eff_path",
}


def read_state_spaces(checkpoint: Checkpoint) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """The transformers config and the tensors, under transformers' names, of an original checkpoint.

    Returns (MambaConfig or Mamba2Config, tensors in their stored dtype), the vocabulary padded up to its multiple; a
    tied head is left to the embedding. Raises QuambaError for options that no transformers class computes, a missing
    or damaged file, and an embedding that does not fit the vocabulary. Missing and extra tensors are for the loader to
    find.
    """
    files, config_file = weight_files(checkpoint.path), checkpoint.path / "config.json"
    check_counts(checkpoint.config, config_file, stored_tensors(files))
    config = convert_config(checkpoint.config, config_file)
    file = files[0] if len(files) == 1 else checkpoint.path  # for messages
    stored = {name: tensor for each in files for name, tensor in load_tensors(each).items()}
    tensors = {name.replace("backbone.embedding.", "backbone.embeddings."): tensor for name, tensor in stored.items()}
    if config.tie_word_embeddings and HEAD in tensors:
        head = tensors.pop(HEAD)
        if EMBEDDING in tensors and not torch.equal(head, tensors[EMBEDDING]):
            raise QuambaError(
                f"{file}: lm_head.weight differs from the embedding, but config.json ties them: "
                "set tie_embeddings to false there"
            )
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            tensors[name] = _pad_rows(tensors[name], config.vocab_size, name, file)
    return config, tensors


def convert_config(original: dict, file: Path) -> PreTrainedConfig:
    """The transformers config that an original config.json describes.

    original: the JSON object read from `file`, which errors name. Raises QuambaError for attention layers, MLP layers,
    LayerNorm, unknown `ssm_cfg` options and values of the wrong kind.
    """
    _reject_other_blocks(original, file)
    options = original.get("ssm_cfg") or {}
    if not isinstance(options, dict):
        raise QuambaError(f"{file}: ssm_cfg is {options!r}, not an object")
    kind = options.get("layer", "Mamba1")
    if not isinstance(kind, str) or kind not in LAYERS:
        raise QuambaError(f"{file}: ssm_cfg.layer is {kind!r}, this package reads {', '.join(LAYERS)}")
    layer = LAYERS[kind]
    _check_options(options, layer, file)

    fields = {name: options.get(option, default) for option, (name, default) in layer.fields.items()}
    width = _positive(original, "d_model", file)
    if layer.config_class is Mamba2Config:
        fields["num_heads"] = fields["expand"] * width // fields["head_dim"]
        fields["time_step_limit"] = _interval(fields["time_step_limit"], file)
    multiple = _positive({"pad_vocab_size_multiple": layer.vocab_multiple} | original, "pad_vocab_size_multiple", file)
    with foreign(f"{file} describes no valid model"):
        return layer.config_class(
            hidden_size=width,
            num_hidden_layers=_positive(original, "n_layer", file),
            vocab_size=-(-_positive(original, "vocab_size", file) // multiple) * multiple,
            residual_in_fp32=original.get("residual_in_fp32", True),
            tie_word_embeddings=original.get("tie_embeddings", True),
            layer_norm_epsilon=1e-5,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),  # GPT-NeoX's <|endoftext|>
            **fields,
        )


def _reject_other_blocks(original: dict, file: Path) -> None:
    """Raises QuambaError for what mamba_ssm can build besides a stack of Mamba blocks with RMSNorm."""
    if original.get("attn_layer_idx"):
        raise QuambaError(
            f"{file}: attn_layer_idx is {original['attn_layer_idx']}: hybrids with attention are not supported"
        )
    if original.get("d_intermediate"):
        raise QuambaError(f"{file}: d_intermediate is {original['d_intermediate']}: MLP blocks are not supported")
    if not original.get("rms_norm", True):
        raise QuambaError(f"{file}: rms_norm is false: LayerNorm is not supported, only RMSNorm")


def _check_options(options: dict, layer: Layer, file: Path) -> None:
    """Raises QuambaError for an option that is unknown, or that asks for something transformers does not compute."""
    for option, value in options.items():
        if option in layer.fixed:
            if value != layer.fixed[option]:
                raise QuambaError(
                    f"{file}: ssm_cfg.{option} = {value!r} is not supported, only {layer.fixed[option]!r}"
                )
        elif option not in layer.fields and option not in IGNORED_OPTIONS:
            raise QuambaError(f"{file}: ssm_cfg.{option} is an option that this package does not know")
        elif option in layer.fields and type(layer.fields[option][1]) is int:
            _positive(options, option, file)


def _positive(fields: dict, key: str, file: Path) -> int:
    """The positive integer under `key`."""
    value = fields.get(key)
    if type(value) is not int or value < 1:
        raise QuambaError(f"{file}: {key} is {value!r}, not a positive integer")
    return value


def _interval(limits: object, file: Path) -> tuple[float, float]:
    """The bounds that `dt_limit` gives."""
    if not isinstance(limits, list | tuple) or [isinstance(limit, int | float) for limit in limits] != [True, True]:
        raise QuambaError(f"{file}: ssm_cfg.dt_limit is {limits!r}, not two numbers")
    return float(limits[0]), float(limits[1])


def _pad_rows(weight: Tensor, rows: int, name: str, file: Path) -> Tensor:
    """weight [stored rows, d_model] with rows of zeros appended up to `rows`, at most as many as it has."""
    if weight.dim() != 2 or not weight.shape[0] <= rows <= 2 * weight.shape[0]:
        raise QuambaError(
            f"{file}: {name} has shape {list(weight.shape)}, the vocabulary of config.json padded to its multiple "
            f"has {rows} rows"
        )
    return torch.cat([weight, weight.new_zeros(rows - weight.shape[0], weight.shape[1])])
