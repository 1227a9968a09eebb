"""Classes of causal LM that the weight path knows nothing of, each of another build, from end to end."""

import pytest
import torch

import quamba
from quamba.errors import QuambaError
from quamba.pipeline.resume import ResumeFolder
from quamba.weights.method import WeightMethod
from tests.tiny_causal_lms import POSITIONS, VOCAB, tiny_causal_lm

WINDOWS = torch.randint(3, VOCAB, (3, 16), generator=torch.Generator().manual_seed(0))
METHOD = WeightMethod("awq+gptq", layer_batch_size=2)
# keys and values shared, ALiBi of the batch, arguments by position, learned positions, a decoder within a model, a
# text decoder beside one of images, a hybrid
FAMILIES = ["gemma3n_text", "bloom", "gpt_bigcode", "xglm", "gpt_neo", "opt", "gemma3", "modernbert-decoder", "bamba"]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(WINDOWS, use_cache=False).logits


def quantized(model, **options):
    weights = options.pop("weights", METHOD)
    return quamba.quantize(model, None, "w4a16", weights=weights, group_size=32, progress=False, **options)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_quantized_near_its_float_model_saved_and_loaded(model_type, tmp_path, tiny_tokenizer):
    model = tiny_causal_lm(model_type)
    expected = logits(model)
    quantized(model, weight_text=WINDOWS)
    found = logits(model)
    assert 0 < (found - expected).norm() < 0.6 * expected.norm()
    quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    assert torch.equal(logits(quamba.load(str(tmp_path / "saved"))[0]), found)


@pytest.mark.parametrize("model_type", ["gemma3n_text", "bloom", "llama"])
@pytest.mark.parametrize("sequential", [True, False])
def test_an_interrupted_run_goes_on_to_the_same_bits(model_type, sequential, tmp_path, monkeypatch):
    """Where hidden states are carried, and where none are and the file that keeps them is empty."""
    method = WeightMethod("gptq", layer_batch_size=1, sequential=sequential)
    expected = logits(quantized(tiny_causal_lm(model_type), weight_text=WINDOWS, weights=method))
    keep = ResumeFolder.keep

    def fail_after_two(self, layers, *args):
        keep(self, layers, *args)
        if len(layers) == 2:
            raise KeyboardInterrupt

    run = {"weight_text": WINDOWS, "weights": method, "progress_dir": tmp_path / "partial"}
    with monkeypatch.context() as patch:
        patch.setattr(ResumeFolder, "keep", fail_after_two)
        with pytest.raises(KeyboardInterrupt):
            quantized(tiny_causal_lm(model_type), **run)
    assert torch.equal(logits(quantized(tiny_causal_lm(model_type), **run, resume=True)), expected)


@pytest.mark.parametrize("model_type", ["gpt_neo", "gpt_bigcode", "opt", "gemma3", "llama"])
def test_windows_longer_than_the_positions_are_refused_before_the_work(model_type):
    windows = torch.zeros(2, POSITIONS + 1, dtype=torch.int64)
    model = tiny_causal_lm(model_type)
    kinds = {type(module) for module in model.modules()}
    with pytest.raises(QuambaError, match=rf"{POSITIONS}"):
        quantized(model, weight_text=windows)
    assert {type(module) for module in model.modules()} == kinds


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gpt2", r"layers\.0\.attn\.c_attn, a Conv1D, has weights that are not a linear layer's"),
        ("mixtral", r"layers\.0\.mlp\.\w+, a Mixtral\w+, has weights that are not a linear layer's"),
        ("bart", r"layers\.0\.encoder_attn\.k_proj was not reached by the first window"),
        ("git", "its backbone has 2 lists of 3 layers"),
    ],
)
def test_what_is_not_supported_is_one_error(model_type, message):
    with pytest.raises(QuambaError, match=message):
        quantized(tiny_causal_lm(model_type), weight_text=WINDOWS)
