"""Stopping policies: rules that choose a stopping epoch of one training from its curve. Pure.

A training runs once to its largest budget; every policy is then evaluated on the stored curve, so a new policy costs
no training. A rule is a function `(Curve, *settings) -> Stop`. Whole-number settings count epochs (1 or more), others
are shares in [0, 1]; both are checked when a policy is parsed. A rule must not look beyond the epochs that it reports
as its cost: `Policy.decided` relies on that to tell a live training whether a later epoch can still change the
stopping epoch.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from slick.errors import DataError, SettingsError

__all__ = [
    "RULES",
    "AccuracyCurve",
    "Policy",
    "StopDecision",
    "apply_policy",
    "parse_policy",
    "rule_signature",
    "stop_epoch",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCurve:
    """What was measured after each epoch of one training; position 0 is epoch 1."""

    dev_accuracy: tuple[float, ...]
    """Share of dev questions answered right, in [0, 1]; one an epoch."""
    unknown_train_accuracy: tuple[float, ...] | None = None
    """Share of the Unknown training rows answered right, in [0, 1]; one an epoch. None: there are no such rows."""
    highlyknown_dev_accuracy: tuple[float, ...] | None = None
    """Share of the HighlyKnown dev questions answered right, in [0, 1]; one an epoch. None: no dev question is known
    to be one, for example because none was annotated."""

    def __post_init__(self) -> None:
        measured = {
            "dev": self.dev_accuracy,
            "Unknown train": self.unknown_train_accuracy,
            "HighlyKnown dev": self.highlyknown_dev_accuracy,
        }
        for name, values in measured.items():
            if values is None:
                continue
            if len(values) != self.num_epochs or not values:
                raise DataError(
                    f"a curve needs one {name} accuracy for each epoch, got {len(values)} for {self.num_epochs} epochs"
                )
            for epoch, value in enumerate(values, start=1):
                if not 0.0 <= value <= 1.0:  # also refuses NaN
                    raise DataError(f"{name} accuracy of epoch {epoch} is {value}; it must be a share in [0, 1]")

    @property
    def num_epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.dev_accuracy)

    def truncate_to(self, budget: int) -> "AccuracyCurve":
        """The curve of the same training had it ended after `budget` epochs.

        Raises:
            DataError: the training has fewer epochs.
        """
        if not 1 <= budget <= self.num_epochs:
            raise DataError(f"a budget of {budget} epochs cannot be read off a training of {self.num_epochs}")
        return self._map_values(lambda values: values[:budget])

    def extend_to(self, budget: int) -> "AccuracyCurve":
        """The curve as if nothing changed any more up to `budget` epochs, of which it has as many or fewer."""
        return self._map_values(lambda values: values + values[-1:] * (budget - len(values)))

    def _map_values(self, change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> "AccuracyCurve":
        unknown, highly = self.unknown_train_accuracy, self.highlyknown_dev_accuracy
        return AccuracyCurve(
            dev_accuracy=change(self.dev_accuracy),
            unknown_train_accuracy=None if unknown is None else change(unknown),
            highlyknown_dev_accuracy=None if highly is None else change(highly),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """Which epoch's checkpoint a rule chooses, and what finding it took."""

    stop_epoch: int
    """From 1."""
    cost_epochs: int
    """Epochs that had to be trained before the rule could choose; at least `stop_epoch`."""

    def __post_init__(self) -> None:
        assert 1 <= self.stop_epoch <= self.cost_epochs, self


def fixed(curve: AccuracyCurve, epochs: int = 0) -> StopDecision:
    """Stop after `epochs`, whatever the curve; without a number (0), at the end of the budget.

    Raises:
        SettingsError: the budget is shorter.
    """
    chosen = epochs or curve.num_epochs
    if chosen > curve.num_epochs:
        raise SettingsError(
            f"fixed({chosen}) cannot be read off a budget of {curve.num_epochs} epochs; raise the budget"
        )
    return StopDecision(stop_epoch=chosen, cost_epochs=chosen)


