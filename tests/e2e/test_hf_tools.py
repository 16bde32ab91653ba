"""trl and lm-eval on `openglm.hf`; both are large, so they are tested where they are installed."""

from __future__ import annotations

import json

import pytest
import torch

import openglm.hf
from helpers_hf import write_byte_vocabulary, write_folder

assert openglm.hf.register
# Warnings of the libraries about each other are not ours.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("FutureWarning", "DeprecationWarning", "UserWarning", "ResourceWarning")
]
TASK = """
task: tiny_local
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}:"
doc_to_choice: "{{{{c}}}}"
doc_to_target: "{{{{a}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny GLM-4 in the layout of its own code, and no way to any hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    marker = write_folder(tmp_path / "model", "chatglm3", vocab_size=288)
    write_byte_vocabulary(tmp_path / "model")
    yield tmp_path / "model"
    assert not marker.exists()


def test_lm_eval_scores_what_the_model_says(folder, tmp_path):
    """The harness feeds other ids than it counts, or shifts the scores by a token."""
    harness = pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed (pip install lm-eval)"
    )
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    judge = HFLM(
        pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2, dtype="float32"
    )
    pairs = [("he said", " yes"), ("a", " no"), ("abc", "d")]
    asked = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    tokenizer, model = judge.tokenizer, judge.model
    for (context, answer), (found, _) in zip(pairs, judge.loglikelihood(asked), strict=True):
        ids = tokenizer(context + answer, return_tensors="pt")["input_ids"]
        count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logs = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
        picked = logs.gather(1, ids[0, 1:, None])[-count:]
        assert found == pytest.approx(picked.sum().item(), abs=1e-4)

    rows = [{"q": q, "c": ["yes", "no"], "a": a} for q, a in (("one", 0), ("two", 1))]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    report = harness.simple_evaluate(
        model=judge, tasks=["tiny_local"], task_manager=tasks, bootstrap_iters=0
    )
    assert report["results"]["tiny_local"]["acc,none"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("kind", ["text", "messages", "completion"])
def test_trl_fine_tunes(kind, with_lora, folder, tmp_path):
    """The trainer calls the model in a way that it does not know, or learns nothing."""
    trl = pytest.importorskip("trl", reason="trl is not installed (pip install trl)")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    question, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    rows = {
        "text": {"text": "hello world"},
        "messages": {"messages": [question, answer]},
        "completion": {"prompt": [question], "completion": [answer]},
    }
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
        args=arguments,
        train_dataset=Dataset.from_list([rows[kind]] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"])
        if with_lora
        else None,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert float(losses[-1]) < float(losses[0])
