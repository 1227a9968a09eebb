"""Another order of Mamba2's heads and channels: the same logits, and activations that changed places alone."""

import pytest
import torch

from quamba.architectures.anatomy import Anatomy
from quamba.errors import QuambaError
from quamba.nn.mamba2 import Mamba2Mixer
from quamba.transforms import ChannelOrder, cluster_channels, fuse_gated_norm, reorder, reorder_layer, rotate_out_proj
from tests.tiny_mamba2 import tiny_mamba2

# heads, head_dim, n_groups
SIZES = pytest.mark.parametrize("heads,head_dim,n_groups", [(8, 8, 1), (4, 16, 2), (6, 8, 3), (16, 4, 2), (1, 16, 1)])
OURS = pytest.mark.parametrize("ours", [False, True], ids=["transformers", "ours"])
BIASES = pytest.mark.parametrize("biases", [{}, {"use_bias": True}, {"use_conv_bias": False}], ids=str)


def random_order(heads: int, head_dim: int, n_groups: int, seed: int) -> ChannelOrder:
    """Any order that a reordering may have."""
    generator = torch.Generator().manual_seed(seed)
    per_group = heads // n_groups
    head_order = [torch.randperm(per_group, generator=generator) + group * per_group for group in range(n_groups)]
    channels = [torch.randperm(head_dim, generator=generator) for _ in range(heads)]
    return ChannelOrder(torch.cat(head_order), torch.stack(channels), torch.zeros(heads, head_dim, dtype=torch.int64))


def random_orders(model, seed: int = 5) -> dict[int, ChannelOrder]:
    config = model.config
    sizes = (config.num_heads, config.head_dim, config.n_groups)
    return {index: random_order(*sizes, seed + index) for index in range(len(model.backbone.layers))}


def install_ours(model) -> None:
    for layer in model.backbone.layers:
        layer.mixer = Mamba2Mixer(layer.mixer)


def new_model(ours: bool = False, **options):
    model = tiny_mamba2(**options)
    if ours:
        install_ours(model)
    return model


@SIZES
@OURS
@BIASES
def test_the_logits_stay(tokens, heads, head_dim, n_groups, ours, biases):
    model = new_model(ours, heads=heads, head_dim=head_dim, n_groups=n_groups, **biases)
    expected = model(tokens).logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reorder(Anatomy.of(model).slots, random_orders(model))
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    per_head = ("A_log", "D", "dt_bias")
    stay = ("embed", "lm_head", "layers.0.norm", "layers.1.norm", "norm_f", "out_proj.bias")
    for name in before:
        if n_groups == heads and name.endswith(per_head):  # one head in each SSD group: heads have nowhere to go
            continue
        assert (name in moved) != any(part in name for part in stay), name


@SIZES
@OURS
def test_cached_decoding_stays(tokens, heads, head_dim, n_groups, ours):
    model = new_model(ours, heads=heads, head_dim=head_dim, n_groups=n_groups, use_bias=True)
    other = new_model(ours, heads=heads, head_dim=head_dim, n_groups=n_groups, use_bias=True)
    orders = random_orders(other)
    reorder(Anatomy.of(other).slots, orders)
    caches = []
    for tested in (model, other):
        out = tested(tokens[:, :6], use_cache=True)
        logits = [out.logits]
        for step in range(6, 10):
            out = tested(tokens[:, step : step + 1], cache_params=out.cache_params, use_cache=True)
            logits.append(out.logits)
        caches.append((torch.cat(logits, dim=1), out.cache_params))
    (expected, cache), (logits, other_cache) = caches
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for index, order in orders.items():  # the states are those of the channels that now stand there
        old, new = (c.layers[index].recurrent_states[0].flatten(1, 2) for c in (cache, other_cache))
        torch.testing.assert_close(new, old[:, order.permutation()], rtol=1e-4, atol=1e-4)


