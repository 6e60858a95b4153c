"""The experiments: named groups of fine-tuning sets and analyses, so that a study can be a part of the paper. Pure.

An experiment names what it needs: which fine-tuning sets are trained, and what the annotation must hold. Shares are
those of the `VariantsConfig`. Sets that several experiments need are trained once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slick.errors import SettingsError
from slick.variants.config import VariantsConfig, variant_specs
from slick.variants.sampling import VariantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRequirement:
    """Fine-tuning sets that an experiment trains."""

    label: str
    """In the paper's words."""
    matches: Callable[[VariantSpec, VariantsConfig], bool]
    flag: str
    """What draws such a set, where the settings draw none."""
    optional: bool = False
    """Without it a part of the experiment is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One named group of fine-tuning sets and analyses."""

    name: str
    description: str
    exhibits: str = ""
    """Those of the paper; empty for what goes beyond it."""
    requirements: tuple[VariantRequirement, ...] = ()
    """Empty: nothing is trained."""
    p_true: bool = False
    """Needs the annotation's P(True) scores."""
    needs_all_answers: bool = False
    """Needs every answer of the annotation, which `--mode full` alone keeps."""
    needs_repeats: bool = False
    """Needs questions that the annotation asked a second time."""
    world: bool = False
    """Needs planted facts."""


def _has_kind(kind: str) -> Callable[[VariantSpec, VariantsConfig], bool]:
    return lambda spec, config: spec.kind == kind


def _has_percent_unknown(*percents: int) -> Callable[[VariantSpec, VariantsConfig], bool]:
    """Sets of the sweep with these percentages of Unknown rows."""
    return lambda spec, config: spec.kind == "unknown" and spec.percent_unknown in percents


def _has_shares_of(name: str) -> Callable[[VariantSpec, VariantsConfig], bool]:
    """The sets of the sweep at the shares of another kind."""
    return lambda spec, config: (
        spec.kind == "unknown" and spec.percent_unknown in {round(100 * share) for share in getattr(config, name)}
    )


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

_EXPERIMENTS = (
    Experiment(
        name="counts",
        description="How many questions of each relation fall into each category.",
        exhibits="Tables 3-5",
    ),
    Experiment(
        name="unknown_ratio",
        description="Accuracy against the share of Unknown rows, with and without those rows (D and D_Known).",
        exhibits="Figures 3a, 3b",
        requirements=(SWEEP_SETS, KNOWN_ONLY_SETS),
    ),
    Experiment(
        name="fit",
        description="How fast Known and Unknown rows are fitted, and what is fitted at early stop.",
        exhibits="Figures 1, 4, 6",
        requirements=(SWEEP_SETS, HALF_UNKNOWN_SET),
    ),
    Experiment(
        name="linear_model",
        description="What one fitted row, Known or Unknown, does to test accuracy, in and out of distribution.",
        exhibits="Table 1",
        requirements=(SWEEP_SETS,),
    ),
    Experiment(
        name="categories",
        description="Fine-tuning on one category at a time, and what is then answered of each.",
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
        description="Accuracy on relations that nothing was fine-tuned on.",
        exhibits="Figure 7",
        requirements=(SWEEP_SETS,),
    ),
    Experiment(
        name="p_true",
        description="Categories against P(True) and against fewer prompts: who tells better what will be answered "
        "right.",
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
        description="What answers that do not match are: wrong, or right in other words.",
        exhibits="Table 6",
        needs_all_answers=True,
    ),
    Experiment(
        name="concentration",
        description="Unknown rows that fill whole relations, against as many spread over all.",
        requirements=(
            CONCENTRATED_SETS,
            VariantRequirement(
                label="D at the same shares", matches=_has_shares_of("concentrated_shares"), flag=HALF_UNKNOWN_SET.flag
            ),
        ),
    ),
    Experiment(
        name="forgetting",
        description="Which answers are lost in training, and when.",
        requirements=(SWEEP_SETS, KNOWN_ONLY_SETS),
    ),
    Experiment(
        name="stability",
        description="How often a question that is asked again gets another category.",
        needs_repeats=True,
    ),
    Experiment(
        name="popularity",
        description="Categories, and what Unknown rows harm, against how popular a subject is.",
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
        description="Categories against the strength at which facts were planted: the labels against the truth.",
        world=True,
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in _EXPERIMENTS}
PAPER_EXPERIMENTS = tuple(experiment.name for experiment in _EXPERIMENTS if experiment.exhibits)
"""What a study does unless it is asked for less: everything the paper shows."""


def parse_experiment_names(words: Iterable[str]) -> tuple[str, ...]:
    """Names of experiments, apart or joined by commas, each once and in the order of `EXPERIMENTS`.

    Raises:
        SettingsError: there is no such experiment.

    >>> parse_experiment_names(["idk,p_true", "counts"])
    ('counts', 'p_true', 'idk')
    """
    names = {name for word in words for name in word.replace(",", " ").replace("-", "_").split()}
    unknown = sorted(names - EXPERIMENTS.keys())
    if unknown:
        raise SettingsError(
            f"there is no experiment {', '.join(unknown)}; there are {', '.join(PAPER_EXPERIMENTS)}, and beyond the "
            f"paper "
            f"{', '.join(name for name in EXPERIMENTS if name not in PAPER_EXPERIMENTS)}"
        )
    return tuple(name for name in EXPERIMENTS if name in names)


def variants_for_experiments(names: Sequence[str], config: VariantsConfig) -> tuple[str, ...]:
    """The fine-tuning sets that the experiments train, each once, in the order in which they are drawn."""
    requirements = [need for name in names for need in EXPERIMENTS[name].requirements]
    return tuple(
        spec.name for spec in variant_specs(config) if any(need.matches(spec, config) for need in requirements)
    )


def missing_requirements(experiment: Experiment, config: VariantsConfig) -> list[VariantRequirement]:
    """What an experiment needs and the settings do not draw."""
    specs = variant_specs(config)
    return [
        need
        for need in experiment.requirements
        if not need.optional and not any(need.matches(spec, config) for spec in specs)
    ]
