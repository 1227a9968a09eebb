from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    GPT2Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MambaConfig,
)

import quamba
from quamba.calibration.run import CalibrationText, default_text, read_windows
from quamba.errors import QuambaError
from quamba.evaluation import perplexity, stepwise_perplexity
from quamba.evaluation.sliding import sliding_perplexity, sliding_windows
from quamba.generation.generate import generate_text
from quamba.models.positions import check_positions, max_positions
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(1, 50, (2, 17), generator=torch.Generator().manual_seed(0))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
TOO_LONG = "is 17, and this model .* has positions for 16 tokens .*: give at most 16"


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=24), 24),
        (LlamaConfig(max_position_embeddings=24, rope_parameters={**YARN, "rope_theta": 1e4}), 96),
        (LlamaConfig(max_position_embeddings=24, rope_parameters={**DYNAMIC, "rope_theta": 1e4}), 48),
        (GPT2Config(n_positions=32), 32),
        (Gemma3Config(text_config={"max_position_embeddings": 40}), 40),  # of the text part, not of the images'
        (GraniteMoeHybridConfig(position_embedding_type="rope", max_position_embeddings=48), 48),
        (GraniteMoeHybridConfig(max_position_embeddings=48), None),  # its attention knows no positions
        (FalconConfig(alibi=True), None),
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_are_what_the_config_of_the_text_says(config, positions):
    assert max_positions(config) == positions


def test_as_many_tokens_as_there_are_positions_fit():
    check_positions(LlamaConfig(max_position_embeddings=24), 24, "--ppl_seqlen")
    with pytest.raises(QuambaError, match=r"--ppl_seqlen is 25, and this model \(llama\) .* give at most 24"):
        check_positions(LlamaConfig(max_position_embeddings=24), 25, "--ppl_seqlen")


@pytest.mark.parametrize("build", [tiny_llama, tiny_bamba])
def test_no_perplexity_of_windows_beyond_the_positions(build):
    model = build(max_position_embeddings=16)
    assert perplexity(model, WINDOWS[:, :16], progress=False).ppl > 1
    for measure in (perplexity, sliding_perplexity):
        windows = sliding_windows(WINDOWS[0], 17, 17) if measure is sliding_perplexity else WINDOWS
        with pytest.raises(QuambaError, match=TOO_LONG):
            measure(model, windows, progress=False)


def test_no_token_is_decoded_beyond_the_positions(tiny_tokenizer):
    model = tiny_bamba(max_position_embeddings=16)
    with pytest.raises(QuambaError, match=TOO_LONG):
        stepwise_perplexity(model, WINDOWS, progress=False)
    with pytest.raises(QuambaError, match=r"max_new_tokens\), less one, is 17"):
        next(generate_text(model, tiny_tokenizer, "w1 w2", max_new_tokens=16))
    *_, last = generate_text(model, tiny_tokenizer, "w1 w2", max_new_tokens=15)  # which is not read again
    assert isinstance(last, str)


def test_evaluation_takes_the_positions_where_no_length_is_given_and_refuses_more(tiny_tokenizer, tmp_path):
    model, text = tiny_llama(max_position_embeddings=16), tmp_path / "text.txt"
    text.write_text(" ".join(f"w{1 + i % 49}" for i in range(47)))
    measured = quamba.evaluate(model, tiny_tokenizer, [text], progress=False).windows[str(text)]
    assert measured.window_tokens.tolist() == [15, 15, 15]
    with pytest.raises(QuambaError, match=rf"--ppl_seqlen\) {TOO_LONG}"):
        quamba.evaluate(model, tiny_tokenizer, ["no such text"], ppl_seqlen=17, progress=False)


def test_calibration_beyond_the_positions_is_refused_before_any_text_is_read(tiny_tokenizer):
    model = tiny_llama(max_position_embeddings=16)
    for calibration in (WINDOWS, CalibrationText("no such text", 2, 17)):
        with pytest.raises(QuambaError, match=rf"--calib_seqlen\) {TOO_LONG}"):
            read_windows(calibration, model, tiny_tokenizer)
        with pytest.raises(QuambaError, match=rf"--calib_seqlen\) {TOO_LONG}"):
            quamba.quantize(model, tiny_tokenizer, "w4a16", weight_text=calibration)
    assert default_text(model).seqlen == 16
    assert default_text(SimpleNamespace(config=MambaConfig(name_or_path="x"))).seqlen == 512
