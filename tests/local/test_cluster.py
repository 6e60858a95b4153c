"""Which cluster is used: the one that is named, or one of its own."""

import pytest

from tests.faults.nodes import apart

pytestmark = pytest.mark.local

BESIDE_ANOTHER = """
import os
import ray
from ray.cluster_utils import Cluster
from slick.cluster import connect

other = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
os.environ.pop("RAY_ADDRESS", None)
if NAMED:
    os.environ["RAY_ADDRESS"] = "auto"
connect()
print("JOINED" if ray.get_runtime_context().gcs_address == other.address else "ITS OWN")
ray.shutdown()
other.shutdown()
"""


@pytest.mark.parametrize(
    ("named", "expected"), [pytest.param(True, "JOINED", marks=pytest.mark.slow), (False, "ITS OWN")]
)
def test_a_cluster_on_this_machine_is_joined_if_it_is_named(named: bool, expected: str) -> None:
    printed = apart(BESIDE_ANOTHER.replace("NAMED", str(named)))
    assert printed.split("\n")[-2] == expected, printed
