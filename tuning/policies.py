"""Stopping policies: each chooses the stopping epoch of a training from its accuracy curve. Pure.

A training runs once, to its largest epoch budget. Every policy is then evaluated on the stored curve, so a new policy
needs no new training.

A policy is a function `(AccuracyCurve, *settings) -> StopDecision` that registers itself by name. Settings annotated
`int` count epochs (1 or more), settings annotated `float` are shares in [0, 1]; `parse_policy` validates both. The
decision must depend only on the first `cost_epochs` epochs: `Policy.decided_epoch` relies on this to detect that a
running training can no longer change it. A policy that needs an accuracy which the curve lacks raises `SettingsError`.

With the training setting `evaluate: needed`, the test rows are evaluated after an epoch if a policy selects it from the
curve up to that epoch (`Policy.provisional_epoch`). A policy that selects an epoch only later, such as the one before
the best, needs `evaluate: all`; otherwise the sweep ends with a message about the missing test rows.

Other distributions add policies by entry points (see `slick.registry`).
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, get_type_hints

from slick.errors import DataError, SettingsError
from slick.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCurve:
    """Accuracies after each epoch of one training; index 0 is epoch 1."""

    dev_accuracy: tuple[float, ...]
    """Accuracy on the dev questions, in [0, 1], one value per epoch."""
    unknown_train_accuracy: tuple[float, ...] | None = None
    """Accuracy on the Unknown training rows, in [0, 1], one value per epoch. None: there are no such rows."""
    highlyknown_dev_accuracy: tuple[float, ...] | None = None
    """Accuracy on the HighlyKnown dev questions, in [0, 1], one value per epoch. None: no dev question has that
    label, for example because dev questions were not annotated."""

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
        """Epochs in the curve."""
        return len(self.dev_accuracy)

    def truncate_to(self, budget: int) -> "AccuracyCurve":
        """The first `budget` epochs of the curve.

        Raises:
            DataError: the curve has fewer epochs.
        """
        if not 1 <= budget <= self.num_epochs:
            raise DataError(f"a budget of {budget} epochs cannot be evaluated on a training of {self.num_epochs}")
        return self._map_values(lambda values: values[:budget])

    def extend_to(self, budget: int) -> "AccuracyCurve":
        """The curve with its last values repeated up to `budget` epochs; it has at most that many."""
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
    """The epoch whose checkpoint a policy chooses, and the epochs needed to choose it."""

    stop_epoch: int
    """From 1."""
    cost_epochs: int
    """Epochs that must be trained before the policy can decide; at least `stop_epoch`."""

    def __post_init__(self) -> None:
        assert 1 <= self.stop_epoch <= self.cost_epochs, self


PolicyFunction: TypeAlias = Callable[..., StopDecision]
"""`(AccuracyCurve, *settings) -> StopDecision`."""

stopping_policies: Registry[PolicyFunction] = Registry("stopping policy")


@dataclass(frozen=True, slots=True)
class Policy:
    """A registered policy with its settings; `str` gives the text that `parse_policy` reads."""

    name: str
    settings: tuple[int | float, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(repr, self.settings))})" if self.settings else self.name

    def at(self, budget: int) -> "Policy":
        """The policy as named in points.parquet: plain `fixed` becomes `fixed(budget)`, all others stay."""
        return Policy("fixed", (budget,)) if self == Policy("fixed") else self

    def applies_to(self, budget: int) -> bool:
        """False for `fixed(n)` with n above the budget: that grid point does not exist, and n is never clipped."""
        return self.name != "fixed" or not self.settings or self.settings[0] <= budget

    def decided_epoch(self, curve: AccuracyCurve, max_epochs: int) -> int | None:
        """The stopping epoch, or None while a later epoch can still change it.

        `fixed(n)` is decided at epoch n, `patience` when it gives up, `unknown_fit` when the share is reached, and
        every policy at the end of the budget. A live training ends when all its policies are decided.

        Args:
            curve: the epochs so far, at least one; epochs beyond `max_epochs` are ignored.
            max_epochs: the epoch budget.

        Raises:
            DataError: the budget is below 1.
            SettingsError: the policy cannot be applied to this curve; see `apply_policy`.

        >>> parse_policy("patience(2)").decided_epoch(AccuracyCurve(dev_accuracy=(0.2, 0.4, 0.3, 0.3)), 50)
        2
        """
        decision = _decide(self, curve, max_epochs)
        return None if decision is None else decision.stop_epoch

    def provisional_epoch(self, curve: AccuracyCurve, max_epochs: int) -> int:
        """The stopping epoch if the last accuracies of the curve were repeated up to the budget.

        The arguments and errors are those of `decided_epoch`.

        >>> parse_policy("best_dev").provisional_epoch(AccuracyCurve(dev_accuracy=(0.2, 0.4, 0.3)), 50)
        2
        """
        return _decide_extended(self, curve, max_epochs).stop_epoch


def parse_policy(text: str) -> Policy:
    """Read `fixed`, `fixed(5)`, `best_dev`, `dev_highlyknown`, `patience(3)`, `patience(3,0.01)`, `unknown_fit(0.2)`.

    Raises:
        SettingsError: an unknown policy, or settings that it does not take.

    >>> str(parse_policy("patience( 3, 0.010 )"))
    'patience(3,0.01)'
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise SettingsError(
            f"stopping policy {text!r} is not written NAME or NAME(NUMBER,...), as best_dev or patience(3,0.01)"
        )
    name, values = match[1], [part.strip() for part in (match[2] or "").split(",") if match[2]]
    parameters = _parameters(name)
    num_required = sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
    if not num_required <= len(values) <= len(parameters):
        raise SettingsError(f"policy {text!r} has {len(values)} settings; it is written {policy_signature(name)}")
    types = get_type_hints(stopping_policies.get(name))
    return Policy(
        name,
        tuple(
            _parse_setting(value, parameter.name, types[parameter.name], text)
            for value, parameter in zip(values, parameters, strict=False)
        ),
    )


