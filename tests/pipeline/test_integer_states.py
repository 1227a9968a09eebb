"""SSM states that are cached as int8 (Quamba2): what they take, that pieces and steps agree, and what is refused."""

import pytest
import torch
from transformers import DynamicCache

import quamba
from quamba import QuambaError
from quamba.calibration.channel_groups import ChannelGroups
from quamba.calibration.recording import open_activations
from quamba.checkpoint import recipe_of
from quamba.generation.decoder import Decoder
from quamba.weights.method import WeightMethod

RTN = WeightMethod("rtn")
WINDOWS = torch.randint(0, 60, (6, 80), generator=torch.Generator().manual_seed(5))  # longer than a watched piece
GROUPED = {"group_heads": ChannelGroups(2, 3)}


def quantize(model, calibration=WINDOWS, **options):
    return quamba.quantize(
        model, None, calibration=calibration, progress=False, **{"weights": RTN, "state_bits": 8} | options
    )


@torch.inference_mode()
def continued(model, tokens, cuts):
    """(logits [B, L, V], cache) of tokens that come in pieces of these lengths."""
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, cache_params=cache, use_cache=True).logits for piece in tokens.split(cuts, dim=1)]
    return torch.cat(pieces, dim=1), cache


def relative_error(actual, expected) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("options", [{}, GROUPED, {"scheme": "w4a8"}, {"dynamic": True}, GROUPED | {"dynamic": True}])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_pieces_and_steps_stay_near_float_states(tiny_mamba2, tokens, n_groups, options):
    """A piece keeps its states in float32 and rounds the last one, so the more pieces the more roundings."""
    int8 = quantize(tiny_mamba2(n_groups=n_groups), **options)
    floats = quantize(tiny_mamba2(n_groups=n_groups), **options | {"state_bits": 32})
    for cuts in ([13], [6, 7], [1] * 13, [3, 1, 1, 8]):
        logits, cache = continued(int8, tokens, cuts)
        expected, _ = continued(floats, tokens, cuts)
        assert relative_error(logits, expected) < 0.05
        assert cache.layers[0].recurrent_states[0].dtype == torch.int8
        assert relative_error(logits, continued(int8, tokens, [13])[0]) < 0.05


def test_the_states_take_a_quarter(tiny_mamba2, tokens):
    sizes = []
    for bits in (8, 32):
        _, cache = continued(quantize(tiny_mamba2(), state_bits=bits), tokens, [13])
        sizes.append(sum(layer.recurrent_states[0].nbytes for layer in cache.layers))
    assert 4 * sizes[0] == sizes[1] == 2 * 2 * 4 * 16 * 8 * 4  # layers, rows, [S, P, N] float32


def test_the_decoder_steps_as_the_model_does(tiny_mamba2, tokens):
    model = quantize(tiny_mamba2(), **GROUPED)
    decoder, cache = Decoder(model), DynamicCache(config=model.config)
    for position in range(tokens.shape[1]):
        ids = tokens[:, position]
        with torch.inference_mode():
            expected = model(ids[:, None], cache_params=cache, use_cache=True).logits[:, 0]
        actual = decoder.prefill(ids[:, None]) if position == 0 else decoder.step(ids)
        assert relative_error(actual, expected) < 1e-5


def test_a_scale_fits_the_states_that_calibration_saw(tiny_mamba2):
    """One of each channel; the largest state behind 64 tokens or at the end is its largest integer."""
    model = quantize(tiny_mamba2(), observer="all=minmax")
    scale = model.backbone.layers[0].mixer.state_scale
    assert scale.shape == (4, 16)
    assert len(scale.unique()) == scale.numel()
    floats = quantize(tiny_mamba2(), observer="all=minmax", state_bits=32)
    for index, layer in enumerate(model.backbone.layers):
        states = [continued(floats, WINDOWS[:, :end], [end])[1].layers[index].recurrent_states[0] for end in (64, 80)]
        largest = torch.stack(states).abs().amax(dim=(0, 1, 4))  # [S, P], of quantized activations: near those seen
        torch.testing.assert_close(layer.mixer.state_scale, largest / 127, rtol=0.3, atol=1e-4)


def test_states_alone_change_no_scale_of_an_activation(tiny_mamba2):
    """The scan runs in pieces where states are watched: the scales behind it may differ in the last bits only."""
    with_states, without = (quantize(tiny_mamba2(), state_bits=bits).backbone.layers for bits in (8, 32))
    for own, other in zip(with_states, without, strict=True):
        for tap in ("in", "z", "conv_in", "x", "B", "C", "out"):
            torch.testing.assert_close(
                getattr(own.mixer, f"{tap}_scale"), getattr(other.mixer, f"{tap}_scale"), rtol=1e-3, atol=0
            )


@pytest.mark.parametrize("options", [{}, GROUPED], ids=["heads", "groups"])
def test_the_states_are_recorded_with_the_activations(tiny_mamba2, tmp_path, options):
    model = quantize(tiny_mamba2(), save_activations=tmp_path / "acts", observer="all=minmax", **options)
    result = model.quamba_calibration
    saved = {tap.name: tap for tap in open_activations(tmp_path / "acts")}
    assert set(saved) == set(result.taps)
    state = saved["layers.1.state"]
    assert state.values.shape == (6, 4, 16, 8)  # [B, S, P, N] behind the first 64 tokens
    assert state.histogram.count == 2 * state.values.numel()  # behind all 80 too
    assert max(state.histogram.positive.peak, state.histogram.negative.peak) == result.taps["layers.1.state"].max


def test_a_saved_model_keeps_them(tiny_mamba2, tiny_tokenizer, tokens, tmp_path):
    model = quantize(tiny_mamba2())
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert recipe_of(loaded).state_bits == 8
    expected, cache = continued(model, tokens, [6, 7])
    actual, loaded_cache = continued(loaded, tokens, [6, 7])
    assert torch.equal(actual, expected)
    assert torch.equal(loaded_cache.layers[1].recurrent_states[0], cache.layers[1].recurrent_states[0])


def test_another_observer_of_the_states_is_refused(tiny_mamba2):
    assert quantize(tiny_mamba2(), observer="state=minmax").quamba_calibration.observer["state"] == "minmax"
    with pytest.raises(QuambaError, match="minmax alone is small enough: drop state=percentile"):
        quantize(tiny_mamba2(), observer="state=percentile")
    with pytest.raises(QuambaError, match="this model has no tap 'state'"):
        quantize(tiny_mamba2(), observer="state=minmax", state_bits=32)


@pytest.mark.parametrize("bits", [16, 4, "8", None])
def test_other_bits_are_refused(tiny_mamba2, bits):
    with pytest.raises(QuambaError, match=f"SSM states have 8 or 32 bits, not {bits!r}"):
        quantize(tiny_mamba2(), state_bits=bits)


@pytest.mark.parametrize(
    "options", [{"scheme": "w8a16"}, {"scheme": "w4a16"}, {"layer_schemes": ("w8a8", "w8a16")}], ids=str
)
def test_float_activations_keep_float_states(tiny_mamba2, options):
    with pytest.raises(QuambaError, match="SSM states of 8 bits need 8-bit activations in every layer"):
        quantize(tiny_mamba2(), **options)


def test_mamba1_keeps_float_states(tiny_mamba):
    with pytest.raises(QuambaError, match="models of type 'mamba' keep float32 states: leave state_bits at 32"):
        quantize(tiny_mamba())
