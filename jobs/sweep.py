r"""Train a grid of variants, settings and seeds, and evaluate every epoch budget and stopping policy.

slick sweep demo --out studies/demo
slick sweep paper --grid.seeds 0 1 2 --train.num-workers 2 --out studies/llama
slick sweep paper --plan --out studies/llama     # estimate the cost with a few measured steps
slick sweep paper --grid.axes "learning_rate=1e-5,1e-4" --stop live --out studies/llama
slick sweep paper --grid.further-settings "trainable=ffn if variant=unknown-050" --out studies/llama
slick sweep lora --search optuna --samples 30 --grid.variants unknown-000 --out studies/llama \
    --grid.axes "learning_rate=1e-6..1e-3:log" "lora_rank=4..64"
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.flags import pop_switch
from tuning.probe import plan_sweep
from tuning.sweep import sweep


def main(argv: Sequence[str]) -> None:
    """Run the step, or only estimate its cost, with the settings of the command line."""
    is_plan, rest = pop_switch(argv, "--plan")
    run_step_command("sweep", plan_sweep if is_plan else sweep, rest, __doc__)


if __name__ == "__main__":
    run_main(main)
