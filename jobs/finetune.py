"""Fine-tune a model on one variant and evaluate its generated answers after every epoch.

slick finetune demo --variant unknown-050 --out studies/demo
slick finetune lora --variant unknown-100 --track mlflow --out studies/llama
slick finetune large --variant unknown-100 --num-workers 4 --offload optimizer --out studies/llama
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from tuning.finetune import finetune


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("finetune", finetune, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
