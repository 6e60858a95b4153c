"""cluster.yaml and kuberay.yaml: valid, with the tested versions, closed to others, and empty when idle."""

import copy
import os
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.presets import STEP_PRESETS
from jobs.submit import check_flags

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(os.environ.get("SLICK_KUBERAY_SCHEMAS", ROOT.parent / "shared" / "data" / "kuberay"))
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAY_CLUSTER, RAY_JOB = yaml.safe_load_all((ROOT / "kuberay.yaml").read_text())
IMAGE = f"rayproject/ray:{PINS['ray']}-py311-gpu"


def needed() -> set[str]:
    """Names of all packages that the program depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[\[~><=]", each)[0] for each in project["dependencies"]}


def check(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_cluster() -> None:
    check(CLUSTER)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(idle_timeout_minute=5),
        lambda c: c["available_node_types"]["gpu"].update(min_worker=0),
        lambda c: c["available_node_types"]["gpu"].pop("resources"),
        lambda c: c.update(head_node_type="haed"),
    ],
)
def test_typo_in_the_cluster_file_is_detected(change: Any) -> None:
    config = copy.deepcopy(CLUSTER)
    change(config)
    with pytest.raises(Exception, match=r"Additional properties|required|head_node_type"):
        check(config)


def test_fields_that_ray_does_not_check() -> None:
    assert CLUSTER["provider"].keys() == {"type", "region", "cache_stopped_nodes"}
    assert CLUSTER["docker"].keys() == {"image", "container_name", "pull_before_run", "run_options"}
    nodes = CLUSTER["available_node_types"]
    for name, node in nodes.items():
        assert node["node_config"].keys() <= {
            *("InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings", "InstanceMarketOptions"),
            "MetadataOptions",
        }, name
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name
        assert ("spot" in name) == ("InstanceMarketOptions" in node["node_config"])
        assert node["min_workers"] == 0
    assert CLUSTER["max_workers"] <= sum(node["max_workers"] for node in nodes.values())
    for here in CLUSTER["file_mounts"].values():
        assert here.startswith("~/.ray") or (ROOT / here).exists()


def test_the_head_takes_no_task_and_gpus_come_one_or_eight_a_node() -> None:
    nodes = CLUSTER["available_node_types"]
    assert nodes[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0}
    assert sorted(node["resources"].get("GPU", 0) for node in nodes.values()) == [0, 1, 1, 8]
    head = RAY_CLUSTER["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    groups = RAY_CLUSTER["spec"]["workerGroupSpecs"]
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for group in groups]
    assert gpus == ["1", "1", "8"]
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups)


def test_cluster_requires_a_token() -> None:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = [command for command in CLUSTER[name] if "ray start" in command]
        assert started
        assert all("RAY_AUTH_MODE=token ray start" in command for command in started)
    assert any("--dashboard-host=127.0.0.1" in command for command in CLUSTER["head_start_ray_commands"])
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
    assert "/home/ray/.ray/auth_token" in CLUSTER["file_mounts"]
    assert RAY_CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    assert RAY_CLUSTER["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_versions_are_those_the_tests_were_run_with() -> None:
    assert CLUSTER["docker"]["image"] == IMAGE
    assert RAY_CLUSTER["spec"]["rayVersion"] == PINS["ray"]
    spec = RAY_CLUSTER["spec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    assert {each["image"] for template in templates for each in template["spec"]["containers"]} == {IMAGE}
    pip = yaml.safe_load(RAY_JOB["spec"]["runtimeEnvYAML"])["pip"]
    assert pip == [f"{name}=={PINS[name]}" for name in (pin.split("==")[0] for pin in pip)]
    assert {pin.split("==")[0] for pin in pip} == needed() - {"ray"} | {"peft"}


def test_every_node_installs_all_packages() -> None:
    torch, rest = CLUSTER["setup_commands"]
    assert "grep '^torch=='" in torch
    words = shlex.split(rest)
    assert words[words.index("-c") + 1] == "~/slick/constraints.txt"
    named = {word.split("[")[0] for word in words[words.index("-c") + 2 :]}
    assert named == needed() - {"torch"} | {"peft"}


def test_the_commands_in_the_files_parse() -> None:
    """Those in the comments, and the job's."""
    found = []
    for name in ("cluster.yaml", "kuberay.yaml"):
        text = (ROOT / name).read_text().replace("\\\n#", " ")
        found += [line.partition(" slick submit ")[2] for line in text.splitlines() if "slick submit study" in line]
    assert len(found) == 2
    found.append(RAY_JOB["spec"]["entrypoint"].replace("python -m jobs.", ""))
    for command in found:
        step, preset, *flags = shlex.split(command, comments=True)
        for ours in ("--address", "--out", "--requirements"):
            if ours in flags:
                place = flags.index(ours)
                del flags[place : place + 2]
        assert preset in STEP_PRESETS[step]
        check_flags(step, preset, [flag for flag in flags if flag != "..."])


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl` does with strict validation."""
    if isinstance(schema, dict):
        shut = {key: closed(value) for key, value in schema.items()}
        open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and not open_ended:
            shut["additionalProperties"] = False
        return shut
    return [closed(each) for each in schema] if isinstance(schema, list) else schema


@cache
def validator(kind: str) -> Any:
    """Of ray.io/v1, all fields but the metadata."""
    jsonschema = pytest.importorskip("jsonschema")
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schema is not at {path}; set SLICK_KUBERAY_SCHEMAS to the folder of its CRDs")
    versions = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    shut = closed(next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"])
    shut["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(shut)


def problems(manifest: dict[str, Any]) -> list[str]:
    assert manifest["apiVersion"] == "ray.io/v1"
    return [error.message for error in validator(manifest["kind"]).iter_errors(manifest)]


@pytest.mark.parametrize("manifest", [RAY_CLUSTER, RAY_JOB], ids=lambda manifest: manifest["kind"])
def test_the_operators_schema_accepts_the_manifests(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


@pytest.mark.parametrize(
    ("manifest", "change"),
    [
        (RAY_CLUSTER, lambda m: m["spec"].update(authOption={"mode": "token"})),
        (RAY_CLUSTER, lambda m: m["spec"]["authOptions"].update(mode="tokens")),
        (RAY_CLUSTER, lambda m: m["spec"]["workerGroupSpecs"][0].pop("template")),
        (RAY_CLUSTER, lambda m: m["spec"]["workerGroupSpecs"][0]["template"]["spec"].update(tolerationz=[])),
        (RAY_JOB, lambda m: m["spec"].update(entryPoint="x")),
    ],
)
def test_typo_in_a_manifest_is_detected(manifest: dict[str, Any], change: Any) -> None:
    wrong = copy.deepcopy(manifest)
    change(wrong)
    assert problems(wrong)
