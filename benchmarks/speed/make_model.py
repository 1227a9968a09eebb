"""Writes the random float model of a shape, or that model quantized by quamba; runs in a process of its own.

python -m benchmarks.speed.make_model 130m float build/bench/130m/float
python -m benchmarks.speed.make_model 130m w8a8 build/bench/130m/w8a8 --float build/bench/130m/float
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import quamba
from quamba.scheme.formats import get_scheme
from quamba.weights.method import WeightMethod

from .shapes import (
    CONV_WIDTH,
    D_STATE,
    MAMBA2_D_STATE,
    MAMBA2_GROUPS,
    MAMBA2_HEAD_DIM,
    NORM_EPS,
    SHAPES,
    VOCAB,
    Shape,
)

SEED = 0
# transformers' default of 0.1 makes random blocks chaotic: bfloat16 alone then changes the logits beyond recognition
INITIALIZER_RANGE = 0.02
CALIBRATED_BITS = 8  # of activations; those of 16 stay float and have no scales
CALIBRATION_WINDOWS, CALIBRATION_TOKENS = 4, 64  # speed does not depend on the scales, they have to be sane only


def random_model(shape: Shape) -> PreTrainedModel:
    """A Mamba of that shape as transformers initialises it, tied head, float32."""
    torch.manual_seed(SEED)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "conv_kernel": CONV_WIDTH,
        "layer_norm_epsilon": NORM_EPS,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
    }
    if shape.model_type == "mamba2":
        sizes = {"state_size": MAMBA2_D_STATE, "head_dim": MAMBA2_HEAD_DIM, "n_groups": MAMBA2_GROUPS}
        model = Mamba2ForCausalLM(Mamba2Config(num_heads=shape.heads, **sizes, **common))
    else:
        model = MambaForCausalLM(MambaConfig(state_size=D_STATE, time_step_rank=shape.dt_rank, **common))
    return model.eval().requires_grad_(False)


def stand_in_tokenizer() -> PreTrainedTokenizerFast:
    """A checkpoint has a tokenizer, of a token at least that is no special one; nothing here is text."""
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "word": 1}, unk_token="<|endoftext|>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def write_float(shape: Shape, directory: Path) -> None:
    """The random float model and the stand-in tokenizer, in transformers' format."""
    random_model(shape).save_pretrained(directory)
    stand_in_tokenizer().save_pretrained(directory)


def write_quantized(scheme: str, checkpoint: Path, directory: Path) -> None:
    """The float checkpoint, quantized in every matrix, embedding and head included."""
    model, tokenizer = quamba.load(str(checkpoint))
    generator = torch.Generator().manual_seed(SEED)
    windows = torch.randint(0, VOCAB, (CALIBRATION_WINDOWS, CALIBRATION_TOKENS), generator=generator)
    quamba.quantize(
        model,
        tokenizer,
        scheme=scheme,
        weights=WeightMethod("rtn"),  # speed does not depend on which integers there are
        calibration=windows if get_scheme(scheme).act.bits == CALIBRATED_BITS else None,
        quantize_embedding=True,
        quantize_lm_head=True,
        progress=False,
    )
    quamba.save(model, tokenizer, directory)


def main() -> None:
    """Writes the one or the other; a folder that was written in part is no checkpoint and is written anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("scheme", help="float, or a scheme of quamba.quantize")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--float", type=Path, dest="checkpoint", help="the float checkpoint to quantize")
    args = parser.parse_args()
    if args.scheme == "float":
        write_float(SHAPES[args.shape], args.directory)
    else:
        write_quantized(args.scheme, args.checkpoint, args.directory)


if __name__ == "__main__":
    main()
