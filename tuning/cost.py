"""Measured speed of a study, from its manifests, and default cloud instance types for `slick plan`. Pure.

Memory sizes are the makers' numbers, in units of 10^9 bytes: vendors count in GiB, 7 % more, which is left to the
system.
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
    """What one actor or one training worker does in a second, on the machines of the study that was measured."""

    parameters: int
    """Of its model."""
    answers_per_question: float
    """Greedy and sampled; fewer in labels mode."""
    answers_per_second: float
    train_rows_per_second: float | None
    """Training rows; None if nothing was trained."""
    eval_rows_per_second: float | None
    """Rows answered after an epoch."""

    def estimate_annotation_seconds(self, num_questions: int, parameters: int) -> float:
        """Of one actor, for a model of so many parameters, if time grows as they do."""
        return num_questions * self.answers_per_question / self.answers_per_second * parameters / self.parameters

    def estimate_training_seconds(self, num_epochs: int, trained: int, asked: int, parameters: int) -> float | None:
        """Of one worker, for epochs of so many rows trained and asked; None if no training was measured."""
        if self.train_rows_per_second is None or self.eval_rows_per_second is None:
            return None
        return (
            num_epochs
            * (trained / self.train_rows_per_second + asked / self.eval_rows_per_second)
            * parameters
            / self.parameters
        )


def read_throughput(study: Folder) -> Throughput:
    """The rates of a study whose knowledge table is finished, and of those of its trainings that are.

    Raises:
        StudyError: nothing was annotated there by sampling, or not so that it can be timed.
        ModelError: its model is no longer where it was.
    """
    annotated = require_manifest(study.child("annotate"), "annotate")
    counts = annotated.counts
    seconds, answers = float(counts.get("engine_seconds") or 0), int(counts.get("generations") or 0)
    if not (seconds and answers):
        raise StudyError(
            f"{study}/annotate was not timed answering questions (engine_seconds {seconds:g}, generations "
            f"{answers:,}); annotate some questions with --limit-per-relation and --estimator sampled, and give that "
            "folder as --probe"
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
    """Rows that one worker does in a second, over all runs."""
    done = sum(int(run.count(rows)) * int(run.count("epochs_now")) for run in runs)
    spent = sum(float(run.count(seconds)) * int(run.count("num_workers")) for run in runs)
    return done / spent if done and spent else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """One machine of a cluster."""

    gpus: int
    memory: float
    """GB of the machine itself, which its GPUs share."""
    name: str = ""
    """By which AWS lends it; empty for one that a person described."""

    def workers_per_machine(self, num_workers: int) -> int:
        """Of a training on one machine, where each worker has a GPU and machines are filled one after another."""
        return min(num_workers, self.gpus)

    def num_machines(self, num_workers: int) -> int:
        """Machines that hold a training."""
        return -(-num_workers // self.gpus)


_DEFAULT_MACHINE_TYPES = (
    (24.0, MachineType(gpus=1, memory=32.0, name="g6.2xlarge")),
    (40.0, MachineType(gpus=8, memory=1_152.0, name="p4d.24xlarge")),
    (80.0, MachineType(gpus=8, memory=1_152.0, name="p4de.24xlarge")),
    (float("inf"), MachineType(gpus=8, memory=2_048.0, name="p5e.48xlarge")),
)
"""GB of a GPU, and the machine that holds GPUs of at most so much; the first two are those of cluster.yaml."""


def default_machine_type(gpu_memory: float) -> MachineType:
    """A machine with such GPUs.

    Args:
        gpu_memory: GB of one GPU.

    >>> default_machine_type(80.0).memory, default_machine_type(141.0).memory
    (1152.0, 2048.0)
    """
    return next(machine for most, machine in _DEFAULT_MACHINE_TYPES if gpu_memory <= most)
