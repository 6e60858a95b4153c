"""How fast a study went, from its manifests: what a larger one will take by the same measure."""

from dataclasses import dataclass

from slick.errors import StudyError
from slick.model_files import read_config
from slick.models import resolve_model, study_model
from slick.shapes import shape_of
from slick.storage import Folder
from slick.study import Manifest, read_manifest, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one actor or one training worker does in a second, on the machines of the study that was measured."""

    parameters: int
    """Of its model."""
    answers_a_question: float
    """Greedy and sampled; fewer in labels mode."""
    answers_a_second: float
    trained_a_second: float | None
    """Training rows; None if nothing was trained."""
    asked_a_second: float | None
    """Rows answered after an epoch."""

    def seconds_of_answers(self, num_questions: int, parameters: int) -> float:
        """Of one actor, for a model of so many parameters, if time grows as they do."""
        return num_questions * self.answers_a_question / self.answers_a_second * parameters / self.parameters

    def seconds_of_epochs(self, num_epochs: int, trained: int, asked: int, parameters: int) -> float | None:
        """Of one worker, for epochs of so many rows trained and asked; None if no training was measured."""
        if self.trained_a_second is None or self.asked_a_second is None:
            return None
        return (
            num_epochs * (trained / self.trained_a_second + asked / self.asked_a_second) * parameters / self.parameters
        )


def read_rates(study: Folder) -> Rates:
    """The rates of a study whose knowledge table is finished, and of those of its trainings that are.

    Raises:
        StudyError: nothing was annotated there by sampling, or not so that it can be timed.
        ModelError: its model is no longer where it was.
    """
    annotated = require(study.child("annotate"), "annotate")
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
    model = resolve_model(study_model(study, str(annotated.settings.get("model") or "")))
    config = read_config(model.folder) if model.gguf_file is None else {}
    return Rates(
        parameters=shape_of(config, model.name).parameters,
        answers_a_question=answers / int(annotated.count("questions")),
        answers_a_second=answers / seconds,
        trained_a_second=_a_second(timed, "train_rows", "training_seconds"),
        asked_a_second=_a_second(timed, "evaluated_rows", "evaluation_seconds"),
    )


def _a_second(runs: list[Manifest], rows: str, seconds: str) -> float | None:
    """Rows that one worker does in a second, over all runs."""
    done = sum(int(run.count(rows)) * int(run.count("epochs_now")) for run in runs)
    spent = sum(float(run.count(seconds)) * int(run.count("num_workers")) for run in runs)
    return done / spent if done and spent else None