def policy_signature(name: str) -> str:
    """How a policy is written, optional settings in brackets.

    >>> policy_signature("patience")
    'patience(epochs[,min_delta])'
    """
    signature = ""
    for parameter in _parameters(name):
        part = f"{',' if signature else ''}{parameter.name}"
        signature += part if parameter.default is inspect.Parameter.empty else f"[{part}]"
    return f"{name}({signature})" if signature else name


def apply_policy(policy: Policy, curve: AccuracyCurve, budget: int | None = None) -> StopDecision:
    """The policy's decision within the first `budget` epochs of the curve.

    Raises:
        DataError: the curve ends before the budget, and the policy is not decided by then.
        SettingsError: `fixed(n)` above the budget, or the curve lacks an accuracy that the policy needs.
    """
    max_epochs = curve.num_epochs if budget is None else budget
    if max_epochs > curve.num_epochs and (decision := _decide(policy, curve, max_epochs)) is not None:
        return decision
    return stopping_policies.get(policy.name)(curve.truncate_to(max_epochs), *policy.settings)


def stop_epoch(policy: Policy, curve: AccuracyCurve, budget: int | None = None) -> int:
    """The stopping epoch of `apply_policy`."""
    return apply_policy(policy, curve, budget).stop_epoch


def _decide(policy: Policy, curve: AccuracyCurve, budget: int) -> StopDecision | None:
    """The decision if the epochs so far suffice: then the repeated values of `extend_to` cannot change it."""
    decision = _decide_extended(policy, curve, budget)
    return decision if decision.cost_epochs <= min(curve.num_epochs, budget) else None


def _decide_extended(policy: Policy, curve: AccuracyCurve, budget: int) -> StopDecision:
    """The decision for the epochs so far, with their last values repeated up to the budget."""
    extended = curve.truncate_to(min(curve.num_epochs, budget)).extend_to(budget)
    return stopping_policies.get(policy.name)(extended, *policy.settings)


def _parameters(name: str) -> list[inspect.Parameter]:
    """The settings of a policy: all parameters after the curve."""
    return list(inspect.signature(stopping_policies.get(name)).parameters.values())[1:]


def _parse_setting(value: str, name: str, kind: type, text: str) -> int | float:
    counts_epochs = kind is int
    try:
        number = int(value) if counts_epochs else float(value)
    except ValueError:
        number = math.nan
    if not (number >= 1 if counts_epochs else 0.0 <= number <= 1.0):
        expected = "a whole number of epochs, 1 or more" if counts_epochs else "a share in [0, 1]"
        raise SettingsError(f"policy {text!r}: {name} is {value!r}, it must be {expected}")
    return number


