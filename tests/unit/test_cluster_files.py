"""The files for clusters are valid, pass linters, have the tested versions and require a token."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
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
BATCH_JOB = yaml.safe_load((ROOT / "kuberay-job.yaml").read_text())
DOCKERFILE, SBATCH, LOCK = ((ROOT / name).read_text() for name in ("Dockerfile", "slurm.sbatch", "requirements.lock"))
IMAGE = f"rayproject/ray:{PINS['ray']}-py311-gpu"


def required_packages() -> set[str]:
    """Names of all packages that the program depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[\[~><=]", requirement)[0] for requirement in project["dependencies"]}


def extra_packages(extra: str) -> set[str]:
    """Names of the packages of an extra, and of the extras that it names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = set[str]()
    for requirement in extras[extra]:
        if own := re.fullmatch(r"slick-knowledge\[(.*)\]", requirement):
            names |= {name for part in own[1].split(",") for name in extra_packages(part)}
        else:
            names.add(re.split(r"[\[~><=]", requirement)[0])
    return names


@cache
def locked_packages() -> dict[str, dict[str, Any]]:
    """Version and hashes by name, of requirements.lock."""
    packages = {}
    for entry in re.split(r"\n(?=[a-z])", LOCK.partition("make lock\n")[2]):
        name, version = re.match(r"(\S+?)==(\S+) \\\n", entry).groups()  # type: ignore[union-attr]
        packages[name] = {"version": version, "hashes": re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)}
    return packages


def check(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_cluster_file_is_valid_for_ray() -> None:
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


def test_cluster_fields_that_ray_does_not_validate() -> None:
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
    for local_path in CLUSTER["file_mounts"].values():
        assert local_path.startswith("~/.ray") or (ROOT / local_path).exists()


def test_head_runs_no_tasks_and_nodes_have_one_or_eight_gpus() -> None:
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


def test_workers_drain_their_node_when_it_is_reclaimed() -> None:
    (command,) = [command for command in CLUSTER["worker_start_ray_commands"] if "drain_on_notice" in command]
    environ, *words = shlex.split(command)
    assert environ == "RAY_AUTH_MODE=token"
    script, *flags = words[words.index("python") + 1 : words.index(">")]
    source = CLUSTER["file_mounts"][script.replace("~", "/home/ray")]
    assert flags == ["--cloud", "aws"]
    assert words[-1] == "&", "the command must not block"
    help_text = subprocess.run([sys.executable, ROOT / source, "--help"], capture_output=True, text=True, check=True)
    assert "--cloud {aws" in help_text.stdout


def test_versions_equal_the_tested_ones() -> None:
    assert CLUSTER["docker"]["image"] == IMAGE
    assert RAY_CLUSTER["spec"]["rayVersion"] == PINS["ray"]
    spec = RAY_CLUSTER["spec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    assert {container["image"] for template in templates for container in template["spec"]["containers"]} == {IMAGE}
    pip = yaml.safe_load(RAY_JOB["spec"]["runtimeEnvYAML"])["pip"]
    assert pip == [f"{name}=={PINS[name]}" for name in (pin.split("==")[0] for pin in pip)]
    assert {pin.split("==")[0] for pin in pip} == required_packages() - {"ray"} | {"peft"}


def test_every_node_and_the_image_install_the_locked_packages() -> None:
    (setup,) = CLUSTER["setup_commands"]
    assert setup == "pip install --no-cache-dir --require-hashes --requirement ~/slick/requirements.lock"
    assert CLUSTER["file_mounts"]["/home/ray/slick/requirements.lock"] == "requirements.lock"
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes --requirement requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1], "nothing is downloaded for the project itself"


def test_lock_has_all_packages_in_the_tested_versions_with_hashes() -> None:
    locked = {name: pin["version"] for name, pin in locked_packages().items()}
    tested = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    assert {name: locked[name] for name in locked.keys() & tested.keys()} == {
        name: tested[name] for name in locked.keys() & tested.keys()
    }
    needed = required_packages() | extra_packages("cluster")
    assert needed >= {"ray", "torch", "gguf", "peft", "bitsandbytes", "accelerate", "boto3"}
    assert locked.keys() >= {name.lower() for name in needed}
    assert all(pin["hashes"] for pin in locked_packages().values())
    # Ray's runtime environments drop repeated lines.
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    assert len(lines) == len(set(lines))
    assert not re.search(r"://|--(extra-)?index|--find-links", LOCK), "hashes are those of the default index"


def test_lock_is_valid_for_the_required_versions() -> None:
    from packaging.requirements import Requirement

    locked = locked_packages()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(line for name in ("gguf", "lora", "quantized") for line in extras[name]),
    ]
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(locked[requirement.name.lower()]["version"]), str(requirement)


def test_audit_and_lock_use_the_pins_and_accepted_findings_have_a_reason(tmp_path: Path) -> None:
    """`make audit` ignores the ids of the lines `# accepted: ID reason`, which precede the pin."""
    text = (ROOT / "constraints.txt").read_text()
    for match in re.finditer(r"^# accepted:(.*)$\n(.*)", text, re.MULTILINE):
        assert re.fullmatch(r" [A-Z]+-\S+ \w.{20,}", match[1]), match[0]
        assert "==" in match[2], match[0]
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "constraints.txt").write_text("# accepted: GHSA-1-2 no fixed version yet\nray==1\nnumpy==2\n")
    commands = subprocess.check_output(["make", "--dry-run", "audit"], cwd=tmp_path, text=True).splitlines()
    audits = [command for command in commands if "pip-audit --strict" in command]
    assert len(audits) == 2
    assert all("--ignore-vuln GHSA-1-2 " in command and command.count("--ignore-vuln") == 1 for command in audits)
    assert [command.split()[-1] for command in audits] == ["requirements.lock", "constraints.txt"]
    lock = subprocess.check_output(["make", "--dry-run", "lock"], cwd=tmp_path, text=True)
    assert "--extra cluster --generate-hashes --constraint constraints.txt" in " ".join(lock.replace("\\", "").split())
    assert "--output-file requirements.lock" in lock


def test_commands_in_the_files_are_valid() -> None:
    """Commands in comments and the entrypoint of the job."""
    commands = []
    for name in ("cluster.yaml", "kuberay.yaml"):
        text = (ROOT / name).read_text().replace("\\\n#", " ")
        commands += [line.partition(" slick submit ")[2] for line in text.splitlines() if "slick submit study" in line]
    assert len(commands) == 2
    commands += [job["spec"]["entrypoint"].replace("python -m jobs.", "") for job in (RAY_JOB, BATCH_JOB)]
    commands += [line.partition("slurm.sbatch ")[2] for line in SBATCH.splitlines() if "#   sbatch" in line]
    assert len(commands) == 5
    for command in commands:
        step, preset, *flags = shlex.split(command, comments=True)
        for flag in ("--address", "--out", "--requirements"):
            if flag in flags:
                index = flags.index(flag)
                del flags[index : index + 2]
        assert preset in STEP_PRESETS[step]
        check_flags(step, preset, [word for word in flags if word != "..."])


def refuse_unknown_fields(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl` does with strict validation."""
    if isinstance(schema, dict):
        strict = {key: refuse_unknown_fields(value) for key, value in schema.items()}
        open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and not open_ended:
            strict["additionalProperties"] = False
        return strict
    return [refuse_unknown_fields(item) for item in schema] if isinstance(schema, list) else schema


@cache
def validator(kind: str) -> Any:
    """Validator of all fields of ray.io/v1 except the metadata."""
    jsonschema = pytest.importorskip("jsonschema")
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schema is not at {path}; set SLICK_KUBERAY_SCHEMAS to the folder of its CRDs")
    versions = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = refuse_unknown_fields(
        next(entry for entry in versions if entry["name"] == "v1")["schema"]["openAPIV3Schema"]
    )
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def problems(manifest: dict[str, Any]) -> list[str]:
    assert manifest["apiVersion"] == "ray.io/v1"
    return [error.message for error in validator(manifest["kind"]).iter_errors(manifest)]


@pytest.mark.parametrize("manifest", [RAY_CLUSTER, RAY_JOB, BATCH_JOB], ids=["RayCluster", "RayJob", "batch"])
def test_manifests_are_valid_for_the_operator(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


@pytest.mark.parametrize(
    ("manifest", "change"),
    [
        (RAY_CLUSTER, lambda m: m["spec"].update(authOption={"mode": "token"})),
        (RAY_CLUSTER, lambda m: m["spec"]["authOptions"].update(mode="tokens")),
        (RAY_CLUSTER, lambda m: m["spec"]["workerGroupSpecs"][0].pop("template")),
        (RAY_CLUSTER, lambda m: m["spec"]["workerGroupSpecs"][0]["template"]["spec"].update(tolerationz=[])),
        (RAY_JOB, lambda m: m["spec"].update(entryPoint="x")),
        (BATCH_JOB, lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens")),
    ],
)
def test_typo_in_a_manifest_is_detected(manifest: dict[str, Any], change: Any) -> None:
    changed = copy.deepcopy(manifest)
    change(changed)
    assert problems(changed)


# One image, and a job that owns its cluster.


def run_linter(name: str, *arguments: str) -> str:
    """The messages of a linter, which the extra `dev` installs next to this Python."""
    program = Path(sys.executable).parent / name
    assert program.exists(), f"{name} is missing; install the extra dev"
    result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def test_image_and_scripts_pass_their_linters() -> None:
    assert run_linter("hadolint", "Dockerfile") == ""
    assert run_linter("shellcheck", "slurm.sbatch", "jobs/start.sh") == ""


def test_linters_find_mistakes(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd x && pip install torch\n")
    (tmp_path / "a.sh").write_text("#!/bin/sh\nrm $1\n")
    assert "DL3006" in run_linter("hadolint", str(tmp_path / "Dockerfile"))
    assert "SC2086" in run_linter("shellcheck", str(tmp_path / "a.sh"))


def test_image_has_the_tested_versions_and_all_code() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert base == IMAGE
    copied = re.findall(r"^COPY \S+ (.*) \S+$", DOCKERFILE, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names >= {"requirements.lock", "pyproject.toml", "slick", "tuning", "jobs"}
    assert all((ROOT / name).exists() for name in names)


def test_batch_job_of_kubernetes_owns_a_cluster_of_fixed_size() -> None:
    spec = BATCH_JOB["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster.get("enableInTreeAutoscaling"), "Kueue needs a fixed number of nodes"
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0
    assert BATCH_JOB["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}


def test_slurm_job_requires_a_token_and_refuses_to_run_outside_slurm(tmp_path: Path) -> None:
    assert "RAY_AUTH_MODE=token" in SBATCH
    command = ["bash", str(ROOT / "slurm.sbatch")]
    environment = {"PATH": os.environ["PATH"]}
    usage = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")
    outside = subprocess.run([*command, "study", "demo"], env=environment, capture_output=True, text=True, check=False)
    assert outside.returncode != 0
    assert "submit it with sbatch" in outside.stderr


def test_slurm_job_starts_ray_on_every_node_with_one_token(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands, that record how they are called."""
    calls = tmp_path / "calls"
    stand_ins = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": f'case "$*" in *hostname*) echo 10.0.0.7 10.0.0.8;; *) echo "$RAY_AUTH_TOKEN $*" >> {calls};; esac',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "12345",
        "SLURM_GPUS_ON_NODE": "8",
    }
    arguments = ["study", "paper", "--model", "a model", "--out", "/shared/study"]
    subprocess.run(["bash", str(ROOT / "slurm.sbatch"), *arguments], env=environment, check=True)
    token, _, line = calls.read_text().partition(" ")
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert line.strip() == (
        "--nodes=2 --ntasks=2 --kill-on-bad-exit=1 ray symmetric-run --address 10.0.0.7:22345 --min-nodes 2 "
        "--num-gpus 8 --disable-usage-stats -- python -m jobs.study paper --model a model --out /shared/study"
    )
