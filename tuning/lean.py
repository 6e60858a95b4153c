"""Ray Train without the processes that a training here has no use for.

Each takes 1 to 3 CPU seconds to start, most of them in imports, which for a small model is as long as its epochs.
"""

from typing import Any

from tuning.config import TrainConfig


def trim_start(config: TrainConfig) -> None:
    """Make Ray Train lighter on one machine.

    No machine can be taken away from the run there, so the process that watches for that is left out. And a worker
    waits at each report until the last one was fetched, every 2 s by default: too long for small epochs.
    """
    import os

    import ray

    if len(ray.nodes()) == 1 and not config.wait_for_nodes:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def lean_trainer() -> Any:
    """Ray's TorchTrainer without the actor that splits datasets of Ray Data: rows are read by each worker itself."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    class LeanTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    return LeanTrainer
