"""Options for large models reach the libraries that implement them, and change fingerprints only if they are used."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slick import compat
from slick.errors import ModelError, SettingsError, SlickError
from slick.storage import Folder
from tests.local.cli import ROOT
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows
from tuning.liger import apply_liger
from tuning.runs import RunPlan, plan_runs
from tuning.trainable import check_trainable
from tuning.trainer import Trainer, WorkerContext, init_deepspeed


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


CALLS: list[str] = []
"""Calls of `flash_on_cpu`: `packed` with boundaries of rows, `padded` without."""


def flash_on_cpu(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Any, None]:
    """Attention with the arguments of transformers' flash kernels; no such kernel runs on a CPU."""
    import torch
    from torch.nn import functional

    def attend(start: int, end: int, row: int) -> torch.Tensor:
        parts = [part[row : row + 1, :, start:end] for part in (query, key, value)]
        out = functional.scaled_dot_product_attention(
            *parts, is_causal=True, scale=options["scaling"], enable_gqa=query.shape[1] != key.shape[1]
        )
        return out.transpose(1, 2)

    boundaries = options.get("cu_seq_lens_q")
    CALLS.append("padded" if boundaries is None else "packed")
    if boundaries is None:  # rows are padded on the right, which causal attention does not see
        return torch.cat([attend(0, query.shape[2], row) for row in range(len(query))]), None
    ends = boundaries.tolist()
    assert (query.shape[0], ends[0], ends[-1]) == (1, 0, query.shape[2])
    assert options["max_length_q"] == max(b - a for a, b in pairwise(ends))
    return torch.cat([attend(a, b, 0) for a, b in pairwise(ends)], dim=1), None


def test_flash_kernel_gets_packed_rows_with_their_boundaries() -> None:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    from tuning.forward import ForwardRunner

    AttentionInterface.register("flash_on_cpu", flash_on_cpu)
    AttentionMaskInterface.register("flash_on_cpu", flash_attention_mask)
    examples = [Example(prompt_ids=tuple(range(5, 9 + 3 * i)), answer_ids=(3 + i, 4, 2)) for i in range(4)]
    logits = {}
    for kernel in ("", "flash_on_cpu", "eager"):
        model = tiny_model("llama")
        configs = compat.attention_configs(model)  # by the public way, transformers would look for a CUDA kernel
        with compat.attention_override(configs, kernel) if kernel else nullcontext():
            forward = ForwardRunner(model, 0, packing=True, kernel=kernel)
            CALLS.clear()
            with torch.no_grad(), forward.rows(examples) as rows:
                logits[kernel] = forward.answer_logits(rows)
        assert forward.uses_packing == (kernel != "eager"), "other kernels get padded rows"
        names = {"": "slick packed (sdpa)", "flash_on_cpu": "flash_on_cpu, packed", "eager": ""}
        assert forward.attention_name == names[kernel]
        assert set(CALLS) == ({"packed"} if kernel == "flash_on_cpu" else set())
        torch.testing.assert_close(logits[kernel], logits[""], rtol=1e-4, atol=1e-4)
    assert not ForwardRunner(model, 0, packing=False, kernel="flash_on_cpu").uses_packing


def test_attention_kernel_reaches_the_model_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    from slick.models import load_model

    tiny_model("llama").save_pretrained(tmp_path)
    assert load_model(str(tmp_path), attention="eager").config._attn_implementation == "eager"
    with pytest.raises(SlickError, match="no-such-kernel"):
        load_model(str(tmp_path), attention="no-such-kernel")


def test_liger_needs_its_package_and_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = TrainConfig(liger=True)
    assert "liger" not in config.identity()
    monkeypatch.setattr("tuning.liger.find_spec", lambda name: None)
    with pytest.raises(
        SettingsError, match=r"--liger needs the package liger-kernel: pip install 'slick-knowledge\[li"
    ):
        check_trainable(str(tmp_path), config)
    monkeypatch.setattr("tuning.liger.find_spec", lambda name: name)
    with pytest.raises(SettingsError, match="kernels for GPUs only, and this training runs on the CPU"):
        apply_liger(tiny_model("llama"), "cpu")
    monkeypatch.setattr(compat, "apply_liger_kernels", lambda model: False)
    with pytest.raises(ModelError, match="the installed liger-kernel has no kernels for LlamaForCausalLM"):
        apply_liger(tiny_model("llama"), "cuda")


def test_liger_replaces_norms_and_feed_forward_blocks() -> None:
    """The kernels themselves run on GPUs only."""
    pytest.importorskip("liger_kernel.transformers", reason="liger-kernel or triton is not installed")
    model = tiny_model("llama")
    forward = type(model).forward
    assert compat.apply_liger_kernels(model)
    for module in (model.model.norm, model.model.layers[0].mlp, model.model.layers[2].input_layernorm):
        assert "liger" in module.forward.__func__.__module__
    assert type(model).forward is forward, "the loss stays slick's own"
    assert not compat.apply_liger_kernels(tiny_model("gpt2"))


def train_with_options(path: Path) -> None:
    """Train with PyTorch's and with DeepSpeed's AdamW, and resume the latter; run in a subprocess."""
    import torch
    import torch.distributed as dist

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    init_deepspeed()
    model = path / "model"
    tiny_model("llama", spread=0.1).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    context = WorkerContext(rank=0, local_rank=0, num_workers=1, device="cpu")
    examples = [Example(prompt_ids=(5, 6, 7 + i), answer_ids=(3 + i, 4, 2)) for i in range(6)]
    config = TrainConfig(
        dtype="float32", learning_rate=5e-3, batch_size=4, dropout=0.0, zero_stage=2, offload="optimizer"
    )
    file_settings = {"zero_optimization": {"reduce_bucket_size": 1234567}}

    def train(trainer: Trainer, *epochs: int) -> dict[str, torch.Tensor]:
        for epoch in epochs:
            trainer.epoch(examples, epoch)
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    plain = train(Trainer(str(model), config, context, 0), 1, 2, 3)
    fast = replace(config, cpu_adam=True)
    trainer = Trainer(str(model), fast, context, 0, file_settings)
    assert type(trainer.engine.basic_optimizer).__name__ == "DeepSpeedCPUAdam"
    assert trainer.engine.zero_reduce_bucket_size() == 1234567
    train(trainer, 1, 2)
    (path / "state").mkdir()
    trainer.save(str(path / "state"))
    whole = train(trainer, 3)
    resumed = Trainer(str(model), fast, context, 0)
    resumed.load(Folder(str(path / "state")), examples[0])
    again = train(resumed, 3)
    for name, weight in plain.items():
        torch.testing.assert_close(whole[name], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(again[name], whole[name]), name


@pytest.mark.slow
@pytest.mark.skipif(None in map(shutil.which, ("c++", "ninja")), reason="no C++ compiler or no ninja")
def test_cpu_adam_and_the_deepspeed_file_reach_deepspeed(tmp_path: Path) -> None:
    """The weights are those of PyTorch's AdamW up to rounding, and a resumed training has the same bits."""
    subprocess.run([sys.executable, "-m", __name__, str(tmp_path)], cwd=ROOT, check=True)


if __name__ == "__main__":
    train_with_options(Path(sys.argv[1]))
