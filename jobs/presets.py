"""Presets: complete settings by name.

`demo` builds a small model and runs on a laptop; `smoke` is a version of it that takes a minute; `paper` has the
paper's settings. Trainings, sweeps and studies also have `lora` (LoRA) and `large` (ZeRO stage 3). A preset is a
function without arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slick.annotation import AnnotateConfig
from slick.annotation.wording import WordingConfig
from slick.datasets import QuestionsConfig
from slick.report import ReportConfig
from slick.variants import VariantsConfig, variant_names
from slick.world import WorldConfig, smoke_world_config
from tuning.config import TrainConfig
from tuning.grid import GridConfig
from tuning.sweep import SweepConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """The settings of a study. `model`, `questions` and `seed` are copied to those of its steps."""

    model: str = ""
    """Hugging Face id, model folder or GGUF file; empty: build a world, that is questions and a model."""
    questions: str = ""
    """EntityQuestions folder or zip, or a Parquet, JSONL or CSV file; without a model, the facts of the world."""
    seed: int = 0
    """Seed of all random draws: world, exemplar sets, samples, variants, trainings."""
    experiments: tuple[str, ...] = ()
    """Experiments to run, such as `idk,p_true`; only the variants that they need are trained. Later runs may add more.
    Empty: all experiments of the paper. `slick study --help` lists them."""
    embedded: bool = True
    """Build a world if no model is given."""
    world: WorldConfig = field(default_factory=WorldConfig)
    prepare: QuestionsConfig = field(default_factory=QuestionsConfig)
    """The questions step."""
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    variants: VariantsConfig = field(default_factory=VariantsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    wording: WordingConfig = field(default_factory=WordingConfig)
    """The wording step, of the experiment `wording`."""
    report: ReportConfig = field(default_factory=ReportConfig)


def demo_annotation() -> AnnotateConfig:
    """The paper's 10 x (1 + 16) answers with at most 12 tokens, which is enough for a world.

    Batches are large, since overhead dominates the time of so small a model.
    """
    config = AnnotateConfig(repeats_per_relation=4, controls_per_relation=4, batch_questions=160, batches_per_file=1)
    return replace(config, sampling=replace(config.sampling, max_new_tokens=12))


def paper_annotation() -> AnnotateConfig:
    """The paper's 10 x (1 + 16) answers, and a few hundred more questions that measure the stability of labels."""
    return AnnotateConfig(repeats_per_relation=20, controls_per_relation=20)


def demo_training() -> TrainConfig:
    """Fewer epochs and a higher learning rate than for a large model.

    At half this rate, only 60 % of the rows of D_Unknown are fitted by the last epoch; at this rate, all are.
    """
    return TrainConfig(epochs=10, learning_rate=2.2e-4, batch_size=32, dropout=0.0, max_new_tokens=12)


def demo_variants() -> VariantsConfig:
    """The paper's 17 variants, and one whose Unknown rows are concentrated in a few relations."""
    return VariantsConfig(concentrated_shares=(0.5,))


def demo_sweep() -> SweepConfig:
    """The paper's 17 runs, and the seven of E24 at ten times the learning rate, as in the paper.

    They are packed into one Ray Train run per core.
    """
    return SweepConfig(
        grid=GridConfig(
            epochs=(2, 4, 6, 8, 10),
            policies=("fixed", "best_dev", "patience(3)"),
            axes=("learning_rate=2.2e-4,2.2e-3 if variant=unknown-*",),
        ),
        train=demo_training(),
        trajectories_per_trial=None,
    )


def demo_variants_sweep() -> SweepConfig:
    """Like `demo_sweep`, for every variant of the demo. In a study the experiments determine the variants."""
    config = demo_sweep()
    return replace(config, grid=replace(config.grid, variants=variant_names(demo_variants())))


def smoke_variants() -> VariantsConfig:
    """Five variants."""
    return VariantsConfig(unknown_shares=(0.0, 0.5, 1.0), known_shares=(0.5,), natural=False, single_categories=False)


def smoke_sweep() -> SweepConfig:
    """Few variants and epochs: every part of the code runs, and no finding is expected to hold."""
    return replace(
        demo_sweep(),
        grid=GridConfig(epochs=(2, 3), policies=("fixed", "best_dev", "patience(1)")),
        train=replace(demo_training(), epochs=3),
        trajectories_per_trial=None,
    )


def paper_questions() -> QuestionsConfig:
    """The filter that gives the totals of the paper's Tables 3-5."""
    return QuestionsConfig(filter="paper")


def paper_training() -> TrainConfig:
    """50 epochs, learning rate 1e-5, batch 128, dropout 0.05 (arXiv:2405.05904, appendix E; its later version also
    tries 1e-4: `--learning-rate 1e-4`).
    """
    return TrainConfig(epochs=50, learning_rate=1e-5, batch_size=128, dropout=0.05)


def lora_training() -> TrainConfig:
    """The paper's training with LoRA of rank 16 on all linear layers, at ten times the learning rate.

    Only LoRA's weights have gradients and optimizer states; a model of 8 B parameters takes 16 GB in bfloat16.
    """
    return replace(
        paper_training(), lora_rank=16, learning_rate=1e-4, dtype="bfloat16", zero_stage=2, micro_batch_size=16
    )


def large_training() -> TrainConfig:
    """The paper's training for models of 1 B to 8 B parameters on 1 to 8 GPUs, sharded by ZeRO stage 3.

    A parameter takes 16 bytes over all GPUs: 8 B need 128 GB. `--offload optimizer` keeps 12 of the 16 bytes in CPU
    memory.
    """
    return replace(
        paper_training(),
        dtype="bfloat16",
        zero_stage=3,
        num_workers=8,
        min_workers=1,
        micro_batch_size=16,
        activation_checkpointing=True,
    )


