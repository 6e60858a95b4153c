"""`ray up cluster.yaml` against an AWS mock (moto), with fake ssh and rsync commands that only log their arguments.

Tested: AWS accepts the calls, and the commands for a node and their order. Not tested: pulling the image, installing
packages and starting Ray.
"""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.local.aws import running_aws
from tests.local.head import ROOT, TOKEN, environment
from tests.waiting import TIMEOUT_S

SSH = """#!/bin/sh
printf '%s\\n' "$*" >> "$FAKE_COMMANDS/log"
case "$*" in
  *State.Running*) [ -e "$FAKE_COMMANDS/running" ] && echo true || echo false ;;
  *Config.Env*) echo '["HOME=/home/ray"]' ;;
  *Config.Image*) echo "$FAKE_IMAGE" ;;
  *Mounts*) echo '[]' ;;
  *"printenv HOME"*) echo /home/ray ;;
  *"command -v docker"*) echo /usr/bin/docker ;;
  *meminfo*) echo 'MemAvailable: 30000000 kB' ;;
  *"docker run"*) touch "$FAKE_COMMANDS/running" ;;
esac
"""
RSYNC = """#!/bin/sh
printf 'rsync %s\\n' "$*" >> "$FAKE_COMMANDS/log"
"""
PREPARE = """
import boto3, json
iam, ec2 = boto3.client("iam"), boto3.client("ec2")
for name in ("slick-head", "slick-worker"):
    iam.create_instance_profile(InstanceProfileName=name)
print(json.dumps({"account": boto3.client("sts").get_caller_identity()["Account"],
                  "image": ec2.describe_images()["Images"][0]["ImageId"]}))
"""
SHOW = """
import boto3, json
ec2 = boto3.client("ec2")
nodes = [node for reservation in ec2.describe_instances()["Reservations"] for node in reservation["Instances"]]
groups = [group for group in ec2.describe_security_groups()["SecurityGroups"] if group["GroupName"] != "default"]
print(json.dumps({"nodes": nodes, "groups": groups}, default=str))
"""
TYPES = """
import botocore.session, botocore.validate, json, sys, yaml
shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
for name, node in yaml.safe_load(open(sys.argv[1]))["available_node_types"].items():
    report = botocore.validate.ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, shape)
    if report.has_errors():
        print(name, report.generate_report())
"""


@dataclass(frozen=True)
class MockCloud:
    """An AWS mock, and the environment of a shell that uses it."""

    folder: Path
    shell: dict[str, str]

    def python(self, code: str, *arguments: str) -> str:
        return self.run(sys.executable, "-c", code, *arguments)

    def run(self, *command: str) -> str:
        completed = subprocess.run(
            command,
            env=self.shell,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert completed.returncode == 0, completed.stdout
        return completed.stdout

    def ray(self, *arguments: str) -> str:
        return self.run(str(Path(sys.executable).parent / "ray"), *arguments)

    def show(self) -> Any:
        return json.loads(self.python(SHOW).splitlines()[-1])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockCloud]:
    folder = tmp_path_factory.mktemp("cloud")
    home, fake_commands = folder / "home", folder / "fake-commands"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    fake_commands.mkdir()
    for name, text in (("ssh", SSH), ("rsync", RSYNC)):
        (fake_commands / name).write_text(text)
        (fake_commands / name).chmod(stat.S_IRWXU)
    with running_aws(folder / "moto.log") as aws:
        shell = environment(home, FAKE_COMMANDS=str(fake_commands), **aws)
        shell |= {"PATH": f"{fake_commands}:{shell['PATH']}", "FAKE_IMAGE": "rayproject/ray:2.60.0-py311-gpu"}
        yield MockCloud(folder, shell)


@pytest.fixture(scope="module")
def cluster_file(cloud: MockCloud) -> Path:
    """cluster.yaml with the image and the account of the mock."""
    account = json.loads(cloud.python(PREPARE).splitlines()[-1])
    text = (ROOT / "cluster.yaml").read_text()
    assert text.count("FILL IN") >= 3
    text = text.replace("ami-00000000000000000", account["image"]).replace("111122223333", account["account"])
    path = cloud.folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_node_types_have_only_fields_that_aws_knows(cloud: MockCloud) -> None:
    assert cloud.python(TYPES, "cluster.yaml") == ""


def test_unknown_field_of_a_node_type_is_reported(cloud: MockCloud, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text((ROOT / "cluster.yaml").read_text().replace("VolumeSize", "VolumeSzie"))
    assert "VolumeSzie" in cloud.python(TYPES, str(path))


def test_ray_up_and_down(cloud: MockCloud, cluster_file: Path) -> None:
    cloud.ray("up", "-y", "--no-config-cache", str(cluster_file))
    resources = cloud.show()
    (head,) = resources["nodes"]
    assert (head["InstanceType"], head["State"]["Name"]) == ("m6i.2xlarge", "running")
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/slick-head")
    for group in resources["groups"]:
        for rule in group["IpPermissions"]:
            open_to_all = [block["CidrIp"] for block in rule["IpRanges"] if block["CidrIp"] == "0.0.0.0/0"]
            assert not open_to_all or (rule["FromPort"], rule["ToPort"]) == (22, 22), rule
    log = Path(cloud.shell["FAKE_COMMANDS"], "log").read_text()
    commands = ("docker pull", "docker run", "--require-hashes --requirement", "ray start --head")
    positions = [log.index(command) for command in commands]
    assert positions == sorted(positions)
    assert re.search(r"-v \S+/home/ray/\.ray/auth_token:/home/ray/\.ray/auth_token", log)
    assert "RAY_AUTH_MODE=token ray start --head" in log
    assert TOKEN not in log, "the token is copied as a file"
    cloud.ray("down", "-y", str(cluster_file))
    assert {node["State"]["Name"] for node in cloud.show()["nodes"]} <= {"shutting-down", "terminated"}
