"""Fine-tuning with Ray Train and DeepSpeed on CPU: equal to plain PyTorch, with consistent run folders."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slick.errors import SettingsError, SlickError, StudyError, VariantError
from slick.matching import is_hit
from slick.rng import derive_seed
from slick.storage import Folder
from slick.study import Manifest, read_manifest, require_manifest
from tests.conftest import SmallDisk
from tests.local.plain_training import ReferenceRun, train_reference
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tests.waiting import wait_for
from tuning.config import TrainConfig
from tuning.finetune import finetune, scratch_folder, train_in_worker_group
from tuning.runs import RunPlan, plan_runs

CONFIG = TrainConfig(
    variant="half",
    epochs=3,
    learning_rate=5e-3,
    batch_size=8,
    micro_batch_size=2,
    dropout=0.0,
    max_new_tokens=6,
    dtype="float32",
)
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_trainable_study(tmp_path_factory.mktemp("study"), tiny_model("llama", spread=0.1), tiny_tokenizer())


CASES: dict[str, dict[str, Any]] = {
    **{f"zero-{stage}": {"zero_stage": stage} for stage in STAGES},
    "padded": {"packing": False},
    "activation-checkpointing": {"activation_checkpointing": True, "zero_stage": 2},
    "optimizer-offloaded": {"offload": "optimizer", "zero_stage": 2},
    "all-offloaded": {"offload": "all", "zero_stage": 3},
    "micro-batches": {"micro_batch_size": 2},
    "attention": {"trainable": "attention", "zero_stage": 1},
    "ffn-zero-3": {"trainable": "ffn", "zero_stage": 3},
    "lora": {"lora_rank": 4, "zero_stage": 2},
    "lora-zero-3": {"lora_rank": 4, "zero_stage": 3},
    "distilled": {"distill_weight": 1.0},
    "distilled-zero-3": {"distill_weight": 1.0, "zero_stage": 3, "activation_checkpointing": True},
    "lora-distilled": {"lora_rank": 4, "distill_weight": 2.0, "distill_temperature": 1.0},
    "replayed": {"replay_known": 5},
    "bfloat16": {"dtype": "bfloat16", "loss_of_all": True},
    "weighted": {"micro_batch_size": 2, "zero_stage": 3, "distill_weight": 1.0},
    "weighted-lora": {"lora_rank": 4},
    "weights-of-1": {"micro_batch_size": 2},
    "weights-of-0": {"micro_batch_size": 2, "zero_stage": 2},
    "without-unknown": {"micro_batch_size": 2, "zero_stage": 2},
}
COVERED = ("zero-1", "zero-2", "zero-3", "lora", "distilled", "weighted-lora")
"""Cases whose settings all occur in other cases; they run with the slow tests."""
QUICK = tuple(name for name in CASES if name not in COVERED)
CHANGED_ROWS: dict[str, Callable[[list[dict]], list[dict]]] = {
    "weighted": lambda rows: [row | {"weight": (0.25, 1.0, 3.0)[i % 3]} for i, row in enumerate(rows)],
    "weighted-lora": lambda rows: [row | {"weight": (0.25, 1.0, 3.0)[i % 3]} for i, row in enumerate(rows)],
    "weights-of-1": lambda rows: [row | {"weight": 1.0} for row in rows],
    "weights-of-0": lambda rows: [row | {"weight": float(row["category"] != "Unknown")} for row in rows],
    "without-unknown": lambda rows: [row for row in rows if row["category"] != "Unknown"],
}
"""The training rows of these cases, made from those of the other cases."""
NUMBERS = replace(CONFIG, epochs=2, micro_batch_size=4, keep_checkpoints="last", warmup_steps=2, schedule="linear")


@cache
def reference_run(study: Folder, config: TrainConfig) -> ReferenceRun:
    """The same settings in a plain PyTorch loop."""
    import torch

    model, teacher, tokenizer = tiny_model("llama", spread=0.1), tiny_model("llama", spread=0.1), tiny_tokenizer()
    if config.lora_rank:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(derive_seed(config.seed, "lora") >> 1)
        rank = config.lora_rank
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        run = train_reference(study, config, adapted, teacher, tokenizer)
        merged = adapted.merge_and_unload()
        return ReferenceRun(run.losses, {name: value.detach().numpy() for name, value in merged.named_parameters()})
    return train_reference(study, config, model, teacher, tokenizer)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, tuple(CASES)), marks=pytest.mark.slow, id="1 worker, all"),
        pytest.param((2, QUICK), id="2 workers"),
        pytest.param((2, tuple(CASES)), marks=pytest.mark.slow, id="2 workers, all"),
    ],
)
def cases(request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> "Cases":
    """All cases, trained in one worker group, because starting one takes longer than training."""
    path = tmp_path_factory.mktemp("cases")
    num_workers, names = request.param
    configs = {name: replace(NUMBERS, num_workers=num_workers, **CASES[name]) for name in names}
    studies = {
        name: write_trainable_study(path / name, tiny_model("llama", spread=0.1), tiny_tokenizer()) for name in names
    }
    for name in set(names) & CHANGED_ROWS.keys():
        folder = studies[name].child("variants")
        rows = CHANGED_ROWS[name](folder.read_table("half.parquet").to_pylist())
        folder.write_table("half.parquet", pa.Table.from_pylist(rows))
    plans = {name: plan_runs(studies[name], {"half-seed0": config}) for name, config in configs.items()}
    run_cases(studies, plans, path)
    return Cases(configs, studies)


@dataclass(frozen=True)
class Cases:
    """Trained cases by name, and their studies."""

    configs: dict[str, TrainConfig]
    studies: dict[str, Folder]


def test_all_settings_train_like_plain_pytorch(study: Folder, cases: Cases) -> None:
    """12 rows in batches of 8: the last batch of an epoch is smaller, and some micro batches of it are empty."""
    from safetensors.numpy import load_file

    initial = dict(tiny_model("llama", spread=0.1).named_parameters())
    exact = [name for name, config in cases.configs.items() if config.dtype == "float32"]
    assert len(exact) == len(cases.configs) - 1
    for name in exact:
        config, copy = cases.configs[name], cases.studies[name]
        expected = reference_run(
            copy if name in CHANGED_ROWS else study,
            replace(config, num_workers=1, zero_stage=0, offload="none", micro_batch_size=None),
        )
        run = copy.child("runs", "half-seed0")
        epochs = run.read_table("epochs.parquet").to_pylist()
        losses = [row["loss"] for row in epochs if (row["split"], row["category"]) == ("train", "all")]
        assert losses == pytest.approx(expected.losses, rel=1e-4), name
        weights = load_file(Path(run.local_path) / "checkpoint-last/model.safetensors")
        for key, value in weights.items():
            np.testing.assert_allclose(value, expected.weights[key], atol=1e-4, err_msg=f"{name}, {key}")
        changed = {key for key, value in weights.items() if np.abs(value - initial[key].detach().numpy()).max() > 1e-3}
        assert changed == {key for key in weights if is_trained(key, config)}, name
        if config.identity() == NUMBERS.identity() and name not in CHANGED_ROWS:
            assert_answers_agree(cases.studies["zero-0"], copy, name)
    check_adapter(cases.studies["lora-zero-3"], tiny_model("llama", spread=0.1))


@pytest.mark.parametrize(("first", "second"), [("weights-of-1", "micro-batches"), ("weights-of-0", "without-unknown")])
def test_weights_1_and_0_equal_unweighted_training_bit_for_bit(cases: Cases, first: str, second: str) -> None:
    """Weights of 1 change nothing, and a set with rows of weight 0 trains as the set without these rows."""
    folders = [cases.studies[name].child("runs", "half-seed0") for name in (first, second)]
    weights, expected = (folder.read_bytes("checkpoint-last/model.safetensors") for folder in folders)
    assert weights == expected
    counts = [read_manifest(folder).counts["tokens_now"] for folder in folders]
    assert counts[0] == counts[1]


def test_rows_of_weight_0_are_evaluated_and_left_out_of_the_training_loss(cases: Cases) -> None:
    (trained, without) = (
        cases.studies[name].child("runs", "half-seed0") for name in ("weights-of-0", "without-unknown")
    )
    losses = [
        {
            row["category"]: row["loss"]
            for row in run.read_table("epochs.parquet").to_pylist()
            if row["split"] == "train"
        }
        for run in (trained, without)
    ]
    assert losses[0]["Unknown"] > 0
    assert losses[0]["all"] == pytest.approx(losses[1]["all"], rel=1e-6)


def test_bfloat16_updates_correlate_with_float32(study: Folder, cases: Cases) -> None:
    from safetensors.torch import load_file

    run = cases.studies["bfloat16"].child("runs", "half-seed0")
    initial = dict(tiny_model("llama", spread=0.1).named_parameters())
    weights = load_file(Path(run.local_path) / "checkpoint-last/model.safetensors")
    expected = reference_run(study, replace(NUMBERS, micro_batch_size=None)).weights
    updates = [
        np.concatenate([(np.asarray(w[key]) - initial[key].detach().numpy()).ravel() for key in weights])
        for w in ({key: value.float().numpy() for key, value in weights.items()}, expected)
    ]
    assert np.corrcoef(*updates)[0, 1] > 0.95
    rows = run.read_table("epochs.parquet").to_pylist()
    assert all(row["loss"] > 0 for row in rows)
    assert {row["split"] for row in rows} == {"train", "dev", "test", "ood"}


def assert_answers_agree(first_study: Folder, second_study: Folder, name: str) -> None:
    """Answers are equal however the model is sharded; there are no ties here."""
    for epoch in range(1, NUMBERS.epochs + 1):
        path = f"predictions/epoch-{epoch:03d}.parquet"
        first, second = (
            study.child("runs", "half-seed0").read_table(path).to_pydict() for study in (first_study, second_study)
        )
        assert first["text"] == second["text"], f"{name}, epoch {epoch}"
        assert len(set(first["text"])) > 1


def check_adapter(study: Folder, base: Any) -> None:
    """The base model with peft's adapter equals the merged checkpoint."""
    from peft import PeftModel
    from safetensors.numpy import load_file

    folder = Path(study.child("runs", "half-seed0", "checkpoint-last").local_path)
    adapted = PeftModel.from_pretrained(base, str(folder / "lora")).merge_and_unload()
    merged = load_file(folder / "model.safetensors")
    for key, value in adapted.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), merged[key], atol=1e-6, err_msg=key)


