"""quamba quantizes state-space language models and runs what it quantized.

    model, tokenizer = quamba.load("mamba-tiny")
    quamba.quantize(model, tokenizer, scheme="w8a8", observer="mse")
    quamba.evaluate(model, tokenizer, ppl_datasets=["stdlib"])
    quamba.save(model, tokenizer, "pretrained_models/mamba-tiny-w8a8")

Importing it also registers the checkpoint format, so that transformers' `from_pretrained` reads what `save` wrote.
Imported before torch, it has OpenMP's threads wait briefly before they sleep: see `waiting`.
"""

from . import waiting  # noqa: F401  (first: torch loads OpenMP)
from .calibration.run import CalibrationResult, CalibrationText
from .checkpoint import load
from .checkpoint import save_quantized as save
from .errors import QuambaError
from .evaluation import evaluate
from .observers.per_tensor import Observer, register_observer
from .pipeline.quantize import quantize
from .plugins import load_plugin
from .weights.gptq import GptqOptions
from .weights.method import WeightMethod
from .weights.rounding import FlipOptions, register_rounding

__version__ = "0.1.0"

__all__ = [
    "CalibrationResult",
    "CalibrationText",
    "FlipOptions",
    "GptqOptions",
    "Observer",
    "QuambaError",
    "WeightMethod",
    "evaluate",
    "load",
    "load_plugin",
    "quantize",
    "register_observer",
    "register_rounding",
    "save",
]
