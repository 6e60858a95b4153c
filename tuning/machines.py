"""Machines as clouds lend them, for plans that name none. Pure.

Numbers are those that their makers name, taken as units of a thousand million bytes: vendors count memory in GiB, 7 %
more, which is left to the system.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """One machine of a cluster."""

    gpus: int
    memory: float
    """GB of the machine itself, which its GPUs share."""
    name: str = ""
    """By which AWS lends it; empty for one that a person described."""

    def workers_per_machine(self, num_workers: int) -> int:
        """Of a training on one machine, where each worker has a GPU and machines are filled one after another."""
        return min(num_workers, self.gpus)

    def num_machines(self, num_workers: int) -> int:
        """Machines that hold a training."""
        return -(-num_workers // self.gpus)


_DEFAULT_MACHINE_TYPES = (
    (24.0, MachineType(gpus=1, memory=32.0, name="g6.2xlarge")),
    (40.0, MachineType(gpus=8, memory=1_152.0, name="p4d.24xlarge")),
    (80.0, MachineType(gpus=8, memory=1_152.0, name="p4de.24xlarge")),
    (float("inf"), MachineType(gpus=8, memory=2_048.0, name="p5e.48xlarge")),
)
"""GB of a GPU, and the machine that holds GPUs of at most so much; the first two are those of cluster.yaml."""


def default_machine_type(gpu_memory: float) -> MachineType:
    """A machine with such GPUs.

    Args:
        gpu_memory: GB of one GPU.

    >>> usual_machine(80.0).memory, usual_machine(141.0).memory
    (1152.0, 2048.0)
    """
    return next(machine for most, machine in _DEFAULT_MACHINE_TYPES if gpu_memory <= most)
