"""Which settings to try next: Optuna, through Ray Tune, over the axes of a sweep.

It is asked for a few samples at a time and told of them in their order, so what it chooses depends on its seed and on
the results alone, not on how many trials run at once or which ends first. A search that was interrupted or is made
longer chooses the same samples again, finds their trainings finished, and goes on behind them.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from slick.errors import SettingsError
from tuning.axes import Axis, SettingOverrides, changed_settings, parse_axis
from tuning.config import TrainConfig

_SCORE = "score"
_SIGNIFICANT_DIGITS = 4
"""Of a number on a span; names of runs hold it."""


def check_search() -> None:
    """See that Optuna is there.

    Raises:
        SettingsError: it is not.
    """
    if find_spec("optuna") is None:
        raise SettingsError("--search optuna needs optuna: pip install 'slick-knowledge[optuna]', or search the grid")


class SettingsSearch:
    """Samples of the axes' values, better ones more often as scores become known."""

    def __init__(self, axes: Sequence[str], base: TrainConfig, seed: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self._base = [parse_axis(text) for text in axes], base
        space = OptunaSearch.convert_search_space({axis.name: _domain(axis) for axis in self._axes})
        self._searcher: Any = OptunaSearch(space, metric=_SCORE, mode="max", seed=seed)
        self._suggestions: list[SettingOverrides] = []
        self._num_reported = 0

    @property
    def suggestions(self) -> list[SettingOverrides]:
        """All samples so far, in their order; one may come more than once."""
        return list(self._suggestions)

    def ask(self, num: int) -> list[SettingOverrides]:
        """The next samples."""
        begin = len(self._suggestions)
        for i in range(begin, begin + num):
            values = self._searcher.suggest(str(i))
            settings = {axis.name: _rounded(axis, values[axis.name]) for axis in self._axes}
            self._suggestions.append(changed_settings(settings, self._base))
        return self._suggestions[begin:]

    def tell(self, scores: Sequence[float]) -> None:
        """Scores of the samples that were asked for last, in their order; higher is better."""
        for score in scores:
            self._searcher.on_trial_complete(str(self._num_reported), {_SCORE: score})
            self._num_reported += 1


def _domain(axis: Axis) -> Any:
    from ray import tune

    if axis.span == "no":
        return tune.choice(list(axis.values))
    low, high = axis.values
    if isinstance(low, int):  # the end is left out there
        return tune.lograndint(low, high + 1) if axis.span == "log" else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if axis.span == "log" else tune.uniform(low, high)


def _rounded(axis: Axis, value: Any) -> Any:
    if axis.span == "no" or isinstance(axis.values[0], int):
        return value
    low, high = axis.values
    return min(high, max(low, float(f"{value:.{_SIGNIFICANT_DIGITS}g}")))
