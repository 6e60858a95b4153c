"""Experiments: named groups of variants and analyses, so that a study can reproduce a part of the paper. Pure.

An experiment declares the variants that it trains, by the shares of the `VariantsConfig`, and the required parts of
the annotation. Variants that several experiments need are trained once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slick.errors import SettingsError
from slick.variants.config import VariantsConfig, variant_specs
from slick.variants.sampling import VariantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRequirement:
    """Variants that an experiment trains."""

    label: str
    """Name of the variants in messages, as in the paper."""
    matches: Callable[[VariantSpec, VariantsConfig], bool]
    flag: str
    """A flag that draws such a variant."""
    optional: bool = False
    """Whether the experiment runs without it, in part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A named group of variants and analyses."""

    name: str
    description: str
    exhibits: str = ""
    """Its tables and figures in the paper; empty if it is not in the paper."""
    requirements: tuple[VariantRequirement, ...] = ()
    """Variants to train; empty: none."""
    p_true: bool = False
    """Whether it needs P(True) scores."""
    needs_all_answers: bool = False
    """Whether it needs all answers of the annotation, which only `--mode full` stores."""
    scored_answers: bool = False
    """Whether it needs the log-probability and P(True) of stored answers."""
    needs_repeats: bool = False
    """Whether it needs questions that are annotated twice."""
    wording: bool = False
    """Whether it needs answers to questions in a second wording."""
    world: bool = False
    """Whether it needs planted facts."""
    on_request: bool = False
    """Whether a study without `--experiments` leaves it out."""
    shares_setting: str = ""
    """Setting of the `VariantsConfig` that is set to (0.5,) if the experiment is requested and the setting is empty."""
    further_settings: tuple[str, ...] = ()
    """Training settings that are added to the grid if the experiment is requested, as `GridConfig.further_settings`."""


def _has_kind(kind: str) -> Callable[[VariantSpec, VariantsConfig], bool]:
    return lambda spec, config: spec.kind == kind


def _has_percent_unknown(*percents: int) -> Callable[[VariantSpec, VariantsConfig], bool]:
    """Variants of the sweep with these percentages of Unknown rows."""
    return lambda spec, config: spec.kind == "unknown" and spec.percent_unknown in percents


def _has_shares_of(name: str, kind: str = "unknown") -> Callable[[VariantSpec, VariantsConfig], bool]:
    """Variants of a kind, of the sweep by default, with the shares of the setting `name`."""
    return lambda spec, config: (
        spec.kind == kind and spec.percent_unknown in {round(100 * share) for share in getattr(config, name)}
    )


def _has_half(kind: str) -> Callable[[VariantSpec, VariantsConfig], bool]:
    """The variant of a kind at a share of 50 %."""
    return lambda spec, config: (spec.kind, spec.percent_unknown) == (kind, 50)


SWEEP_SETS = VariantRequirement(
    label="D at shares of Unknown rows", matches=_has_kind("unknown"), flag="--variants.unknown-shares 0 0.5 1"
)
KNOWN_ONLY_SETS = VariantRequirement(
    label="D_Known", matches=_has_kind("known"), flag="--variants.known-shares 0.5", optional=True
)
HALF_UNKNOWN_SET = VariantRequirement(
    label="D with half Unknown rows", matches=_has_percent_unknown(50), flag="--variants.unknown-shares 0.5"
)
CONCENTRATED_SETS = VariantRequirement(
    label="concentrated sets", matches=_has_kind("concentrated"), flag="--variants.concentrated-shares 0.5"
)
NATURAL_SET = VariantRequirement(label="D_Natural", matches=_has_kind("natural"), flag="--variants.natural")

REMEDY_SETTINGS = tuple(
    f"{settings} if variant=unknown-050"
    for settings in (
        "distill_weight=1.0",
        "replay_known=2*batch_size",
        "trainable=attention",
        "trainable=ffn",
        "lora_rank=8;learning_rate=10*learning_rate",
    )
)
"""Self-distillation with the weight of arXiv:2604.15574, two batches of replayed Known rows (KnownPatch,
arXiv:2511.02626, states "a small number"), a part of the layers, and LoRA at ten times the learning rate, since LoRA's
best rate is about ten times that of full fine-tuning (https://thinkingmachines.ai/blog/lora/)."""

_EXPERIMENTS = (
    Experiment(
        name="counts",
        description="Questions by relation and category.",
        exhibits="Tables 3-5",
    ),
    Experiment(
        name="unknown_ratio",
        description="Accuracy against the share of Unknown rows, with these rows and without them (D and D_Known).",
        exhibits="Figures 3a, 3b",
        requirements=(SWEEP_SETS, KNOWN_ONLY_SETS),
    ),
    Experiment(
        name="fit",
        description="Epochs until Known and Unknown rows are fitted, and rows fitted at early stopping.",
        exhibits="Figures 1, 4, 6",
        requirements=(SWEEP_SETS, HALF_UNKNOWN_SET),
    ),
    Experiment(
        name="linear_model",
        description="Effect of fitted Known and Unknown rows on test accuracy, in and out of distribution.",
        exhibits="Table 1",
        requirements=(SWEEP_SETS,),
    ),
    Experiment(
        name="categories",
        description="Fine-tuning on one category, and test accuracy by category.",
        exhibits="Tables 2, 7",
        requirements=(
            VariantRequirement(
                label="D_HighlyKnown, D_MaybeKnown, D_WeaklyKnown",
                matches=_has_kind("category"),
                flag="--variants.single-categories",
            ),
            VariantRequirement(
                label="D_Unknown", matches=_has_percent_unknown(100), flag="--variants.unknown-shares 1"
            ),
            NATURAL_SET,
        ),
    ),
    Experiment(
        name="ood",
        description="Accuracy on relations that are not in the fine-tuning data.",
        exhibits="Figure 7",
        requirements=(SWEEP_SETS,),
    ),
    Experiment(
        name="p_true",
        description="Prediction of correct answers by the categories, by P(True) and by fewer prompts.",
        exhibits="Figure 5",
        requirements=(NATURAL_SET,),
        p_true=True,
        needs_all_answers=True,
    ),
    Experiment(
        name="idk",
        description="Unknown rows relabelled as “I don't know”.",
        exhibits="Table 8",
        requirements=(
            VariantRequirement(label="D_IDK", matches=_has_kind("idk"), flag="--variants.idk-shares 0.5"),
            VariantRequirement(
                label="D at the same share", matches=_has_shares_of("idk_shares"), flag="--variants.unknown-shares 0.5"
            ),
        ),
    ),
    Experiment(
        name="error_audit",
        description="Audit of answers that do not match the gold answers: wrong, or correct in other words.",
        exhibits="Table 6",
        needs_all_answers=True,
    ),
    Experiment(
        name="concentration",
        description="Unknown rows concentrated in a few relations, against the same number in all relations.",
        requirements=(
            CONCENTRATED_SETS,
            VariantRequirement(
                label="D at the same shares", matches=_has_shares_of("concentrated_shares"), flag=HALF_UNKNOWN_SET.flag
            ),
        ),
        shares_setting="concentrated_shares",
    ),
    Experiment(
        name="weights",
        description="Unknown rows with a lower weight in the loss, against full weight and against dropping them.",
        requirements=(
            VariantRequirement(
                label="weighted sets", matches=_has_kind("weighted"), flag="--variants.weighted-shares 0.5"
            ),
            VariantRequirement(
                label="D at the same shares", matches=_has_shares_of("weighted_shares"), flag=HALF_UNKNOWN_SET.flag
            ),
            VariantRequirement(
                label="D_Known at the same shares",
                matches=_has_shares_of("weighted_shares", "known"),
                flag=KNOWN_ONLY_SETS.flag,
                optional=True,
            ),
        ),
        shares_setting="weighted_shares",
    ),
    Experiment(
        name="remedies",
        description="Remedies: Unknown facts learned against HighlyKnown facts lost, and their cost.",
        requirements=(
            HALF_UNKNOWN_SET,
            VariantRequirement(
                label="D_Known at 50 %", matches=_has_half("known"), flag="--variants.known-shares 0.5", optional=True
            ),
            VariantRequirement(
                label="D_IDK at 50 %", matches=_has_half("idk"), flag="--variants.idk-shares 0.5", optional=True
            ),
            VariantRequirement(
                label="D weighted by P_Correct",
                matches=_has_half("p-correct"),
                flag="--variants.p-correct-shares 0.5",
            ),
        ),
        needs_all_answers=True,
        shares_setting="p_correct_shares",
        further_settings=REMEDY_SETTINGS,
        on_request=True,
    ),
    Experiment(
        name="forgetting",
        description="Answers that become wrong in training, and at which epoch.",
        requirements=(SWEEP_SETS, KNOWN_ONLY_SETS),
    ),
    Experiment(
        name="stability",
        description="How often a repeated annotation gives another category.",
        needs_repeats=True,
    ),
    Experiment(
        name="hidden",
        description="Unknown questions whose gold answer the model ranks correctly, although it never generates it.",
        needs_all_answers=True,
        scored_answers=True,
        on_request=True,
    ),
    Experiment(
        name="wording",
        description="Labels and learned facts in a second wording of the questions.",
        requirements=(HALF_UNKNOWN_SET,),
        wording=True,
        on_request=True,
    ),
    Experiment(
        name="popularity",
        description="Categories, and the harm of Unknown rows, against the popularity of subjects.",
        requirements=(
            VariantRequirement(
                label="D without Unknown rows", matches=_has_percent_unknown(0), flag="--variants.unknown-shares 0 1"
            ),
            VariantRequirement(
                label="D with half or nothing else", matches=_has_percent_unknown(50, 100), flag=SWEEP_SETS.flag
            ),
        ),
    ),
    Experiment(
        name="planted",
        description="Categories against the known strength of planted facts: how accurate the labels are.",
        world=True,
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in _EXPERIMENTS}
PAPER_EXPERIMENTS = tuple(experiment.name for experiment in _EXPERIMENTS if experiment.exhibits)
"""The default experiments of a study: those of the paper."""


def parse_experiment_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of experiments, separate or joined by commas, without duplicates and in the order of `EXPERIMENTS`.

    Raises:
        SettingsError: an experiment does not exist.

    >>> parse_experiment_names(["idk,p_true", "counts"])
    ('counts', 'p_true', 'idk')
    """
    names = {name for text in texts for name in text.replace(",", " ").replace("-", "_").split()}
    unknown = sorted(names - EXPERIMENTS.keys())
    if unknown:
        raise SettingsError(
            f"there is no experiment {', '.join(unknown)}; the experiments are {', '.join(PAPER_EXPERIMENTS)}, and "
            f"beyond the paper {', '.join(name for name in EXPERIMENTS if name not in PAPER_EXPERIMENTS)}"
        )
    return tuple(name for name in EXPERIMENTS if name in names)


def variants_for_experiments(names: Sequence[str], config: VariantsConfig) -> tuple[str, ...]:
    """The variants that the experiments train, without duplicates and in the order in which they are drawn."""
    requirements = [requirement for name in names for requirement in EXPERIMENTS[name].requirements]
    specs = variant_specs(config)
    return tuple(spec.name for spec in specs if any(needed.matches(spec, config) for needed in requirements))


def further_settings_for(names: Sequence[str]) -> tuple[str, ...]:
    """The further settings that the experiments train, without duplicates."""
    return tuple(dict.fromkeys(text for name in names for text in EXPERIMENTS[name].further_settings))


def missing_requirements(experiment: Experiment, config: VariantsConfig) -> list[VariantRequirement]:
    """Requirements of an experiment for which the settings draw no variant."""
    specs = variant_specs(config)
    return [
        requirement
        for requirement in experiment.requirements
        if not requirement.optional and not any(requirement.matches(spec, config) for spec in specs)
    ]