def best_dev(curve: AccuracyCurve) -> StopDecision:
    """The epoch of the highest dev accuracy within the budget, ties to the earliest; costs the whole budget.

    Source: EARLY_STOP of Gekhman et al. 2024, arXiv:2405.05904, section 4; the paper does not state a rule for ties.

    >>> best_dev(Curve(dev_accuracy=(0.2, 0.4, 0.4, 0.3)))
    Stop(stop_epoch=2, cost_epochs=4)
    """
    return _stop_at_best(curve, curve.dev_accuracy)


def dev_highlyknown(curve: AccuracyCurve) -> StopDecision:
    """The epoch of the highest accuracy on HighlyKnown dev questions, ties to the earliest; costs the whole budget.

    For those who want above all to keep what the model knew firmly.

    Raises:
        SettingsError: no dev question is known to be HighlyKnown, so there is nothing to choose by.

    >>> dev_highlyknown(Curve(dev_accuracy=(0.2, 0.4), highlyknown_dev_accuracy=(0.9, 0.8)))
    Stop(stop_epoch=1, cost_epochs=2)
    """
    if curve.highlyknown_dev_accuracy is None:
        raise SettingsError(
            "policy dev_highlyknown chooses by HighlyKnown dev questions, and the training's epochs.parquet has none "
            "(split dev, category HighlyKnown): its dev questions were not annotated; start a study with "
            "`slick annotate --annotate-dev`, or use best_dev"
        )
    return _stop_at_best(curve, curve.highlyknown_dev_accuracy)


def patience(curve: AccuracyCurve, epochs: int, min_delta: float = 0.0) -> StopDecision:
    """Train until `epochs` in a row brought no better dev accuracy, and keep the best epoch seen.

    A dev accuracy is better only if it is above the best so far by more than `min_delta`, a share.

    Returns:
        The epoch of the last counted improvement; costs the epochs up to the point of giving up.

    >>> patience(Curve(dev_accuracy=(0.2, 0.4, 0.3, 0.3, 0.9)), 2)
    Stop(stop_epoch=2, cost_epochs=4)
    """
    best = 0
    for epoch, accuracy in enumerate(curve.dev_accuracy):
        if accuracy > curve.dev_accuracy[best] + min_delta:
            best = epoch
        elif epoch - best >= epochs:
            return StopDecision(stop_epoch=best + 1, cost_epochs=epoch + 1)
    return StopDecision(stop_epoch=best + 1, cost_epochs=curve.num_epochs)


def unknown_fit(curve: AccuracyCurve, share: float) -> StopDecision:
    """Stop at the first epoch after which that share of the Unknown training rows is answered right.

    Needs no dev questions. Never reached, or no Unknown rows to fit: the end of the budget.

    >>> unknown_fit(Curve(dev_accuracy=(0.4, 0.4, 0.3), unknown_train_accuracy=(0.0, 0.2, 0.7)), 0.1)
    Stop(stop_epoch=2, cost_epochs=2)
    """
    reached = [i for i, value in enumerate(curve.unknown_train_accuracy or (), start=1) if value >= share]
    chosen = reached[0] if reached else curve.num_epochs
    return StopDecision(stop_epoch=chosen, cost_epochs=chosen)