def paper_sweep() -> SweepConfig:
    """The paper's 17 runs, evaluated at 10 to 50 epochs and at the best dev epoch."""
    return SweepConfig(
        grid=GridConfig(epochs=(10, 20, 30, 40, 50), policies=("fixed", "best_dev", "patience(5)")),
        train=paper_training(),
    )


def lora_sweep() -> SweepConfig:
    """The paper's 17 runs with LoRA."""
    return replace(paper_sweep(), train=lora_training())


def large_sweep() -> SweepConfig:
    """The paper's 17 runs of a model larger than one GPU."""
    return replace(paper_sweep(), train=large_training())


def demo_study() -> StudyConfig:
    """A study on a small model with planted facts; minutes on a laptop."""
    return StudyConfig(annotate=demo_annotation(), variants=demo_variants(), sweep=demo_sweep())


def smoke_study() -> StudyConfig:
    """A small version of the demo; about a minute."""
    return StudyConfig(
        world=smoke_world_config(), annotate=demo_annotation(), variants=smoke_variants(), sweep=smoke_sweep()
    )


def paper_study() -> StudyConfig:
    """The paper's settings for a given model and questions."""
    return StudyConfig(embedded=False, prepare=paper_questions(), annotate=paper_annotation(), sweep=paper_sweep())


def small_real_questions() -> QuestionsConfig:
    """At most 160 train and test questions of each relation, and 48 dev questions, 40 of which may be exemplars."""
    return QuestionsConfig(filter="paper", limit_per_relation=160, dev_limit_per_relation=48)


def small_real_study() -> StudyConfig:
    """The paper's study of a model of 100 to 400 M parameters, sized for some hours on two CPU cores.

    A relation enters the fine-tuning sets if at least 8 of its train questions are Known and 8 are Unknown; a model of
    this size knows too little for sets of a single category. Three shares are trained with a second seed, and with four
    times the learning rate. Test questions are evaluated at the epochs that results need.
    """
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    return StudyConfig(
        embedded=False,
        prepare=small_real_questions(),
        annotate=AnnotateConfig(dtype="bfloat16", repeats_per_relation=8, controls_per_relation=8),
        variants=VariantsConfig(
            unknown_shares=shares,
            single_categories=False,
            size_rule="pools",
            min_per_relation=8,
            drop_empty_relations=True,
        ),
        sweep=SweepConfig(
            grid=GridConfig(
                further_seeds=(1,),
                epochs=(3, 6, 9, 12),
                policies=("fixed", "best_dev", "patience(3)"),
                axes=(
                    "learning_rate=5e-5,2e-4 if variant=unknown-*00",
                    "learning_rate=5e-5,2e-4 if variant=unknown-050",
                ),
            ),
            train=TrainConfig(
                epochs=12,
                learning_rate=5e-5,
                batch_size=16,
                dropout=0.0,
                dtype="bfloat16",
                evaluate="needed",
                evaluate_stride=3,
            ),
        ),
    )


def lora_study() -> StudyConfig:
    """The paper's study, with trainings of LoRA."""
    return replace(paper_study(), sweep=lora_sweep())


def large_study() -> StudyConfig:
    """The paper's study of a model larger than one GPU."""
    return replace(paper_study(), sweep=large_sweep())


WORLD: dict[str, Callable[[], WorldConfig]] = {"demo": WorldConfig, "smoke": smoke_world_config}
QUESTIONS: dict[str, Callable[[], QuestionsConfig]] = {
    "demo": QuestionsConfig,
    "smoke": QuestionsConfig,
    "paper": paper_questions,
}
ANNOTATE: dict[str, Callable[[], AnnotateConfig]] = {  # a study scores P(True) if its experiments need it
    "demo": lambda: replace(demo_annotation(), p_true=True),
    "smoke": lambda: replace(demo_annotation(), p_true=True),
    "paper": lambda: replace(paper_annotation(), p_true=True),
}
VARIANTS: dict[str, Callable[[], VariantsConfig]] = {
    "demo": demo_variants,
    "smoke": smoke_variants,
    "paper": VariantsConfig,
}
FINETUNE: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo_training,
    "smoke": lambda: replace(demo_training(), epochs=3),
    "paper": paper_training,
    "lora": lora_training,
    "large": large_training,
}
SWEEP: dict[str, Callable[[], SweepConfig]] = {
    "demo": demo_variants_sweep,
    "smoke": smoke_sweep,
    "paper": paper_sweep,
    "lora": lora_sweep,
    "large": large_sweep,
}
WORDING: dict[str, Callable[[], WordingConfig]] = dict.fromkeys(("demo", "smoke", "paper"), WordingConfig)
REPORT: dict[str, Callable[[], ReportConfig]] = {"demo": ReportConfig, "smoke": ReportConfig, "paper": ReportConfig}
STUDY: dict[str, Callable[[], StudyConfig]] = {
    "demo": demo_study,
    "smoke": smoke_study,
    "paper": paper_study,
    "small-real": small_real_study,
    "lora": lora_study,
    "large": large_study,
}
STEP_PRESETS: dict[str, Mapping[str, Callable[[], Any]]] = {
    "study": STUDY,
    "world": WORLD,
    "questions": QUESTIONS,
    "annotate": ANNOTATE,
    "variants": VARIANTS,
    "finetune": FINETUNE,
    "sweep": SWEEP,
    "wording": WORDING,
    "report": REPORT,
}
"""Step -> preset name -> settings."""