def is_trained(key: str, config: TrainConfig) -> bool:
    linear = ".self_attn." in key or ".mlp." in key
    if config.trainable != "all":
        return {"attention": ".self_attn.", "ffn": ".mlp."}[config.trainable] in key
    return linear or not config.lora_rank


def run_cases(studies: dict[str, Folder], plans: dict[str, list[RunPlan]], tmp_path: Path) -> None:
    """Train the runs of every study, one after another in the same workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    num_workers = next(iter(plans.values()))[0].config.num_workers

    def work() -> None:
        import ray.train

        from tuning.trainer import WorkerContext
        from tuning.worker import train_runs

        context = ray.train.get_context()
        rank = context.get_world_rank()
        worker = WorkerContext(rank=rank, local_rank=rank, num_workers=num_workers, device="cpu")
        for name, runs in plans.items():
            train_runs(studies[name], runs, worker, lambda metrics, state: None)

    TorchTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=num_workers),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name=f"cases-{num_workers}-{len(plans)}", storage_path=str(tmp_path / "ray")),
    ).fit()


ALONE = replace(CONFIG, epochs=4, learning_rate=1e-2, dropout=0.1)


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Manifest]:
    """A study with one training, which started in a folder with a file of a killed training."""
    study = write_trainable_study(
        tmp_path_factory.mktemp("finished"), tiny_model("llama", spread=0.1), tiny_tokenizer()
    )
    study.child("runs", "half-seed0", "predictions").write_bytes("epoch-005.parquet", b"half")
    return study, finetune(study, ALONE)


def test_finished_run_is_consistent_and_not_repeated(finished: tuple[Folder, Manifest]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    study, manifest = finished
    run = study.child("runs", "half-seed0")
    epochs = run.read_table("epochs.parquet").to_pylist()
    assert {row["epoch"] for row in epochs} == set(range(1, ALONE.epochs + 1))
    assert run.child("predictions").names() == [f"epoch-{epoch:03d}.parquet" for epoch in range(1, ALONE.epochs + 1)]
    for epoch in range(1, ALONE.epochs + 1):
        predictions = run.child("predictions").read_table(f"epoch-{epoch:03d}.parquet").to_pylist()
        for row in epochs:
            if row["epoch"] == epoch:
                chosen = [
                    p for p in predictions if p["split"] == row["split"] and row["category"] in ("all", p["category"])
                ]
                assert (row["num"], row["num_correct"]) == (len(chosen), sum(p["hit"] for p in chosen))
                assert (row["loss"] is None) == (row["split"] != "train")
    check_hits(study, predictions)
    dev = [row["num_correct"] / row["num"] for row in epochs if (row["split"], row["category"]) == ("dev", "all")]
    assert manifest.counts["best_dev_epoch"] == dev.index(max(dev)) + 1
    assert manifest.counts["dropouts"] == ["LlamaAttention.attention_dropout"]
    for name in ("checkpoint-best", "checkpoint-last"):
        folder = run.child(name).local_path
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.attention_dropout == 0.0
        epoch = ALONE.epochs if name == "checkpoint-last" else dev.index(max(dev)) + 1
        check_generates(model, tokenizer, study, run, epoch)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(run.local_path).rglob("*"))
    assert finetune(study, ALONE) == manifest
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(run.local_path).rglob("*")) == before
    with pytest.raises(StudyError, match="other inputs or settings"):
        finetune(study, replace(ALONE, learning_rate=1e-4))


def check_hits(study: Folder, predictions: list[dict]) -> None:
    from slick.datasets import read_questions

    answers = {row["question_id"]: row["answers"] for row in read_questions(study).to_pylist()}
    for row in predictions:
        assert row["hit"] == is_hit(row["text"], answers[row["question_id"]]), row


def check_generates(model, tokenizer, study: Folder, run: Folder, epoch: int) -> None:
    """The stored predictions equal transformers' `generate` on the stored checkpoint."""
    from slick.datasets import read_questions
    from slick.prompts import closed_book_prompt

    questions = {row["question_id"]: row["question"] for row in read_questions(study).to_pylist()}
    for row in run.child("predictions").read_table(f"epoch-{epoch:03d}.parquet").to_pylist()[::3]:
        ids = tokenizer(closed_book_prompt(questions[row["question_id"]]), return_tensors="pt")["input_ids"]
        generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        text = tokenizer.decode(generated, skip_special_tokens=True).split("\n", 1)[0].strip()
        assert text == row["text"], row


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_training_is_equal_alone_and_in_a_list(finished: tuple[Folder, Manifest], tmp_path: Path) -> None:
    alone, listed = finished[0], write_trainable_study(tmp_path, tiny_model("llama", spread=0.1), tiny_tokenizer())
    configs = {
        "idk-050-seed1": replace(ALONE, variant="idk-050", seed=1),
        "half-seed0": ALONE,
        "needed-seed0": replace(ALONE, evaluate="needed", evaluate_stride=3),
    }
    with scratch_folder(listed, "list") as storage:
        train_in_worker_group(listed, plan_runs(listed, configs), 0, storage, "list")
    for name in ("epochs.parquet", "predictions/epoch-004.parquet", "checkpoint-last/model.safetensors"):
        assert listed.child("runs", "half-seed0").read_bytes(name) == alone.child("runs", "half-seed0").read_bytes(name)
    relabelled = listed.child("runs", "idk-050-seed1").read_table("predictions/epoch-004.parquet").to_pylist()
    unknown = [row for row in relabelled if row["split"] == "train" and row["category"] == "Unknown"]
    assert unknown
    assert all(row["hit"] == is_hit(row["text"], ["I don't know"]) for row in unknown)
    check_needed_evaluations(alone.child("runs", "half-seed0"), listed.child("runs", "needed-seed0"))


