"""Cost classes: trainings with the same time per row share one measurement."""

from tuning.axes import combinations
from tuning.config import TrainConfig
from tuning.grid import GridConfig, trajectories
from tuning.probe import cost_class, cost_class_labels


def class_labels(*axes: str) -> list[str]:
    grid = GridConfig(variants=("natural", "unknown-000"), seeds=(0, 1), epochs=(2, 5), axes=axes)
    runs = trajectories(grid, TrainConfig(), shared=False)
    classes = [cost_class(run.config(TrainConfig())) for run in runs]
    assert len(runs) == 2 * 2 * 2 * len(combinations(axes, TrainConfig()))
    return list(cost_class_labels(list(dict.fromkeys(classes))).values())


def test_settings_without_effect_on_cost_share_a_class() -> None:
    assert class_labels() == [""]
    assert class_labels("learning_rate=1e-5,1e-4", "schedule=constant,cosine", "dropout=0.05,0.2") == [""]


def test_settings_that_affect_cost_have_separate_classes() -> None:
    assert class_labels("lora_rank=0,8,64", "learning_rate=1e-5,1e-4") == ["lora_rank=0", "lora_rank=8", "lora_rank=64"]
    assert class_labels("dtype=float32,bfloat16", "batch_size=64,128 if dtype=bfloat16") == [
        "batch_size=128, dtype=float32",
        "batch_size=64, dtype=bfloat16",
        "batch_size=128, dtype=bfloat16",
    ]
    assert class_labels("distill_weight=0,0.5,1") == ["distill_weight=0", "distill_weight above 0"]
