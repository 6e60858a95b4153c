"""Faults inside the processes of a study; Python imports this module at its start if its folder is on PYTHONPATH.

The file `out-of-memory` in the folder that SLICK_FAULTS names makes the next batch of questions, in whichever process,
raise torch's out-of-memory error.
"""

import os
import sys
import threading
import time

FOLDER = os.environ.get("SLICK_FAULTS", "")


def _take(name: str) -> bool:
    """Whether a trigger exists; only one process can take it."""
    try:
        os.unlink(os.path.join(FOLDER, name))
    except OSError:
        return False
    return True


def _patch_when_imported() -> None:
    while "slick.inference.devices" not in sys.modules:
        time.sleep(0.2)
    from slick.inference.devices import AdaptiveBatcher  # waits until another thread has imported it

    run = AdaptiveBatcher.run

    def run_with_fault(self, batch, sampling, work, release):
        def work_or_fail(part, prompts):
            if _take("out-of-memory"):
                import torch

                raise torch.OutOfMemoryError("simulated: out of memory")
            return work(part, prompts)

        return run(self, batch, sampling, work_or_fail, release)

    AdaptiveBatcher.run = run_with_fault


if FOLDER and "default_worker.py" in " ".join(getattr(sys, "orig_argv", [])):
    threading.Thread(target=_patch_when_imported, daemon=True).start()
