"""`ray up cluster.yaml` against an imitation of AWS (moto), with stand-ins for ssh and rsync that only write down.

What is seen here: that AWS takes the calls, and which commands a node would be given, in which order. Not seen: whether
the image pulls, packages install, Ray starts.
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
printf '%s\\n' "$*" >> "$STAND_INS/log"
case "$*" in
  *State.Running*) [ -e "$STAND_INS/running" ] && echo true || echo false ;;
  *Config.Env*) echo '["HOME=/home/ray"]' ;;
  *Config.Image*) echo "$STAND_IN_IMAGE" ;;
  *Mounts*) echo '[]' ;;
  *"printenv HOME"*) echo /home/ray ;;
  *"command -v docker"*) echo /usr/bin/docker ;;
  *meminfo*) echo 'MemAvailable: 30000000 kB' ;;
  *"docker run"*) touch "$STAND_INS/running" ;;
esac
"""
RSYNC = """#!/bin/sh
printf 'rsync %s\\n' "$*" >> "$STAND_INS/log"
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
nodes = [node for each in ec2.describe_instances()["Reservations"] for node in each["Instances"]]
groups = [group for group in ec2.describe_security_groups()["SecurityGroups"] if group["GroupName"] != "default"]
print(json.dumps({"nodes": nodes, "groups": groups}, default=str))
"""
TYPES = """
import botocore.session, botocore.validate, json, sys, yaml
shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
for name, node in yaml.safe_load(open(sys.argv[1]))["available_node_types"].items():
    found = botocore.validate.ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, shape)
    if found.has_errors():
        print(name, found.generate_report())
"""


@dataclass(frozen=True)
class Cloud:
    """Where the imitation is, and a shell that sees nothing but it."""

    folder: Path
    shell: dict[str, str]

    def python(self, code: str, *words: str) -> str:
        return self.run(sys.executable, "-c", code, *words)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.shell,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def ray(self, *words: str) -> str:
        return self.run(str(Path(sys.executable).parent / "ray"), *words)

    def show(self) -> Any:
        return json.loads(self.python(SHOW).splitlines()[-1])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    home, stand_ins = folder / "home", folder / "stand-ins"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    stand_ins.mkdir()
    for name, text in (("ssh", SSH), ("rsync", RSYNC)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(stat.S_IRWXU)
    with running_aws(folder / "moto.log") as aws:
        shell = environment(home, STAND_INS=str(stand_ins), **aws)
        shell |= {"PATH": f"{stand_ins}:{shell['PATH']}", "STAND_IN_IMAGE": "rayproject/ray:2.60.0-py311-gpu"}
        yield Cloud(folder, shell)


@pytest.fixture(scope="module")
def filled_in(cloud: Cloud) -> Path:
    """cluster.yaml with the image and the account of the imitation."""
    found = json.loads(cloud.python(PREPARE).splitlines()[-1])
    text = (ROOT / "cluster.yaml").read_text()
    assert text.count("FILL IN") >= 3
    text = text.replace("ami-00000000000000000", found["image"]).replace("111122223333", found["account"])
    path = cloud.folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_aws_knows_every_field_of_every_node_type(cloud: Cloud) -> None:
    assert cloud.python(TYPES, "cluster.yaml") == ""


def test_a_wrong_field_of_a_node_type_is_caught(cloud: Cloud, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((ROOT / "cluster.yaml").read_text().replace("VolumeSize", "VolumeSzie"))
    assert "VolumeSzie" in cloud.python(TYPES, str(wrong))


def test_the_cluster_comes_up_and_goes_down(cloud: Cloud, filled_in: Path) -> None:
    cloud.ray("up", "-y", "--no-config-cache", str(filled_in))
    seen = cloud.show()
    (head,) = seen["nodes"]
    assert (head["InstanceType"], head["State"]["Name"]) == ("m6i.2xlarge", "running")
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/slick-head")
    for group in seen["groups"]:
        for rule in group["IpPermissions"]:
            world = [each["CidrIp"] for each in rule["IpRanges"] if each["CidrIp"] == "0.0.0.0/0"]
            assert not world or (rule["FromPort"], rule["ToPort"]) == (22, 22), rule
    log = Path(cloud.shell["STAND_INS"], "log").read_text()
    places = [log.index(word) for word in ("docker pull", "docker run", "^torch==", "boto3>=", "ray start --head")]
    assert places == sorted(places)
    assert re.search(r"-v \S+/home/ray/\.ray/auth_token:/home/ray/\.ray/auth_token", log)
    assert "RAY_AUTH_MODE=token ray start --head" in log
    assert TOKEN not in log, "the token travels as a file"
    cloud.ray("down", "-y", str(filled_in))
    assert {node["State"]["Name"] for node in cloud.show()["nodes"]} <= {"shutting-down", "terminated"}