@stopping_policies.register("fixed")
def fixed(curve: AccuracyCurve, epochs: int = 0) -> StopDecision:
    """Stop after `epochs` epochs, whatever the curve; without a number (0), at the end of the budget.

    Raises:
        SettingsError: the budget is shorter.
    """
    stop = epochs or curve.num_epochs
    if stop > curve.num_epochs:
        raise SettingsError(f"fixed({stop}) exceeds the budget of {curve.num_epochs} epochs; raise the budget")
    return StopDecision(stop_epoch=stop, cost_epochs=stop)


@stopping_policies.register("best_dev")
def best_dev(curve: AccuracyCurve) -> StopDecision:
    """The epoch with the highest dev accuracy within the budget, the earliest on ties; costs the whole budget.

    Source: EARLY_STOP of Gekhman et al. 2024, arXiv:2405.05904, section 4; the paper states no rule for ties.

    >>> best_dev(AccuracyCurve(dev_accuracy=(0.2, 0.4, 0.4, 0.3)))
    StopDecision(stop_epoch=2, cost_epochs=4)
    """
    return _stop_at_best(curve.dev_accuracy)


@stopping_policies.register("dev_highlyknown")
def dev_highlyknown(curve: AccuracyCurve) -> StopDecision:
    """The epoch with the highest accuracy on HighlyKnown dev questions, the earliest on ties; costs the whole budget.

    It favors the retention of firmly known facts over the learning of new ones.

    Raises:
        SettingsError: no dev question is labeled HighlyKnown.

    >>> dev_highlyknown(AccuracyCurve(dev_accuracy=(0.2, 0.4), highlyknown_dev_accuracy=(0.9, 0.8)))
    StopDecision(stop_epoch=1, cost_epochs=2)
    """
    if curve.highlyknown_dev_accuracy is None:
        raise SettingsError(
            "policy dev_highlyknown needs dev questions that are labeled HighlyKnown, and there are none, for example "
            "because dev questions were not annotated; start a study with `slick annotate --annotate-dev`, or use "
            "best_dev"
        )
    return _stop_at_best(curve.highlyknown_dev_accuracy)


@stopping_policies.register("patience")
def patience(curve: AccuracyCurve, epochs: int, min_delta: float = 0.0) -> StopDecision:
    """Train until `epochs` consecutive epochs bring no improvement, and keep the best epoch so far.

    An epoch is an improvement if its dev accuracy exceeds the best so far by more than `min_delta`, a share.

    Returns:
        The epoch of the last improvement; the cost is the epoch at which training ends.

    >>> patience(AccuracyCurve(dev_accuracy=(0.2, 0.4, 0.3, 0.3, 0.9)), 2)
    StopDecision(stop_epoch=2, cost_epochs=4)
    """
    best = 0
    for epoch, accuracy in enumerate(curve.dev_accuracy):
        if accuracy > curve.dev_accuracy[best] + min_delta:
            best = epoch
        elif epoch - best >= epochs:
            return StopDecision(stop_epoch=best + 1, cost_epochs=epoch + 1)
    return StopDecision(stop_epoch=best + 1, cost_epochs=curve.num_epochs)


@stopping_policies.register("unknown_fit")
def unknown_fit(curve: AccuracyCurve, share: float) -> StopDecision:
    """Stop at the first epoch whose accuracy on the Unknown training rows reaches `share`.

    It needs no dev questions. If the share is never reached, or there are no Unknown rows: the end of the budget.

    >>> unknown_fit(AccuracyCurve(dev_accuracy=(0.4, 0.4, 0.3), unknown_train_accuracy=(0.0, 0.2, 0.7)), 0.1)
    StopDecision(stop_epoch=2, cost_epochs=2)
    """
    reached = [epoch for epoch, value in enumerate(curve.unknown_train_accuracy or (), start=1) if value >= share]
    stop = reached[0] if reached else curve.num_epochs
    return StopDecision(stop_epoch=stop, cost_epochs=stop)


def _stop_at_best(accuracies: tuple[float, ...]) -> StopDecision:
    return StopDecision(stop_epoch=accuracies.index(max(accuracies)) + 1, cost_epochs=len(accuracies))