def check_needed_evaluations(complete: Folder, partial: Folder) -> None:
    """The same training, with the test rows of the best, the third and the last epoch only, has the same bits there."""
    counts = [require_manifest(run, "finetune").counts for run in (complete, partial)]
    missing = counts[1]["epochs_without_test_rows"]
    assert missing
    assert not {counts[0]["best_dev_epoch"], 3, 4} & set(missing)
    assert "epochs_without_test_rows" not in counts[0]
    num_test = 20
    assert counts[1]["rows_evaluated_now"] == counts[0]["rows_evaluated_now"] - num_test * len(missing)
    for epoch in range(1, ALONE.epochs + 1):
        name = f"epoch-{epoch:03d}.parquet"
        rows, expected = (run.child("predictions").read_table(name).to_pylist() for run in (partial, complete))
        if epoch in missing:
            expected = [row for row in expected if row["split"] in ("train", "dev")]
        assert rows == expected
    epochs = {json.dumps(row | {"run_id": ""}) for row in partial.read_table("epochs.parquet").to_pylist()}
    all_epochs = [row | {"run_id": ""} for row in complete.read_table("epochs.parquet").to_pylist()]
    assert epochs == {
        json.dumps(row) for row in all_epochs if row["split"] in ("train", "dev") or row["epoch"] not in missing
    }
    for name in ("right_to_wrong.parquet", "checkpoint-last/model.safetensors", "checkpoint-best/model.safetensors"):
        assert partial.read_bytes(name) == complete.read_bytes(name)
    assert {row["split"] for row in partial.read_table("rows.parquet").to_pylist()} == {"train", "dev"}


