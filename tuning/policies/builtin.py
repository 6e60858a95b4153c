"""The built-in stopping policies. Pure."""

from slick.errors import SettingsError
from tuning.policies import AccuracyCurve, StopDecision, stopping_policies


@stopping_policies.register("fixed")
def fixed(curve: AccuracyCurve, epochs: int = 0) -> StopDecision:
    """Stop after `epochs` epochs, whatever the curve; without a number (0), at the end of the budget.

    Raises:
        SettingsError: the budget is shorter.
    """
    stop = epochs or curve.num_epochs
    if stop > curve.num_epochs:
        raise SettingsError(f"fixed({stop}) cannot be read off a budget of {curve.num_epochs} epochs; raise the budget")
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
