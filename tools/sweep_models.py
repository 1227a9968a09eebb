"""Every class of causal LM of transformers, tiny and random, through the weight path: what works, and why not.

    python -m tools.sweep_models              all of them, a few minutes
    python -m tools.sweep_models gpt2 bloom   only these

A row is a model_type: whether its layers run as in its own forward pass (`carried` one after the other, or `whole`:
each time from the first, see `LayerStack`), then for W8A16 to nearest and W4A16 by GPTQ how far the logits are from the
float model's (relative); the model must be the same once it is saved and loaded. Where something is refused the reason
stands instead; `RAW` is a fault: an exception that is no QuambaError, or logits that are off.
"""

import argparse
import collections
import signal
import tempfile
import warnings
from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import quamba
from quamba.errors import QuambaError
from quamba.models.layer_stack import LayerStack, hidden_of, post_hooks, run_to_head
from quamba.weights.method import WeightMethod
from tests.tiny_causal_lms import VOCAB, model_types, tiny_causal_lm

WINDOWS = torch.randint(3, VOCAB, (3, 16), generator=torch.Generator().manual_seed(0))
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 3}, "a")))
SECONDS = 60  # for a class
SAME = 1e-4  # relative, of what the layers of one model give in two ways
FAR = {"w8a16": 0.2, "w4a16": 1.0}  # relative, of logits: a scrambled model has 1.4


class Fault(Exception):
    """What is wrong without an exception."""


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@torch.no_grad()
def layer_by_layer(model: PreTrainedModel) -> str:
    """How the layers run, in batches of one, two and three windows. Raises Fault where they give something else."""
    stack, worst = LayerStack(model, WINDOWS[-1]), 0.0
    for count in range(1, len(WINDOWS) + 1):
        windows, given, state = WINDOWS[:count], [], None
        with post_hooks(stack.layers, lambda _m, _args, out, given=given: given.append(hidden_of(out).clone())):
            head = run_to_head(model, windows)
        for index in range(len(stack.layers) if stack.carries else 0):
            state = stack.run(windows, range(index, index + 1), state)
            worst = max(worst, relative(state, given[index]))
        worst = max(worst, relative(stack.head_input(windows, state), head))
    if worst > SAME:
        raise Fault(f"layers are off by {worst:.1e}")
    return "carried" if stack.carries else "whole"


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """[B, L, V] of all windows."""
    return model(WINDOWS, use_cache=False).logits


def quantized(model_type: str, scheme: str, method: str) -> str:
    """How far the logits of a quantized model are from the float one's. Raises Fault where a reload gives others."""
    model = tiny_causal_lm(model_type)
    expected = logits(model)
    text = {"weight_text": WINDOWS} if method != "rtn" else {}
    group_size = None if scheme.startswith("w8") else 32
    weights = WeightMethod(method, layer_batch_size=2)
    quamba.quantize(model, None, scheme, weights=weights, group_size=group_size, progress=False, **text)
    found = logits(model)
    far = relative(found, expected)
    if not far < FAR[scheme]:
        raise Fault(f"logits are off by {far:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        quamba.save(model, TOKENIZER, f"{folder}/saved")
        again = type(model).from_pretrained(f"{folder}/saved").eval()
    if not torch.equal(logits(again), found):
        raise Fault(f"reloaded, logits are off by {relative(logits(again), found):.2g}")
    return f"{far:.3f}"


def outcome(run: Callable[[], str]) -> str:
    """What `run` gives, or why not, on one line."""
    try:
        return run()
    except QuambaError as error:
        return f"refused: {' '.join(str(error).split())}"
    except Exception as error:  # this is what the sweep looks for
        return f"RAW {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def row(model_type: str) -> list[str]:
    """What became of one class; a single entry where its tiny config is none."""
    done = "not built"  # the sizes of tests/tiny_causal_lms.py do not fit, or a library is missing
    try:
        model = tiny_causal_lm(model_type)
        done = "does not run"
        logits(model)
    except Exception as error:
        return [f"{done}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"]
    return [
        outcome(lambda: layer_by_layer(tiny_causal_lm(model_type))),
        outcome(lambda: quantized(model_type, "w8a16", "rtn")),
        outcome(lambda: quantized(model_type, "w4a16", "gptq")),
    ]


def kind(entry: str) -> str:
    """An outcome without its figures."""
    for whole in ("not built", "does not run"):
        if entry.startswith(whole):
            return whole
    first = entry.split()[0].rstrip(":")
    return "ok" if first[0].isdigit() else first


def main() -> None:
    """Prints a row for each class, then how many ended in which way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_type", nargs="*", help="only these (default: all)")
    chosen = parser.parse_args().model_type or model_types()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"longer than {SECONDS} s")))
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for model_type in chosen:
        signal.alarm(SECONDS)
        entries = row(model_type)
        signal.alarm(0)
        for column, entry in zip(("layers", "w8a16 rtn", "w4a16 gptq"), entries, strict=False):
            counts[column][kind(entry)] += 1
        print(f"{model_type:26} {' | '.join(entries)}", flush=True)
    for column, found in counts.items():
        print(f"{column}: {', '.join(f'{count} {what}' for what, count in found.most_common())}")


if __name__ == "__main__":
    main()
