"""The weight path's options of main.py: what they mean together, and which combinations are mistakes."""

from contextlib import nullcontext

import pytest

from quamba import QuambaError
from quamba.commands.quantize import recipe_options
from quamba.commands.quantize import texts as run_texts
from quamba.commands.quantize.parser import build_parser
from quamba.commands.quantize.weight_options import given_weight_options, weight_method
from quamba.weights.gptq import GptqOptions
from quamba.weights.method import DEFAULT_METHODS, WeightMethod
from quamba.weights.rounding import FlipOptions
from tests.commands.quantize.test_recipe_options import EMBEDDED, OTHER, parse


def method(*options) -> WeightMethod:
    return weight_method(parse("--quantize", "--quantize_lm_head", *options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], WeightMethod("rtn")),
        (["--w_bits", "4"], WeightMethod("gptq")),
        (["--w_bits", "3"], WeightMethod("gptq", "hessian")),
        (["--w_bits", "3", "--apply_gptq"], WeightMethod("gptq")),
        (["--w_bits", "3", "--use_heuristic"], WeightMethod("gptq", "mean")),
        (["--w_bits", "4", "--weight_method", "rtn"], WeightMethod("rtn")),
        (["--weight_method", "awq"], WeightMethod("awq")),
        (["--apply_gptq"], WeightMethod("gptq")),
        (["--apply_gptq", "--weight_method", "awq"], WeightMethod("awq+gptq")),
        (["--weight_method", "gptq", "--gptq_damping", "0.1"], WeightMethod("gptq", gptq=GptqOptions(damping=0.1))),
        (["--weight_method", "awq", "--n_grid", "8", "--clip"], WeightMethod("awq", n_grid=8, clip=True)),
        (["--weight_method", "awq", "--a_bits", "16", "--lmhead_chunks", "2"], WeightMethod("awq", lm_head_chunks=2)),
        (["--weight_method", "rtn", "--use_heuristic"], WeightMethod("rtn", "mean")),
        (["--weight_method", "rtn", "--use_heuristic", "--flip_objective", "hessian"], WeightMethod("rtn", "hessian")),
        (
            ["--weight_method", "rtn", "--use_heuristic", "--outlier_percent"],
            WeightMethod("rtn", "mean", FlipOptions(outlier_percent=0.05)),
        ),
        (
            ["--weight_method", "rtn", "--use_heuristic", "--outlier_percent", "0.2", "--max_flip_percent", "0.03"],
            WeightMethod("rtn", "mean", FlipOptions(outlier_percent=0.2, max_flip_percent=0.03)),
        ),
        (
            ["--weight_method", "rtn", "--use_heuristic", "--knee_tolerance", "0.1"],
            WeightMethod("rtn", "mean", FlipOptions(knee_tolerance=0.1)),
        ),
        (
            ["--weight_method", "gptq", "--layer_batch_size", "4", "--no_sequential", "--seed", "3"],
            WeightMethod("gptq", layer_batch_size=4, sequential=False, seed=3),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_make_a_method(options, expected):
    assert method(*options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--apply_gptq", "--weight_method", "rtn"], "--apply_gptq means --weight_method gptq, not the rtn given"),
        (["--outlier_percent"], "--outlier_percent does nothing without --use_heuristic"),
        (["--flip_objective", "mean"], "--flip_objective does nothing without --use_heuristic"),
        (["--use_heuristic", "--flip_objective", "best"], "best"),
        (["--use_heuristic", "--outlier_percent", "1"], "outlier_percent 1.0 is not a share"),
        (["--use_heuristic", "--outlier_percent", "-0.1"], "outlier_percent -0.1 is not a share"),
        (["--use_heuristic", "--max_flip_percent", "2"], "max_flip_percent 2.0 is not a share"),
        (["--weight_method", "gptq", "--n_grid", "3"], "--n_grid does nothing with --weight_method gptq"),
        (["--weight_method", "awq", "--gptq_damping", "0.1"], "--gptq_damping does nothing with --weight_method awq"),
        (["--weight_method", "gptq", "--gptq_damping", "-1"], "damping is a number from 0 up"),
        (["--weight_method", "awq", "--lmhead_chunks", "2"], "--lmhead_chunks does nothing without"),
        (["--weight_method", "awq", "--gptq_damping", "0"], "--gptq_damping does nothing with --weight_method awq"),
        (["--max_flip_percent", "0"], "--max_flip_percent does nothing without --use_heuristic"),
        (["--use_heuristic", "--outlier_percent", "--knee_tolerance", "0.1"], "--knee_tolerance shifts the knee"),
        (["--use_heuristic", "--flip_objective", "nearest"], "--flip_objective nearest flips nothing"),
        (["--weight_method", "rtn", "--resume"], "--resume does nothing with weights rounded to nearest"),
        (["--weight_method", "gptq", "--lmhead_chunks", "2"], "--lmhead_chunks does nothing without"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_contradictions_are_named(options, message):
    with pytest.raises(QuambaError, match=message):
        method(*options)


def test_chunks_of_a_head_in_the_embeddings_table_are_refused():
    options = ["--a_bits", "16", "--weight_method", "awq", "--quantize_lm_head", "--lmhead_chunks", "2"]
    args = parse("--quantize", *options)
    assert not recipe_options.recipe(args, tied=True).tied_head
    args = parse("--quantize", *options, "--quantize_embedding")
    assert not recipe_options.recipe(args, tied=False).tied_head
    with pytest.raises(QuambaError, match="--lmhead_chunks does nothing for a head that shares"):
        recipe_options.recipe(args, tied=True)


def test_more_than_half_masked_warns_and_says_what_it_does(caplog):
    method("--use_heuristic", "--outlier_percent", "0.6")
    assert "cannot flip, the rest still can" in caplog.text and "--use_heuristic" in caplog.text


def test_the_default_is_that_of_the_fewest_bits_that_layers_have():
    for bits, default in DEFAULT_METHODS.items():
        assert weight_method(parse("--quantize", "--hybrid_search", "5"), bits) == default
        assert weight_method(parse("--quantize", "--weight_method", "awq"), bits).method == "awq"
    assert given_weight_options(parse("--quantize", "--hybrid_search", "5")) == set()
    assert given_weight_options(parse("--resume", "--knee_tolerance", "0")) == {"resume", "knee_tolerance"}
    with pytest.raises(QuambaError, match="--layer_batch_size does nothing with weights rounded to nearest"):
        weight_method(parse("--quantize", "--layer_batch_size", "2"), 8)


def test_rounding_to_nearest_reads_no_text():
    assert run_texts.weight_text(parse("--quantize"), EMBEDDED, WeightMethod("rtn")) is None


def test_other_methods_read_128_slices_or_as_many_as_are_asked_for():
    gptq = WeightMethod("gptq")
    text = run_texts.weight_text(parse("--quantize"), OTHER, gptq)
    assert (text.data_num, text.seqlen, text.sampling) == (128, 512, "slices")
    assert run_texts.weight_text(parse("--quantize", "--n_calib", "300"), OTHER, gptq).data_num == 300
    assert run_texts.weight_text(parse("--testing"), EMBEDDED, gptq).data_num == run_texts.TESTING_CALIB_DATA_NUM


def test_float_activations_with_such_a_method_take_text_but_no_observer():
    parser = build_parser()
    options = ["--quantize", "--a_bits", "16", "--weight_method", "gptq"]
    recipe_options.check_quantization_options(parse(*options, "--calib_seqlen", "64"))
    with pytest.raises(QuambaError, match="--observer does nothing with --a_bits 16"):
        recipe_options.check_quantization_options(parse(*options, "--observer", "mse"))
    with pytest.raises(QuambaError, match="--calib_seqlen does nothing with --a_bits 16"):
        recipe_options.check_quantization_options(
            parse("--quantize", "--a_bits", "16", "--weight_method", "rtn", "--calib_seqlen", "64"), parser
        )


def test_text_beside_a_file_of_schemes_is_refused_once_the_file_is_known_to_need_none(tmp_path):
    file = tmp_path / "schemes.json"
    options = ["--a_bits", "16", "--hybrid_blocks", "--hybrid_blocks_config", str(file), "--calib_seqlen", "64"]
    args, config = parse("--quantize", *options), {"num_hidden_layers": 2}
    for schemes, refused in (('["w8a16", "w8a16"]', True), ('["w8a16", "w4a16"]', False)):
        file.write_text(schemes)
        recipe_options.check_quantization_options(args)
        with pytest.raises(QuambaError, match="--calib_seqlen does nothing") if refused else nullcontext():
            recipe_options.check_quantization_options(args, config)
