"""Measuring a model changes nothing of the caller's: its mode, its tables, the tokenizer, torch's random numbers."""

import importlib
import json
import random

import datasets
import numpy as np
import pytest
import torch
import yaml

from quamba.evaluation import perplexity, stepwise_perplexity
from quamba.evaluation.lm_eval import run_tasks
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(0, 60, (2, 8), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(("measure", "build"), [(perplexity, tiny_llama), (stepwise_perplexity, tiny_bamba)])
def test_a_model_in_train_mode_is_measured_without_dropout(measure, build):
    model = build(attention_dropout=0.5).train()
    in_training = measure(model, WINDOWS, progress=False)
    assert model.training and model.base_model.training
    assert in_training.ppl == measure(model.eval(), WINDOWS, progress=False).ppl


@pytest.fixture
def measure_task(monkeypatch, tmp_path):
    """Runs a task of two words to predict."""
    rows = [{"context": "w1 w2 w3", "target": " w4"}, {"context": "w9 w8 w7", "target": " w6"}]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "words", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "words.jsonl")}}}
    task |= {"doc_to_text": "{{context}}", "doc_to_target": "{{target}}", "metric_list": [{"metric": "perplexity"}]}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(task))
    module = importlib.import_module("quamba.evaluation.lm_eval")
    manager = module._Tasks(include_path=[tmp_path], include_defaults=False)
    monkeypatch.setattr(module, "_task_manager", lambda *_, **__: manager)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(importlib.import_module("lm_eval.evaluator"), "add_env_info", lambda report: None)
    return lambda model, tokenizer: run_tasks(model, tokenizer, ["words"])


def test_tasks_leave_everything_of_the_callers(measure_task, tiny_tokenizer):
    model = tiny_llama(tie_word_embeddings=True, attention_dropout=0.5).train()
    head = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone(), requires_grad=False)
    assert tiny_tokenizer.pad_token is None
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    measured = measure_task(model, tiny_tokenizer)
    assert model.training and model.config.tie_word_embeddings
    assert tiny_tokenizer.pad_token is None and len(tiny_tokenizer) == 50
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1] == random.getstate() and np.array_equal(numbers[2], np.random.get_state()[1])
    assert model.lm_head.weight is head is not model.model.embed_tokens.weight  # lm-eval ties by the config
    untied = tiny_llama(tie_word_embeddings=False)
    untied.model.load_state_dict(model.model.state_dict())
    untied.lm_head.weight = head
    assert measured.items == measure_task(untied, tiny_tokenizer).items
