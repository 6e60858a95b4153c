"""The command `slick`: `slick STEP ...` imports and runs `jobs.STEP` alone."""

import importlib
from collections.abc import Sequence

from jobs.common import run_main
from jobs.flags import did_you_mean
from slick.errors import SettingsError

STEP_DESCRIPTIONS = {
    "study": "run all steps from questions to report; skip the finished ones",
    "world": "build a question set and a small model with planted facts",
    "questions": "read and filter EntityQuestions or another question set",
    "annotate": "sample answers under 10 few-shot prompts and label each question with one of four categories",
    "curate": "label the rows of a fine-tuning file by what a model knows; drop, relabel or weight them",
    "variants": "draw fine-tuning sets with a given share of Unknown questions",
    "finetune": "fine-tune a model on one variant and evaluate it after every epoch",
    "sweep": "fine-tune every variant, seed and setting of a grid; evaluate all epoch budgets and stopping policies",
    "wording": "ask a sample of the labelled questions, and what was trained, in a second wording",
    "report": "write the report: figures, tables and a test of each finding of the paper",
    "compare": "compare studies: slick compare OUT1 OUT2 ... --out FOLDER",
    "status": "show the finished steps of a study and the remaining work",
    "plan": "estimate memory, GPU hours and cost: slick plan --model-size 7B --gpus 8",
    "submit": "run a step as a Ray job: slick submit STEP PRESET --address http://HEAD:8265 --out URI",
    "jobs": "list, follow and stop the jobs of a Ray cluster",
}

USAGE = f"""usage: slick STEP PRESET --out DIR [flags]

Measure which facts a language model knows, and how fine-tuning on unknown facts changes its accuracy.

steps:
{chr(10).join(f"  {name:<10} {what}" for name, what in STEP_DESCRIPTIONS.items())}

presets:
  demo       a full study on a small model with planted facts; minutes on a laptop
  smoke      a small version of demo; about a minute
  paper      the paper's settings, for your model and questions
  small-real paper for a model of 100M to 400M on two CPU cores (study)
  lora       paper with LoRA (finetune, sweep)
  large      paper with ZeRO stage 3, for models of 1B to 8B (finetune, sweep)

examples:
  slick study demo
  slick study paper --model ID_OR_PATH --questions dataset.zip --out URI
  slick STEP PRESET --help        all flags of a step
"""


def main() -> None:
    """Run the step that the command line names."""
    run_main(_run_step)


def _run_step(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] not in STEP_DESCRIPTIONS:
        meant = did_you_mean(arguments[0], STEP_DESCRIPTIONS)
        raise SettingsError(f"there is no step {arguments[0]!r}{meant}; the steps are {', '.join(STEP_DESCRIPTIONS)}")
    importlib.import_module(f"jobs.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    main()
