"""Every flag rejects URIs with secrets."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import presets
from jobs.cli import STEP_DESCRIPTIONS, _run_step
from jobs.common import run_main
from slick.curation.config import CurateConfig
from slick.errors import SettingsError
from slick.uris import check_uri

SECRET = "not-to-be-seen"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "org/name",
        "/home/x@y/study?z=1",
        "s3://bucket/study",
        "s3://bucket/study?region=eu-west-1&endpoint_override=http%3A%2F%2F127.0.0.1%3A9000&scheme=http",
        "gs://bucket/study",
        "abfss://container@account.dfs.core.windows.net/study",
        "abfs://container@account/study?tenant_id=a&client_id=b",
        "hdfs://me@node:8020/study",
        "http://127.0.0.1:8265",
        "ray://head:10001",
    ],
)
def test_uris_without_secrets_are_accepted(uri: str) -> None:
    check_uri(uri, "--out")


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/study",
        f"s3://{SECRET}@bucket/study",
        f"s3://bucket/study?access_key=AKIA&secret_key={SECRET}",
        f"s3://bucket/study?session_token={SECRET}",
        f"s3://bucket/study?region=x&some_new_option={SECRET}",
        f"s3://bucket/study?{SECRET}",
        f"s3://bucket/study?endpoint_override=http://me:{SECRET}@127.0.0.1:9000",
        f"s3://bucket/study?endpoint_override=http%3A%2F%2Fme%3A{SECRET}%40127.0.0.1",
        f"abfss://container@account/study?client_secret={SECRET}",
        f"abfss://container:{SECRET}@account/study",
        f"abfs://container@account/study?sig={SECRET}",
        f"gs://bucket/study?access_token={SECRET}",
        f"gs://{SECRET}@bucket/study",
        f"http://me:{SECRET}@head:8265",
        f"https://{SECRET}@tracker/",
        f"https://judge/v1?api_key={SECRET}",
        f"https://judge/v1#token={SECRET}",
        f"hf://{SECRET}@datasets/x",
        f"S3://AKIA:{SECRET}@bucket/study",
        f"http://[::1{SECRET}/",
    ],
)
def test_uri_with_a_secret_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SettingsError, match=r"\.\.\. holds .*AWS_SECRET_ACCESS_KEY") as caught:
        check_uri(uri, "--out")
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith("--out ")


def text_flags(settings: Any, prefix: str = "") -> Iterator[str]:
    """Every flag with a string value."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from text_flags(value, f"{prefix}{field.name}.")
        elif isinstance(value, str) or "str" in str(field.type):
            yield f"--{prefix}{field.name}".replace("_", "-")


COMMANDS = [
    *(
        ([step, name], ["--out", *text_flags(preset())])
        for step, group in presets.STEP_PRESETS.items()
        for name, preset in list(group.items())[:1]
    ),
    (["study", "smoke", "--dry-run"], ["--out", "--model", "--questions"]),
    (["submit", "study", "smoke"], ["--out", "--address", "--model", "--questions", "--requirements"]),
    (["submit", "study", "smoke", "--dry-run"], ["--out", "--address"]),
    (["jobs"], ["--address"]),
    (["status"], ["--out"]),
    (["plan"], ["--model", "--probe"]),
    (["curate", "data.jsonl"], ["--out", *text_flags(CurateConfig())]),
    (["curate"], [""]),
    (["compare", "a"], ["--out"]),
    (["compare"], [""]),
]


def test_every_command_is_tested() -> None:
    assert {command[0] for command, _ in COMMANDS} == set(STEP_DESCRIPTIONS)


@pytest.mark.parametrize(("command", "flags"), COMMANDS, ids=[" ".join(command) for command, _ in COMMANDS])
@pytest.mark.parametrize("joined", [True, False])
def test_every_flag_refuses_a_uri_with_a_secret(
    command: list[str],
    flags: list[str],
    joined: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert flags
    uri = f"s3://AKIA:{SECRET}@bucket/x?session_token={SECRET}"
    for flag in flags:
        arguments = [uri] if not flag else [f"{flag}={uri}"] if joined else [flag, uri]
        with pytest.raises(SystemExit) as status:
            run_main(_run_step, [*command, *arguments])
        output = capsys.readouterr()
        assert status.value.code == 2, (flag, output)
        assert SECRET not in output.out + output.err, flag
        assert "AWS_SECRET_ACCESS_KEY" in output.err, flag
        assert list(tmp_path.iterdir()) == [], flag
