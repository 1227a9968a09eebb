"""The embedded cloze task and any other lm-eval task, through lm-eval's own `simple_evaluate`."""

import importlib
import json
import math

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from lm_eval.api.registry import get_model

import quamba
from quamba.errors import QuambaError
from quamba.evaluation.lm_eval import TASKS_DIR, QuambaLM, TaskManager, run_tasks
from quamba.text.data import read_asset_rows
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def mamba_tiny():
    return quamba.load("mamba-tiny")


@pytest.fixture(autouse=True)
def offline_and_quick(monkeypatch, tmp_path):
    """No hub, a data set cache of the test's own, and no survey of the machine (seconds) in lm-eval's report."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(importlib.import_module("lm_eval.evaluator"), "add_env_info", lambda report: None)


@pytest.fixture
def without_lm_evals_own_tasks(monkeypatch):
    """lm-eval's thousands of tasks take seconds to index."""
    module = importlib.import_module("quamba.evaluation.lm_eval")

    def manager(include_path, include_defaults):
        folders = [TASKS_DIR] + ([include_path] if include_path else [])
        return module._Tasks(include_path=folders, include_defaults=False)

    monkeypatch.setattr(module, "_task_manager", manager)


@pytest.fixture
def write_task(tmp_path):
    """A function that writes an lm-eval task with a local data set and returns its folder."""

    def write(name, rows, **config):
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        data_file = folder / f"{name}.jsonl"
        data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data_file)}},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | config))
        return folder

    return write