@pytest.mark.parametrize("packing", [True, False])
def test_loss_covers_the_answer_only(study: Folder, packing: bool) -> None:
    """The loss is the mean negative log-probability of answer tokens; prompt tokens have no loss."""
    import torch

    from tuning.data import micro_batches, read_rows
    from tuning.evaluate import encode_rows
    from tuning.forward import ForwardRunner

    model = tiny_model("llama", spread=0.1)
    examples = encode_rows(read_rows(study, "half")["train"], tiny_tokenizer())[:4]
    (micro,) = micro_batches(
        examples, rank=0, num_workers=1, micro_batch_size_per_worker=4, gradient_accumulation_steps=1
    )
    forward = ForwardRunner(model, 0, packing=packing)
    with forward.rows(list(micro.examples)) as rows:
        logits = forward.answer_logits(rows)
    loss = micro.factors[0] * float(torch.nn.functional.cross_entropy(logits, rows.labels_K, reduction="sum"))
    expected = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        log_probabilities = model(ids).logits[0].log_softmax(dim=1)
        first = len(example.prompt_ids)
        expected += [-float(log_probabilities[first + i - 1, token]) for i, token in enumerate(example.answer_ids)]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_invalid_trainings_are_refused_before_any_worker_starts(study: Folder, tmp_path: Path) -> None:
    with pytest.raises(VariantError, match=r"no variant 'unknown-050'; it has half, known, idk-050"):
        plan_runs(study, {"x": replace(CONFIG, variant="unknown-050")})
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(VariantError, match="--allow-other-model"):
        plan_runs(study, {"x": replace(CONFIG, model=str(tmp_path / "other"))})
    allowed = replace(CONFIG, model=str(tmp_path / "other"), allow_other_model=True)
    assert len(plan_runs(study, {"x": allowed})) == 1
    with pytest.raises(SettingsError, match="no dev questions"), tempfile.TemporaryDirectory() as path:
        plan_runs(write_trainable_study(path, tiny_model("llama"), tiny_tokenizer(), dev=0), {"x": CONFIG})
    assert read_manifest(study.child("runs", "half-seed0")) is None


