"""Measured throughput of a study, from its manifests, and default cloud instance types for `slick plan`.

Memory sizes are nominal, in units of 10^9 bytes. Vendors count in GiB, which is 7 % more; that difference is reserved
for the system.
"""

from dataclasses import dataclass

from slick.errors import StudyError
from slick.model_files import read_config
from slick.models import resolve_model, resolve_study_model
from slick.shapes import shape_from_config
from slick.storage import Folder
from slick.study import Manifest, read_manifest, require_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Rates of one annotation actor or one training worker, on the machines of the measured study."""

    parameters: int
    """Parameters of its model."""
    answers_per_question: float
    """Greedy and sampled answers; fewer in labels mode."""
    answers_per_second: float
    train_rows_per_second: float | None
    """None if nothing was trained."""
    eval_rows_per_second: float | None
    """Rows evaluated after an epoch; None if nothing was trained."""

    def estimate_annotation_seconds(self, num_questions: int, parameters: int) -> float:
        """Seconds of one actor, for time proportional to the number of parameters."""
        return num_questions * self.answers_per_question / self.answers_per_second * parameters / self.parameters

    def estimate_training_seconds(
        self, num_epochs: int, train_rows: int, eval_rows: int, parameters: int
    ) -> float | None:
        """Seconds of one worker; None if no training was measured.

        Args:
            num_epochs: epochs of the training.
            train_rows: rows trained on per epoch.
            eval_rows: rows evaluated after each epoch.
            parameters: parameters of the model; time is proportional to them.
        """
        if self.train_rows_per_second is None or self.eval_rows_per_second is None:
            return None
        return (
            num_epochs
            * (train_rows / self.train_rows_per_second + eval_rows / self.eval_rows_per_second)
            * parameters
            / self.parameters
        )


def read_throughput(study: Folder) -> Throughput:
    """The rates of a study's annotation and of its finished trainings.

    Raises:
        StudyError: the study has no finished annotation by sampling with a measured time.
        ModelError: its model cannot be found.
    """
    annotated = require_manifest(study.child("annotate"), "annotate")
    counts = annotated.counts
    seconds, answers = float(counts.get("engine_seconds") or 0), int(counts.get("generations") or 0)
    if not (seconds and answers):
        raise StudyError(
            f"{study}/annotate has no measured generation time (engine_seconds {seconds:g}, generations {answers:,}); "
            "annotate some questions with --limit-per-relation and --estimator sampled, and give that folder as --probe"
        )
    runs = [read_manifest(study.child("runs", name)) for name in study.child("runs").folders()]
    timed = [run for run in runs if run is not None and run.counts.get("training_seconds")]
    model = resolve_model(resolve_study_model(study, str(annotated.settings.get("model") or "")))
    config = read_config(model.folder) if model.gguf_file is None else {}
    return Throughput(
        parameters=shape_from_config(config, model.name).parameters,
        answers_per_question=answers / int(annotated.count("questions")),
        answers_per_second=answers / seconds,
        train_rows_per_second=_rows_per_second(timed, "train_rows", "training_seconds"),
        eval_rows_per_second=_rows_per_second(timed, "evaluated_rows", "evaluation_seconds"),
    )


def _rows_per_second(runs: list[Manifest], rows: str, seconds: str) -> float | None:
    """Rows per second of one worker, over all runs."""
    num_rows = sum(int(run.count(rows)) * int(run.count("epochs_now")) for run in runs)
    worker_seconds = sum(float(run.count(seconds)) * int(run.count("num_workers")) for run in runs)
    return num_rows / worker_seconds if num_rows and worker_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A node type of a cluster."""

    gpus: int
    memory: float
    """GB of CPU memory."""
    name: str = ""
    """AWS instance type; empty for a node type that the user described."""

    def workers_per_machine(self, num_workers: int) -> int:
        """Workers of a training on one node, with one GPU per worker and nodes filled one after another."""
        return min(num_workers, self.gpus)

    def num_machines(self, num_workers: int) -> int:
        """Nodes that a training needs."""
        return -(-num_workers // self.gpus)


_DEFAULT_MACHINE_TYPES = (
    (24.0, MachineType(gpus=1, memory=32.0, name="g6.2xlarge")),
    (40.0, MachineType(gpus=8, memory=1_152.0, name="p4d.24xlarge")),
    (80.0, MachineType(gpus=8, memory=1_152.0, name="p4de.24xlarge")),
    (float("inf"), MachineType(gpus=8, memory=2_048.0, name="p5e.48xlarge")),
)
"""Largest GB of a GPU, and the node type for it; the first two are those of cluster.yaml."""


def default_machine_type(gpu_memory: float) -> MachineType:
    """A node type with such GPUs.

    Args:
        gpu_memory: GB per GPU.

    >>> default_machine_type(80.0).memory, default_machine_type(141.0).memory
    (1152.0, 2048.0)
    """
    return next(machine for max_memory, machine in _DEFAULT_MACHINE_TYPES if gpu_memory <= max_memory)
