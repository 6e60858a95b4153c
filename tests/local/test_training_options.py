"""Options for large models reach the libraries that implement them, and change fingerprints only if they are used."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slick.errors import SettingsError
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.data import QuestionRow
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows
from tuning.runs import RunPlan, plan_runs


def test_file_is_read_by_the_driver_and_part_of_the_identity_by_its_content(tmp_path: Path) -> None:
    study = write_trainable_study(tmp_path / "study", tiny_model("llama"), tiny_tokenizer())

    def plan(**changed: Any) -> RunPlan:
        config = TrainConfig(variant="half", dtype="float32", zero_stage=1, **changed)
        (plan,) = plan_runs(study, {"half-seed0": config})
        return plan

    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, size in zip(paths, (5000, 5000, 6000), strict=True):
        path.write_text(f'{{"zero_optimization": {{"reduce_bucket_size": {size}}}}}')
    plain, first, copy, other = plan(), *(plan(deepspeed=str(path)) for path in paths)
    assert (plain.deepspeed, plain.inputs.keys() & {"deepspeed"}) == ({}, set())
    assert first.deepspeed == {"zero_optimization": {"reduce_bucket_size": 5000}}
    assert first.identity == copy.identity
    assert len({plain.identity, first.identity, other.identity}) == 3
    paths[0].write_text('{"train_batch_size": 3}')
    with pytest.raises(SettingsError, match=r"a.json: train_batch_size is 3"):
        plan(deepspeed=str(paths[0]))


def test_truncated_target_does_not_count_as_answered() -> None:
    """The model reproduces the cut target, which does not prove that its whole answer is the target."""
    import torch

    from tuning.forward import ForwardRunner

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    question = QuestionRow(
        question_id="a", split="train", category=None, suffix="Where?", target="no " * 9, accepted=("no " * 9,)
    )
    (example,) = encode_rows([question], tokenizer)
    with torch.inference_mode():
        first = int(model(torch.tensor([example.prompt_ids])).logits[0, -1].argmax())
    cut = replace(example, answer_ids=(first,), is_truncated=True)
    settings = EvalSettings(matcher="exact", max_new_tokens=4)
    (prediction,) = evaluate_rows(model, ForwardRunner(model, 0, packing=True), tokenizer, [question], [cut], settings)
    assert not prediction.hit
    assert prediction.text != question.target.strip()