@SIZES
def test_every_activation_of_a_channel_goes_with_it(tokens, heads, head_dim, n_groups):
    def taps(mixer: torch.nn.Module) -> dict[str, torch.Tensor]:
        seen = {}
        for name, tap in mixer.taps.items():
            tap.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out.clone()))
        mixer(hidden)
        return seen

    hidden = torch.randn(2, 5, heads * head_dim // 2, generator=torch.Generator().manual_seed(0))
    mixers = [new_model(True, heads=heads, head_dim=head_dim, n_groups=n_groups).backbone.layers[0].mixer for _ in "ab"]
    order = random_order(heads, head_dim, n_groups, 3)
    reorder_layer(mixers[1], order)
    before, after = (taps(mixer) for mixer in mixers)
    for name in ("z", "conv_in", "x", "out"):
        torch.testing.assert_close(after[name], before[name][..., order.permutation()], rtol=1e-5, atol=1e-5)
    for name in ("in", "B_in", "C_in", "B", "C"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype_change_places_alone(tokens, dtype):
    model = new_model(dtype=dtype, n_groups=2, use_bias=True)
    expected = model(tokens).logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reorder(Anatomy.of(model).slots, random_orders(model))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor.flatten().sort().values, before[name].flatten().sort().values)
    # float64: transformers computes the recurrence in float32
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    error = (model(tokens).logits - expected).norm() / expected.norm()
    assert error < tolerance


def test_the_order_of_clusters_sorts_the_channels_of_x(tokens):
    model = new_model(ours=True, n_groups=2)
    mixer = model.backbone.layers[1].mixer
    seen = []
    mixer.taps["x"].register_forward_hook(lambda _m, _a, out: seen.append(out.abs().amax((0, 1)).view(8, 8)))
    model(tokens)
    order = cluster_channels(seen[0], n_groups=2, head_groups=2, channel_groups=3)
    reorder(Anatomy.of(model).slots, {1: order})
    model(tokens)
    assert (seen[1].diff(dim=1) <= 1e-5).all()
    torch.testing.assert_close(seen[1].flatten(), seen[0].flatten()[order.permutation()])


def test_the_inverse_order_undoes_it():
    model = new_model(use_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = random_order(8, 8, 1, 0)
    back = order.head_order.argsort()
    inverse = ChannelOrder(back, order.channel_order.argsort(1)[back], order.group_id)
    reorder(Anatomy.of(model).slots, {0: order})
    assert not torch.equal(model.backbone.layers[0].mixer.A_log, before["backbone.layers.0.mixer.A_log"])
    reorder(Anatomy.of(model).slots, {0: inverse})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_rotated_out_proj_is_refused():
    model = new_model(ours=True)
    fuse_gated_norm(Anatomy.of(model).slots)
    rotate_out_proj(Anatomy.of(model).slots)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(QuambaError, match=r"layer 0: out_proj is rotated already.*reorder before rotating"):
        reorder(Anatomy.of(model).slots, random_orders(model))
    with pytest.raises(QuambaError, match="out_proj is rotated already"):
        reorder_layer(model.backbone.layers[1].mixer, random_order(8, 8, 1, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_reordering_goes_together_with_the_rotation(tokens):
    model = new_model(ours=True, n_groups=2)
    expected = model(tokens).logits
    fuse_gated_norm(Anatomy.of(model).slots)
    reorder(Anatomy.of(model).slots, random_orders(model))
    rotate_out_proj(Anatomy.of(model).slots)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (random_order(4, 16, 1, 0), "layer 1: the order is of 4 heads of 16, the mixer has 8 of 8"),
        (
            ChannelOrder(torch.arange(7, -1, -1), torch.arange(8).expand(8, 8), torch.zeros(8, 8, dtype=torch.int64)),
            r"layer 1: the order takes head 7 out of its SSD group of 4 heads.*n_groups than 2",
        ),
    ],
)
def test_orders_that_do_not_fit_change_nothing(order, message):
    model = new_model(n_groups=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(QuambaError, match=message):
        reorder(Anatomy.of(model).slots, {0: random_order(8, 8, 2, 0), 1: order})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_layers_and_other_mixers_are_refused(tiny_mamba):
    with pytest.raises(QuambaError, match="a channel order for layer 2, but the model has 2 layers"):
        reorder(Anatomy.of(new_model()).slots, {2: random_order(8, 8, 1, 0)})
    with pytest.raises(QuambaError, match="layer 0: a MambaMixer has no dt_bias: only float Mamba2 mixers"):
        reorder(Anatomy.of(tiny_mamba()).slots, {0: random_order(8, 8, 1, 0)})
