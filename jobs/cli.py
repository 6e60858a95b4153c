"""The command line: `slick STEP ...` opens the door `jobs.STEP`, and loads nothing else."""

import importlib
from collections.abc import Sequence

from jobs.door import run_main
from jobs.flags import did_you_mean
from slick.errors import SettingsError

STEPS = {
    "study": "all steps, from questions to report; finished ones are skipped",
    "world": "plant facts at known strength: a question set and a small model that knows them",
    "questions": "read and filter EntityQuestions or any other question set",
    "annotate": "ask a model every question under 10 few-shot prompts and sort them into four categories",
    "variants": "draw fine-tuning sets with a chosen share of Unknown questions",
    "finetune": "fine-tune a model on one variant, evaluated every epoch",
    "sweep": "fine-tune over variants x seeds, read off every epoch budget and stopping policy",
    "report": "figures, tables and the paper's findings, for this model",
    "compare": "several studies side by side: slick compare OUT1 OUT2 ... --out FOLDER",
    "status": "which steps of a study are done, and what is left",
    "plan": "memory, GPU-hours and cost for a model of some size: slick plan --model-size 7B --gpus 8",
    "submit": "run a step as a job on a Ray cluster: slick submit STEP PRESET --address http://HEAD:8265 --out URI",
    "jobs": "the jobs of a Ray cluster: list, follow, stop",
}

USAGE = f"""usage: slick STEP PRESET --out DIR [flags]

Measure what a language model already knows, and what fine-tuning on things it does not know does to the rest.

steps:
{chr(10).join(f"  {name:<10} {what}" for name, what in STEPS.items())}

presets: demo (embedded world, minutes on a laptop), smoke (the same in seconds), paper (the paper's settings)

  slick study demo
  slick study paper --model ID_OR_PATH --questions dataset.zip --out URI
  slick STEP PRESET --help        all flags of a step
"""


def main() -> None:
    """Find the step's door and open it."""
    run_main(_open)


def _open(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] not in STEPS:
        meant = did_you_mean(arguments[0], STEPS)
        raise SettingsError(f"there is no step {arguments[0]!r}{meant}; there are {', '.join(STEPS)}")
    importlib.import_module(f"jobs.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    main()