RULES: dict[str, Callable[..., StopDecision]] = {
    "fixed": fixed,
    "best_dev": best_dev,
    "dev_highlyknown": dev_highlyknown,
    "patience": patience,
    "unknown_fit": unknown_fit,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule with its settings; `str` gives the text that `parse_policy` reads."""

    rule: str
    settings: tuple[int | float, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}({','.join(map(repr, self.settings))})" if self.settings else self.rule

    def at(self, budget: int) -> "Policy":
        """The policy as points are named: plain `fixed` becomes `fixed(budget)`, all others stay."""
        return Policy("fixed", (budget,)) if self == Policy("fixed") else self

    def applies_to(self, budget: int) -> bool:
        """False for `fixed(n)` with n beyond the budget: such a point does not exist, it is never clipped."""
        return self.rule != "fixed" or not self.settings or self.settings[0] <= budget

    def decided_epoch(self, curve: AccuracyCurve, max_epochs: int) -> int | None:
        """The stopping epoch, once no later epoch can change it; None while one can.

        Known at epoch n for `fixed(n)`, on giving up for `patience`, on reaching the share for `unknown_fit`, and in
        every case at the end of the budget. A live training may end where all its policies are decided.

        Args:
            curve: of the epochs so far, one or more; those beyond `max_epochs` are not looked at.
            max_epochs: the budget.

        Raises:
            DataError: a budget of no epochs.
            SettingsError: the policy cannot be read off such a training at all, as in `apply_policy`.

        >>> parse_policy("patience(2)").decided(Curve(dev_accuracy=(0.2, 0.4, 0.3, 0.3)), 50)
        2
        """
        stop = _decide(self, curve, max_epochs)
        return None if stop is None else stop.stop_epoch


def parse_policy(text: str) -> Policy:
    """Read `fixed`, `fixed(5)`, `best_dev`, `dev_highlyknown`, `patience(3)`, `patience(3,0.01)`, `unknown_fit(0.2)`.

    Raises:
        SettingsError: no such rule, or settings that it does not take.

    >>> str(parse_policy("patience( 3, 0.010 )"))
    'patience(3,0.01)'
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None or match[1] not in RULES:
        raise SettingsError(
            f"there is no stopping policy {text!r}; there are {', '.join(rule_signature(rule) for rule in RULES)}"
        )
    rule, given = match[1], [part.strip() for part in (match[2] or "").split(",") if match[2]]
    parameters = _parameters(rule)
    num_needed = sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
    if not num_needed <= len(given) <= len(parameters):
        raise SettingsError(f"policy {text!r} has {len(given)} settings; it is written {rule_signature(rule)}")
    values = tuple(_parse_parameter(part, parameter, text) for part, parameter in zip(given, parameters, strict=False))
    return Policy(rule, values)


def rule_signature(rule: str) -> str:
    """How a rule is written, optional settings in brackets.

    >>> usage("patience")
    'patience(epochs[,min_delta])'
    """
    words = ""
    for parameter in _parameters(rule):
        word = f"{',' if words else ''}{parameter.name}"
        words += word if parameter.default is inspect.Parameter.empty else f"[{word}]"
    return f"{rule}({words})" if words else rule


def apply_policy(policy: Policy, curve: AccuracyCurve, budget: int | None = None) -> StopDecision:
    """Which epoch the policy chooses within the first `budget` epochs of the curve, and its cost.

    Raises:
        DataError: the curve ends before the budget, and the policy is not decided by then.
        SettingsError: `fixed(n)` beyond the budget, or `dev_highlyknown` without such questions.
    """
    wanted = curve.num_epochs if budget is None else budget
    if wanted > curve.num_epochs and (stop := _decide(policy, curve, wanted)) is not None:
        return stop
    return RULES[policy.rule](curve.truncate_to(wanted), *policy.settings)


def stop_epoch(policy: Policy, curve: AccuracyCurve, budget: int | None = None) -> int:
    """`apply_policy`, the chosen epoch alone."""
    return apply_policy(policy, curve, budget).stop_epoch


def _decide(policy: Policy, curve: AccuracyCurve, budget: int) -> StopDecision | None:
    """What the policy chooses if the epochs so far suffice; what is held in place of the others cannot matter then."""
    seen = min(curve.num_epochs, budget)
    stop = RULES[policy.rule](curve.truncate_to(seen).extend_to(budget), *policy.settings)
    return stop if stop.cost_epochs <= seen else None


def _stop_at_best(curve: AccuracyCurve, accuracy: tuple[float, ...]) -> StopDecision:
    return StopDecision(stop_epoch=accuracy.index(max(accuracy)) + 1, cost_epochs=curve.num_epochs)


def _parameters(rule: str) -> list[inspect.Parameter]:
    return list(inspect.signature(RULES[rule]).parameters.values())[1:]


def _parse_parameter(part: str, parameter: inspect.Parameter, text: str) -> int | float:
    whole = parameter.annotation is int
    wanted = "a whole number of epochs, 1 or more" if whole else "a share in [0, 1]"
    try:
        value = int(part) if whole else float(part)
    except ValueError:
        value = math.nan
    if not (value >= 1 if whole else 0.0 <= value <= 1.0):
        raise SettingsError(f"policy {text!r}: {parameter.name} is {part!r}, it must be {wanted}")
    return value
