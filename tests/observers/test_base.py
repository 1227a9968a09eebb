"""What every observer checks, and the registry."""

import copy
import pickle

import pytest
import torch

from quamba.errors import QuambaError
from quamba.observers.base import finite_extremes
from quamba.observers.per_tensor import (
    Observer,
    PerTensorMinmaxObserver,
    create_observer,
    observer_names,
    register_observer,
)

NAMES = ["minmax", "percentile", "outlier_aware", "outlier_aware_adaptive", "mse"]


@pytest.fixture(autouse=True)
def random_state():
    """The random values of a test are the same every time."""
    torch.manual_seed(0)


class Peak(Observer):
    """The smallest observer there can be."""

    def _update(self, x):
        pass

    def _merge(self, other):
        pass

    def _parameters(self):
        return self.range_parameters(self.minimum, self.maximum)


# --- checks of the input ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nan_and_infinity_are_refused_and_leave_no_trace(name, bad, dtype):
    observer, untouched = create_observer(name), create_observer(name)
    good = torch.randn(2, 40)
    observer.update(good)
    untouched.update(good)
    spoiled = torch.randn(3, 50).to(dtype)
    spoiled[1, 7] = bad
    with pytest.raises(QuambaError, match=rf"observer '{name}'.* NaN or infinity"):
        observer.update(spoiled)
    assert observer.get_quantization_parameters() == untouched.get_quantization_parameters()
    assert observer.count == untouched.count


