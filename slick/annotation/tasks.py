"""Functions over many relations or files: in this process for small studies, in Ray Data tasks for large ones."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from slick import errors
from slick.errors import SlickError

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL_QUESTIONS = 200_000
"""Studies with at least this many questions are planned and labelled by tasks, which take seconds to start."""


def run_tasks(function: Callable[[Item], Result], items: Sequence[Item], *, parallel: bool) -> Iterator[Result]:
    """The results for all items, in their order.

    Args:
        function: can be pickled; it may run again for an item whose node failed.
        items: small, because they pass through the driver, as do the results.
        parallel: in Ray Data tasks of one CPU each, at most as many at a time as the cluster has; otherwise here.

    Raises:
        SlickError: that of the first item that raised one, after all tasks have ended.
    """
    if not parallel or len(items) < 2:
        yield from map(function, items)
        return
    import ray.data

    from slick.cluster import connect

    connect()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        _hide_object_warnings()  # in the process of the task
        # Raised in a task, an error would reach the driver wrapped in Ray's own message.
        try:
            return {"number": row["number"], "result": function(row["item"]), "error": None}
        except SlickError as error:
            return {"number": row["number"], "result": None, "error": (type(error).__name__, str(error))}

    _hide_object_warnings()
    rows = [{"number": number, "item": item} for number, item in enumerate(items)]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run, num_cpus=1)
    quiet(results.context)
    waiting: dict[int, dict[str, Any]] = {}
    following, error = 0, None
    for row in results.iter_rows():
        waiting[row["number"]] = row
        while error is None and following in waiting:
            outcome = waiting.pop(following)
            following, error = following + 1, outcome["error"]
            if error is None:
                yield outcome["result"]
    if error is not None:
        name, message = error
        raise getattr(errors, name)(message)


def _hide_object_warnings() -> None:
    """Ray Data warns about columns of Python objects."""
    logging.getLogger("ray.data._internal.tensor_extensions.arrow").setLevel(logging.ERROR)


def quiet(context: Any) -> None:
    """Set a Ray Data context for work that takes long, whose progress this package shows itself."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that progress bars are disabled
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a unit of a large model may take hours
    context.issue_detectors_config.detectors = []  # they repeat advice about an actor's memory every 30 seconds
