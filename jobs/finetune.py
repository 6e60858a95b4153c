"""Fine-tune a model on one variant, evaluated by generation every epoch.

slick finetune demo --variant unknown-050 --out studies/demo
slick finetune lora --variant unknown-100 --track mlflow --out studies/llama
slick finetune large --variant unknown-100 --num-workers 4 --offload optimizer --out studies/llama
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.presets import FINETUNE
from jobs.study_file import settings_selector
from tuning.finetune import finetune


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    run_step_command("finetune", FINETUNE, finetune, argv, __doc__ or "", settings_selector("finetune"))


if __name__ == "__main__":
    run_main(main)
