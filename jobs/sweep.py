r"""Train the grid of variants, settings and seeds, and read every epoch budget and stopping policy off it.

slick sweep demo --out studies/demo
slick sweep paper --grid.seeds 0 1 2 --train.num-workers 2 --out studies/llama
slick sweep paper --plan --out studies/llama     # the trainings and what they will take, by a probe; trains nothing
slick sweep paper --grid.axes "learning_rate=1e-5,1e-4" --stop live --out studies/llama
slick sweep lora --search optuna --samples 30 --grid.variants unknown-000 --out studies/llama \
    --grid.axes "learning_rate=1e-6..1e-3:log" "lora_rank=4..64"
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.presets import SWEEP
from jobs.study_file import settings_selector
from tuning.probe import plan_sweep
from tuning.sweep import sweep

PLAN = "--plan"


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    rest = [word for word in argv if word != PLAN]
    run_step_command(
        "sweep", SWEEP, plan_sweep if PLAN in argv else sweep, rest, __doc__ or "", settings_selector("sweep")
    )


if __name__ == "__main__":
    run_main(main)
