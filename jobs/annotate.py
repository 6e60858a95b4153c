"""Sample a model's answers to every question under every exemplar set, and label each question with a category.

slick annotate demo --out studies/demo
slick annotate paper --model meta-llama/Llama-3.2-1B --out studies/llama
slick annotate paper --mode labels --model meta-llama/Llama-3.2-1B --out studies/llama    # same labels, fewer answers
slick annotate demo --p-true --out studies/demo    # also P(True); finished labels are kept
slick annotate demo --rescore --matcher contains --num-samples 8 --out studies/demo    # new labels, stored answers
slick annotate demo --rescore --matcher judge --judge.url http://localhost:8000/v1 --judge.served-model MODEL --out DIR
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.flags import pop_switch
from jobs.presets import ANNOTATE
from slick.annotation import RescoreConfig, annotate, rescore

RESCORE = "--rescore"


def main(argv: Sequence[str]) -> None:
    """Run the step, or relabel its stored answers, with the settings of the command line."""
    is_rescore, rest = pop_switch(argv, RESCORE)
    if is_rescore:
        run_step_command(f"annotate {RESCORE}", rescore, rest, __doc__, dict.fromkeys(ANNOTATE, RescoreConfig))
    else:
        run_step_command("annotate", annotate, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