def test_a_float64_beyond_float32_counts_as_infinite():
    with pytest.raises(QuambaError, match="NaN or infinity"):
        create_observer("minmax").update(torch.tensor([1e39], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_empty_input_is_refused(name):
    with pytest.raises(QuambaError, match=rf"observer '{name}'.* empty tensor of shape \(0, 4\)"):
        create_observer(name).update(torch.empty(0, 4))


def test_extremes_are_those_of_finite_values():
    assert finite_extremes(torch.tensor([[0.5, -3.0], [2.0, 0.0]]), "tap x") == (-3.0, 2.0)
    assert finite_extremes(torch.tensor([7.0], dtype=torch.bfloat16), "tap x") == (7.0, 7.0)
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([float("-inf")])):
        with pytest.raises(QuambaError, match=r"^tap x: the activations hold NaN or infinity"):
            finite_extremes(bad, "tap x")
    with pytest.raises(QuambaError, match=r"^tap x: got an empty tensor of shape \(2, 0\)"):
        finite_extremes(torch.empty(2, 0), "tap x")


@pytest.mark.parametrize("name", NAMES)
def test_reading_before_the_first_update_is_refused(name):
    with pytest.raises(QuambaError, match=rf"observer '{name}'.* has seen no data: call update"):
        create_observer(name).get_quantization_parameters()


@pytest.mark.parametrize("x", [torch.tensor([1, 2]), torch.tensor([True]), [1.0, 2.0]])
def test_only_float_tensors_are_taken(x):
    with pytest.raises(QuambaError, match="takes a floating-point tensor"):
        create_observer("minmax").update(x)


@pytest.mark.parametrize("n_bits", [1, 17, 8.0, "8"])
def test_n_bits_out_of_range(n_bits):
    with pytest.raises(QuambaError, match="n_bits must be an integer from 2 to 16"):
        create_observer("minmax", n_bits=n_bits)


@pytest.mark.parametrize("clip_ratio", [0, -1.0, float("inf"), float("nan")])
def test_clip_ratio_out_of_range(clip_ratio):
    with pytest.raises(QuambaError, match="clip_ratio must be positive"):
        create_observer("minmax", clip_ratio=clip_ratio)


def test_the_graph_is_not_kept():
    x = torch.randn(100, requires_grad=True)
    for name in NAMES:
        observer = create_observer(name)
        observer.update(x * 2)
        assert not observer.get_quantization_parameters()[0].requires_grad


# --- merge ---


def test_merging_another_class_is_refused():
    with pytest.raises(QuambaError, match="cannot merge a PerTensorMSEObserver"):
        create_observer("minmax").merge(create_observer("mse"))


def test_merging_other_settings_is_refused():
    with pytest.raises(QuambaError, match=r"percentile_alpha differs: 0\.99 here, 0\.9 there"):
        create_observer("percentile", percentile_alpha=0.99).merge(create_observer("percentile", percentile_alpha=0.9))


@pytest.mark.parametrize("name", NAMES)
def test_merging_with_one_that_has_seen_nothing(name):
    x = torch.randn(300)
    seen, empty = create_observer(name), create_observer(name)
    seen.update(x)
    expected = seen.get_quantization_parameters()
    empty.merge(seen)
    seen.merge(create_observer(name))
    assert seen.get_quantization_parameters() == empty.get_quantization_parameters() == expected
    assert seen.count == empty.count == 300


@pytest.mark.parametrize("name", NAMES)
def test_observers_can_be_pickled_and_copied(name):
    observer = create_observer(name)
    observer.update(torch.randn(300))
    for twin in (pickle.loads(pickle.dumps(observer)), copy.deepcopy(observer)):
        assert twin.get_quantization_parameters() == observer.get_quantization_parameters()
        twin.merge(observer)
        assert twin.count == 600


# --- the registry ---


def test_the_names():
    assert observer_names() == NAMES


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(QuambaError, match=f"unknown observer 'best': choose one of {', '.join(NAMES)}"):
        create_observer("best")


def test_an_unknown_argument_lists_the_known_ones():
    with pytest.raises(QuambaError, match="'minmax' takes no argument sigma; it takes n_bits, clip_ratio, sym"):
        create_observer("minmax", sigma=1)


def test_arguments_reach_the_observer():
    observer = create_observer("percentile", n_bits=4, clip_ratio=0.9, percentile_sigma=0.5)
    assert observer.settings()["n_bits"] == 4
    assert observer.settings()["clip_ratio"] == 0.9
    assert observer.settings()["percentile_sigma"] == 0.5


def test_register_and_create():
    register_observer("peak")(Peak)
    assert observer_names()[-1] == "peak"
    observer = create_observer("peak")
    assert isinstance(observer, Peak)
    with pytest.raises(QuambaError, match="observer 'peak'"):
        observer.get_quantization_parameters()


def test_a_taken_name_is_refused():
    with pytest.raises(QuambaError, match=r"'mse' is taken by quamba\.observers\.per_tensor\.PerTensorMSEObserver"):
        register_observer("mse")(Peak)


def test_the_same_class_defined_again_replaces_itself():
    register_observer("peak")(Peak)
    again = type("Peak", (Peak,), {"__module__": Peak.__module__, "__qualname__": Peak.__qualname__})
    register_observer("peak")(again)
    assert type(create_observer("peak")) is again


def test_only_observers_register():
    with pytest.raises(QuambaError, match="is not a subclass of"):
        register_observer("number")(int)


def test_every_argument_has_a_name():
    class Vague(Peak):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)

    with pytest.raises(QuambaError, match="name every constructor argument"):
        register_observer("vague")(Vague)


def test_a_missing_argument_is_named():
    @register_observer("needy")
    class Needy(Peak):
        def __init__(self, n_bits=8, *, needed):
            super().__init__(n_bits)

    with pytest.raises(QuambaError, match="'needy' needs the argument needed"):
        create_observer("needy")


def test_an_argument_kept_under_another_name_is_explained():
    class Hidden(Peak):
        def __init__(self, n_bits=8, width=1.0):
            super().__init__(n_bits)
            self._width = width

    with pytest.raises(QuambaError, match=r"keep the constructor's argument 'width' as self\.width"):
        Hidden().settings()


def test_no_argument_is_mistaken_for_the_observers_name():
    with pytest.raises(QuambaError, match=r"^observer 'mse' takes no argument name; it takes n_bits, "):
        create_observer("mse", **{"name": 3})


def test_a_subclass_without_a_name_of_its_own_is_called_by_its_class():
    class Special(PerTensorMinmaxObserver):
        pass

    with pytest.raises(QuambaError, match=r"^observer Special: has seen no data"):
        Special().get_quantization_parameters()
