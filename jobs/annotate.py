"""Ask a model every question under every exemplar set, and sort the questions into four categories.

slick annotate demo --out studies/demo
slick annotate paper --model meta-llama/Llama-3.2-1B --out studies/llama
slick annotate paper --mode labels --model meta-llama/Llama-3.2-1B --out studies/llama    # same categories, for less
slick annotate demo --p-true --out studies/demo    # P(True) as well, also of a study labelled before; its labels stay
slick annotate demo --rescore --matcher contains --num-samples 8 --out studies/demo    # other labels, same answers
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.flags import pop_switch
from jobs.presets import ANNOTATE
from jobs.study_file import settings_selector
from slick.annotation import RescoreConfig, annotate, rescore

RESCORE = "--rescore"


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    is_rescore, rest = pop_switch(argv, RESCORE)
    if is_rescore:
        run_step_command(f"annotate {RESCORE}", dict.fromkeys(ANNOTATE, RescoreConfig), rescore, rest, __doc__ or "")
    else:
        run_step_command("annotate", ANNOTATE, annotate, argv, __doc__ or "", settings_selector("annotate"))


if __name__ == "__main__":
    run_main(main)