def guesses_right(model, tokenizer, item):
    context = tokenizer(item["context"])["input_ids"]
    target = tokenizer(item["target"])["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([context + target])).logits[0]
    return logits[len(context) - 1 : -1].argmax(-1).tolist() == target


def test_stdlib_cloze_from_any_folder(mamba_tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics, items = run_tasks(*mamba_tiny, ["stdlib_cloze"], limit=12)
    expected = [guesses_right(*mamba_tiny, item) for item in read_asset_rows("tasks/stdlib_cloze/test.jsonl")[:12]]
    assert items["stdlib_cloze"]["acc,none"] == expected
    assert metrics["stdlib_cloze"]["acc,none"] == pytest.approx(sum(expected) / 12)
    mean_log_likelihood = sum(items["stdlib_cloze"]["perplexity,none"]) / 12
    assert metrics["stdlib_cloze"]["perplexity,none"] == pytest.approx(math.exp(-mean_log_likelihood))
    assert json.loads(json.dumps(metrics)) == metrics
    assert not (tmp_path / "cache").exists()  # needs no cache, so the package and the home folder may be read-only


def test_cloze_items_are_inferable_and_split_cleanly(mamba_tiny):
    tokenizer = mamba_tiny[1]
    items = read_asset_rows("tasks/stdlib_cloze/test.jsonl")
    assert 300 <= len(items) <= 500
    assert len({item["id"].split(":")[0] for item in items}) > 50  # files
    for item in items:
        context, target = item["context"], item["target"]
        assert target.strip().isidentifier() and len(target.strip()) >= 4
        assert target.strip() in context
        assert (
            tokenizer(context)["input_ids"] + tokenizer(target)["input_ids"] == tokenizer(context + target)["input_ids"]
        )


def test_few_shot_examples_come_from_other_files(mamba_tiny, monkeypatch):
    prompts = []

    def loglikelihood(self, requests, **_):
        prompts.extend(request.args[0] for request in requests)
        return [(-1.0, True)] * len(requests)

    monkeypatch.setattr(QuambaLM, "loglikelihood", loglikelihood)
    run_tasks(*mamba_tiny, ["stdlib_cloze"], num_fewshot=2, limit=3)
    items = read_asset_rows("tasks/stdlib_cloze/test.jsonl")[:3]
    examples = {e["context"] + e["target"] for e in read_asset_rows("tasks/stdlib_cloze/fewshot.jsonl")}
    for prompt, item in zip(prompts, items, strict=True):
        assert prompt.endswith("\n\n" + item["context"])
        shots = prompt.removesuffix("\n\n" + item["context"])
        assert sum(example in shots for example in examples) == 2


def test_a_generation_task(mamba_tiny, write_task):
    model, tokenizer = mamba_tiny
    prompts = ["import os\nimport ", "class Stack:\n    def push(self", "x = x +"]
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        text = tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :])
        rows.append({"prompt": prompt, "answer": text})
    rows[2]["answer"] = "something else"
    folder = write_task(
        "continue_code",
        rows,
        output_type="generate_until",
        doc_to_text="prompt",
        doc_to_target="answer",
        target_delimiter="",
        generation_kwargs={"max_gen_toks": 4, "until": ["<|endoftext|>"], "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    metrics, items = run_tasks(model, tokenizer, ["continue_code"], batch_size=2, include_path=folder)
    assert items["continue_code"] == {"exact_match,none": [1, 1, 0]}
    assert metrics["continue_code"]["exact_match,none"] == pytest.approx(2 / 3)


def test_several_tasks_and_a_multiple_choice_one(mamba_tiny, write_task):
    rows = [{"prompt": "import", "choices": [" os", " 9"], "label": 0}] * 2
    folder = write_task(
        "choose",
        rows,
        output_type="multiple_choice",
        doc_to_text="prompt",
        doc_to_choice="choices",
        doc_to_target="label",
        target_delimiter="",
    )
    metrics, items = run_tasks(*mamba_tiny, ["choose", "stdlib_cloze", "choose"], limit=2, include_path=folder)
    assert metrics.keys() == {"choose", "stdlib_cloze"}
    assert items["choose"]["acc,none"] == [1, 1]


def test_the_registered_model_type_loads_by_name():
    model = get_model("quamba").create_from_arg_string("pretrained=mamba-tiny,dtype=bfloat16", {"batch_size": 2})
    assert isinstance(model, QuambaLM)
    assert model.model.dtype == torch.bfloat16 and model.batch_size == 2
    with pytest.raises(QuambaError, match="unknown dtype 'int8'"):
        QuambaLM("mamba-tiny", dtype="int8")


def test_a_checkpoint_is_loaded_in_the_dtype_it_was_saved_in(mamba_tiny, tmp_path):
    model, tokenizer = quamba.load("mamba-tiny", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    windows = torch.zeros(1, 8, dtype=torch.int64)
    quantized = quamba.quantize(model, tokenizer, "w8a8", calibration=windows, progress=False)
    quamba.save(quantized, tokenizer, tmp_path / "quantized")
    for name in ("float", "quantized"):
        assert QuambaLM(str(tmp_path / name)).model.dtype == torch.bfloat16
        assert QuambaLM(str(tmp_path / name), dtype="auto").model.dtype == torch.bfloat16
        assert QuambaLM(str(tmp_path / name), dtype="float32").model.dtype == torch.float32


def test_the_tokenizer_that_is_given_is_used(mamba_tiny, tiny_tokenizer, tmp_path):
    assert QuambaLM("mamba-tiny", tokenizer=tiny_tokenizer).tokenizer is tiny_tokenizer
    tiny_tokenizer.save_pretrained(tmp_path)
    for named in (QuambaLM("mamba-tiny", tokenizer=str(tmp_path)), QuambaLM(mamba_tiny[0], tokenizer=str(tmp_path))):
        assert named.tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    own = QuambaLM("mamba-tiny", tokenizer="mamba2-tiny", add_bos_token=False).tokenizer
    assert own.get_vocab() == mamba_tiny[1].get_vocab()
    with pytest.raises(QuambaError, match="the tokenizer 'nobody/nothing' cannot be read"):
        QuambaLM("mamba-tiny", tokenizer="nobody/nothing")


def test_hflms_arguments_are_passed_on_or_refused_by_name(mamba_tiny):
    passed = {"batch_size": 3, "max_batch_size": 5, "max_length": 7, "prefix_token_id": 2, "add_bos_token": True}
    model = QuambaLM("mamba-tiny", **passed, truncation=True, logits_cache=False, revision="main", parallelize=False)
    assert (model.batch_size, model.max_batch_size, model.max_length, model.prefix_token_id) == (3, 5, 7, 2)
    assert model.add_bos_token and model.truncation and not model.logits_cache
    refused = {"revision": "v2", "trust_remote_code": True, "peft": "x", "parallelize": True, "gguf_file": "x.gguf"}
    for name, value in (refused | {"max_lenght": 7, "backend": "seq2seq"}).items():
        for pretrained, tokenizer in (("mamba-tiny", None), mamba_tiny):
            with pytest.raises(QuambaError, match=rf"'quamba' takes no {name} \(given: {value!r}\)"):
                QuambaLM(pretrained, tokenizer=tokenizer, **{name: value})


def test_arguments_that_could_not_change_a_loaded_model_are_refused(mamba_tiny):
    model, tokenizer = mamba_tiny
    assert QuambaLM(model, tokenizer, dtype="float32", device="cpu").model is model
    for options, message in (
        ({"dtype": "bfloat16"}, "dtype is bfloat16, and the model that is given is torch.float32"),
        ({"device": "meta"}, "device is meta, and the model that is given is on cpu"),
        ({"pretrained_dir": "models"}, "pretrained_dir 'models' does nothing"),
        ({"tokenizer": None}, "give tokenizer too"),
    ):
        with pytest.raises(QuambaError, match=message):
            QuambaLM(model, **{"tokenizer": tokenizer} | options)


def test_no_task_reads_beyond_the_positions(tiny_tokenizer):
    model = tiny_llama(max_position_embeddings=16)
    assert QuambaLM(model, tiny_tokenizer).max_length == 16
    with pytest.raises(QuambaError, match=r"max_length is 17, and this model .* positions for 16 tokens"):
        QuambaLM(model, tiny_tokenizer, max_length=17)


def test_a_task_whose_data_is_on_an_unreachable_hub(mamba_tiny, write_task, without_lm_evals_own_tasks):
    folder = write_task("from_hub", [], dataset_path="somebody/something", dataset_kwargs={}, doc_to_text="text")
    with pytest.raises(QuambaError, match=r"from_hub: the Hugging Face hub cannot be reached.*somebody/something"):
        run_tasks(*mamba_tiny, ["from_hub"], include_path=folder)


def test_unknown_tasks_are_named_with_similar_ones(mamba_tiny, without_lm_evals_own_tasks):
    with pytest.raises(
        QuambaError, match=r"unknown lm-eval task 'stdlib_clozes' \(similar: stdlib_cloze\).*`lm-eval ls tasks`"
    ):
        run_tasks(*mamba_tiny, ["stdlib_cloze", "stdlib_clozes"])
    with pytest.raises(QuambaError, match="no lm-eval task is named"):
        run_tasks(*mamba_tiny, [])
    with pytest.raises(QuambaError, match="folder of lm-eval tasks 'nowhere'"):
        run_tasks(*mamba_tiny, ["stdlib_cloze"], include_path="nowhere")


@pytest.mark.parametrize("name", ["lambada_openai", "arc_easy"])
def test_lm_evals_own_tasks_are_known(name):
    folder = importlib.import_module("lm_eval.tasks").__path__[0]
    manager = TaskManager(include_defaults=False, include_path=f"{folder}/{name.split('_')[0]}")
    assert name in manager.task_index