@pytest.mark.usefixtures("ray_cluster")
def test_user_errors_are_reported_and_not_retried(tmp_path: Path) -> None:
    """With two workers: the group fails once, and after its restart the workers return immediately."""
    study = write_trainable_study(tmp_path, tiny_model("llama", spread=0.1), tiny_tokenizer())
    rows = study.child("variants").read_table("known.parquet").to_pylist()
    rows[0]["target"] = ""
    study.child("variants").write_table("known.parquet", pa.Table.from_pylist(rows))
    with pytest.raises(SlickError, match=r"row 0 \(prompt .*no tokens in its prompt or target") as error:
        finetune(study, replace(CONFIG, variant="known", num_workers=2))
    assert "Traceback" not in str(error.value)
    assert not study.child("runs", "known-seed0").exists("manifest.json")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_full_disk_ends_a_training_which_resumes_with_free_space(
    small_disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    small_disk.set_free_space(2**14)
    study = write_trainable_study(small_disk.path / "study", tiny_model("llama", spread=0.1), tiny_tokenizer())
    small_disk.set_free_space(100)  # enough to begin, too little for a state or a checkpoint
    config = replace(CONFIG, state_share=1.0, max_failures=3)
    before = temporary_folders()
    with pytest.raises(StudyError, match="No space left on device") as caught:
        finetune(study, config)
    message = str(caught.value)
    assert "\n" not in message
    assert str(small_disk.path) in message
    # Folders of other runs on this machine may appear and disappear; only ours could remain.
    wait_for(lambda: not temporary_folders() - before, lambda: str(temporary_folders() - before))
    assert not [name for name in small_disk.files() if name.endswith(".part")]
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    small_disk.set_free_space(2**14)
    assert finetune(study, config).counts["epochs"] == config.epochs


def temporary_folders() -> set[Path]:
    """Local folders that trainings write before the upload."""
    folder = Path(tempfile.gettempdir())
    return {path for kind in ("state", "checkpoint", "fetched") for path in folder.glob(f"slick-{kind}-*")}


def test_dead_workers_are_retried_and_user_errors_are_not() -> None:
    from ray.train import FailureConfig, WorkerGroupError
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

    from slick.errors import EngineError, ModelError
    from tuning.ray_trainer import LostWorkerError, find_user_error, progress_failure_policy

    def decide(*errors: Exception) -> object:
        policy = progress_failure_policy(FailureConfig(max_failures=1), lambda: 0)
        return policy.make_decision(WorkerGroupError("failed", dict(enumerate(errors))))

    lost = LostWorkerError("training the model failed: Connection reset by peer")
    assert decide(lost) == decide(RuntimeError("the worker died"), lost) == FailureDecision.RETRY
    assert decide(lost, ModelError("not finite")) == decide(EngineError("no memory")) == FailureDecision.RAISE
    assert find_user_error(WorkerGroupError("failed", {0: lost})) is lost, "after the last retry it is one message"
