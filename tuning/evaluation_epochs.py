"""Which epochs of a training evaluate the test and out-of-distribution rows. Pure.

Train and dev rows are evaluated after every epoch, because fit curves and stopping policies need them. With the setting
`evaluate: needed`, the other rows are evaluated after an epoch only if a point, the report or the linear model reads
it. That is decided when the epoch ends, from the curve up to it: an epoch with the best dev accuracy so far is
evaluated, even if a later epoch turns out to be better. Evaluating only the final best epoch, from its checkpoint,
would save a few evaluations of a training (2.8 epochs of 10 set a new best in the demo), but would need checkpoints
that hold exactly the trained weights, and that survive an interruption until the training ends.
"""

from collections.abc import Iterable, Sequence

from tuning.config import TrainConfig
from tuning.policies import AccuracyCurve, parse_policy

TEST_SPLITS = ("test", "ood")
"""The splits that are not evaluated after every epoch with `evaluate: needed`."""

PolicyBudget = tuple[str, int]
"""A stopping policy, as `tuning.policies.parse_policy` reads it, and an epoch budget."""

EXPECTED_BEST_EPOCHS = 3
"""Epochs with a new best dev accuracy that a cost estimate assumes."""


def needs_test_rows(
    config: TrainConfig, curve: AccuracyCurve, policies: Iterable[PolicyBudget], *, is_last: bool
) -> bool:
    """Whether the test and out-of-distribution rows are evaluated after the last epoch of the curve.

    A policy needs an epoch if it selects the epoch from the curve with its last values repeated up to the budget. All
    policies of `tuning.policies` select their final epoch already when it ends.

    Args:
        config: the settings of the training.
        curve: the accuracies of the epochs so far.
        policies: policies and budgets of the points that are computed from this training.
        is_last: whether the training ends with this epoch.
    """
    epoch = curve.num_epochs
    if config.evaluate == "all" or is_last:
        return True
    if config.evaluate_stride and epoch % config.evaluate_stride == 0:
        return True
    # The report reads the best dev epoch of every training, whatever policies the grid has.
    cells = [("best_dev", config.epochs), *policies]
    return any(
        parse_policy(policy).provisional_epoch(curve, budget) == epoch for policy, budget in cells if budget >= epoch
    )


def expected_test_evaluations(config: TrainConfig, policies: Iterable[PolicyBudget], first_epoch: int = 1) -> int:
    """How often a training is expected to evaluate the test and out-of-distribution rows from `first_epoch` on."""
    remaining = range(first_epoch, config.epochs + 1)
    if config.evaluate == "all":
        return len(remaining)
    epochs = {config.epochs}
    if config.evaluate_stride:
        epochs |= set(range(config.evaluate_stride, config.epochs + 1, config.evaluate_stride))
    for text, budget in policies:
        policy = parse_policy(text).at(budget)
        if policy.name == "fixed":
            epochs |= {int(policy.settings[0])}
    return min(len(remaining), len(epochs & set(remaining)) + EXPECTED_BEST_EPOCHS)


def epochs_without_test_rows(epochs: Sequence[Iterable[str]]) -> list[int]:
    """The epochs, from 1, that lack test or out-of-distribution rows which other epochs have.

    Args:
        epochs: names of the accuracies of each epoch, such as `test_all`; see `tuning.runs.EpochAccuracies`.
    """
    prefixes = tuple(f"{split}_" for split in TEST_SPLITS)
    by_epoch = [{name for name in names if name.startswith(prefixes)} for names in epochs]
    evaluated = set().union(*by_epoch)
    return [epoch for epoch, names in enumerate(by_epoch, start=1) if names < evaluated]
