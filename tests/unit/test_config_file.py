"""`--config FILE`: contents, precedence, and the round trip of printed settings."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import presets, study
from jobs.common import parse_config
from jobs.config_file import SECTIONS, expand_config_file, settings_selector
from jobs.presets import STEP_PRESETS
from jobs.submit import parse_submission
from slick.annotation import RescoreConfig
from slick.errors import DataError, SettingsError, SlickError
from slick.storage import Folder
from slick.study import require_manifest, settings_to_json
from slick.user_files import parse_yaml

OTHER_PRESET = {"demo": "smoke", "smoke": "demo", "paper": "smoke"}


def write_settings(folder: Path, text: object, name: str = "settings.yaml") -> str:
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def parse_command_line(step: str, preset: str, argv: Sequence[str]) -> Any:
    """The parsed settings of a command line; those of a study before they are copied to its steps."""
    config = STEP_PRESETS[step][preset]()
    return parse_config(
        config, expand_config_file(argv, config, f"slick {step}", settings_selector(step)), f"slick {step}"
    )


def resolve_study(preset: str, argv: Sequence[str]) -> presets.StudyConfig:
    config = study.resolve(parse_command_line("study", preset, argv), needs_model=False)
    assert isinstance(config, presets.StudyConfig)
    return config


@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("smoke", ["--seed", "3", "--sweep.grid.seeds", "0", "2"]),
        ("smoke", ["--experiments", "idk,counts"]),
        ("smoke", ["--variants.concentrated-shares", "0.5", "--seed", "1"]),
        ("smoke", ["--sweep.grid.variants", "unknown-000"]),
        ("smoke", ["--questions", "q.zip", "--sweep.grid.axes", "learning_rate=1e-4,1e-5 if variant=unknown-?[05]0"]),
        ("demo", []),
        ("paper", ["--model", "owner/name", "--questions", "facts.zip", "--seed", "7"]),
    ],
    ids=str,
)
def test_dry_run_settings_round_trip(
    preset: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.main([preset, *flags, "--dry-run"])
    printed = capsys.readouterr().out
    file = write_settings(tmp_path, printed, "printed.json")
    study.main([OTHER_PRESET[preset], "--config", file, "--dry-run"])
    assert capsys.readouterr().out == printed
    config = resolve_study(preset, flags)
    study_file = write_settings(tmp_path, {"settings": settings_to_json(config), "versions": {}}, "study.json")
    assert resolve_study(OTHER_PRESET[preset], ["--config", study_file]) == config
    for step, section in SECTIONS.items():
        settings: Any = config
        for name in section.split("."):
            settings = getattr(settings, name)
        if step == "finetune":
            settings = replace(settings, seed=config.sweep.grid.seeds[0])
        again = parse_command_line(step, next(iter(STEP_PRESETS[step])), ["--config", study_file])
        assert settings_to_json(again) == settings_to_json(settings)  # and therefore the fingerprint


@pytest.mark.parametrize("step", SECTIONS)
def test_config_file_of_a_step_sets_all_settings(step: str, tmp_path: Path) -> None:
    for name, preset in STEP_PRESETS[step].items():
        file = write_settings(tmp_path, settings_to_json(preset()), f"{name}.json")
        other = OTHER_PRESET.get(name, "paper")
        assert (
            parse_command_line(step, other if other in STEP_PRESETS[step] else "demo", ["--config", file]) == preset()
        )


def test_flags_override_the_file_and_the_file_overrides_the_preset(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "learning_rate: 1e-4\nbatch-size: 64\npacking: false\nkeep_state: true\n")
    config = parse_command_line("finetune", "paper", ["--no-keep-state", "--config", file, "--batch-size", "32"])
    expected = replace(presets.paper_training(), learning_rate=1e-4, batch_size=32, packing=False)
    assert config == expected


def test_settings_are_validated_after_flags_override_the_file(tmp_path: Path) -> None:
    file = write_settings(tmp_path, {"batch_size": 30, "num_workers": 4})
    with pytest.raises(SettingsError, match="30 rows cannot be shared by 4 workers"):
        parse_command_line("finetune", "paper", ["--config", file])
    assert parse_command_line("finetune", "paper", ["--config", file, "--num-workers", "3"]).num_workers == 3


def test_flag_that_overrides_a_study_setting_reaches_every_step(tmp_path: Path) -> None:
    before = resolve_study("demo", ["--model", "a/b", "--questions", "old.zip", "--seed", "2"])
    file = write_settings(tmp_path, {"settings": settings_to_json(before), "versions": {}}, "study.json")
    flags = ["--model", "c/d", "--questions", "new.zip", "--seed", "5"]
    assert resolve_study("paper", ["--config", file, *flags]) == resolve_study("demo", flags)
    world = resolve_study("smoke", ["--questions", "old.zip"])
    file = write_settings(tmp_path, settings_to_json(world), "world.json")
    assert resolve_study("smoke", ["--config", file, *flags]) == resolve_study("smoke", flags)


def test_experiments_and_variants_determine_each_other(tmp_path: Path) -> None:
    added = replace(resolve_study("smoke", ["--experiments", "idk"]), experiments=("counts", "unknown_ratio", "idk"))
    file = write_settings(
        tmp_path, settings_to_json(added), "study.json"
    )  # as written by a study with experiments added later
    assert resolve_study("smoke", ["--config", file]) == resolve_study(
        "smoke", ["--experiments", "counts,unknown_ratio,idk"]
    )
    assert resolve_study("smoke", ["--config", file, "--experiments", "fit"]).experiments == ("fit",)
    own_sets = ["--sweep.grid.variants", "unknown-050"]
    assert resolve_study("smoke", ["--config", file, *own_sets]).sweep.grid.variants == ("unknown-050",)
    file = write_settings(tmp_path, settings_to_json(resolve_study("smoke", own_sets)), "study.json")
    config = resolve_study("smoke", ["--config", file, "--experiments", "idk"])
    assert config.sweep == resolve_study("smoke", ["--experiments", "idk"]).sweep
    assert config.experiments == ("idk",)


def test_step_copies_settings_from_a_partial_study_file(tmp_path: Path) -> None:
    text = (
        "model: a/b\nquestions: facts.zip\nseed: 4\nannotate:\n  num_shots: 2\nprepare:\nsweep: {train: {epochs: 9}}\n"
    )
    file = write_settings(tmp_path, text)
    study_config = resolve_study("paper", ["--config", file])
    assert (study_config.annotate.num_shots, study_config.annotate.sampling.seed, study_config.sweep.grid.seeds) == (
        2,
        4,
        (4,),
    )
    step = parse_command_line("annotate", "paper", ["--config", file])
    assert (step.model, step.seed, step.sampling.seed, step.num_shots) == ("a/b", 4, 4, 2)
    assert parse_command_line("sweep", "paper", ["--config", file]).grid.seeds == (4,)
    training = parse_command_line("finetune", "paper", ["--config", file])
    assert (training.model, training.epochs, training.seed) == ("a/b", 9, 4)


def test_partial_study_file_with_dotted_keys_and_relative_seeds(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "seed: 4\nsweep.grid.seeds: [0, 1]\nannotate.sampling.top-k: 5\n")
    config = resolve_study("smoke", ["--config", file])
    assert config.sweep.grid.seeds == (4, 5)
    assert config.annotate.sampling.top_k == 5


def test_setting_names_of_earlier_versions_are_accepted(tmp_path: Path) -> None:
    file = write_settings(
        tmp_path, "prepare: {source: facts.zip}\nquestions: facts.zip\nmodel: a/b\nworld: {source: ''}\n"
    )
    assert resolve_study("paper", ["--config", file]).prepare.questions == "facts.zip"
    own = write_settings(tmp_path, "source: facts.jsonl\nfilter: none\n", "own.yaml")
    config = parse_command_line("questions", "paper", ["--config", own])
    assert (config.questions, config.filter) == ("facts.jsonl", "none")
    twice = write_settings(tmp_path, "source: a\nquestions: b\n", "twice.yaml")
    with pytest.raises(SettingsError, match="questions is given twice"):
        parse_command_line("questions", "paper", ["--config", twice])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("annotat: {}", "there is no setting 'annotat' (did you mean annotate"),
        ("annotate: {max_actor: 3}", "there is no setting 'annotate.max_actor' (did you mean annotate.max_actors?)"),
        ("learning_rate: 1", "did you mean sweep.train.learning_rate or world.learning_rate?"),
        ("seed.x: 1", "there is no setting 'seed.x'"),
        ("seed: '3'", "seed is the text '3', expected a whole number"),
        ("seed: 3.5", "seed is the number 3.5, expected a whole number"),
        ("seed: true", "seed is true, expected a whole number"),
        ("seed: [1]", "seed is a list, expected a whole number"),
        ("seed: {x: 1}", "seed is an object, expected a whole number"),
        ("model: 3", "model is the number 3, expected a text"),
        ("embedded: yes", "embedded is the text 'yes', expected true or false"),
        ("annotate: 3", "annotate is the number 3; expected settings by name"),
        ("annotate: {mode: ful}", "annotate.mode is the text 'ful', expected one of full, labels (did you mean full?)"),
        ("annotate: {max_actors: many}", "annotate.max_actors is the text 'many', expected a whole number or null"),
        ("sweep: {train: {dropout: 1e999}}", "sweep.train.dropout is inf; expected a finite number"),
        ("sweep: {grid: {epochs: 3}}", "sweep.grid.epochs is the number 3, expected a list"),
        ("sweep: {grid: {epochs: [1, x]}}", "sweep.grid.epochs[1] is the text 'x', expected a whole number"),
        ("world: {firm_mentions: [1]}", "world.firm_mentions is a list of 1 values; expected 2"),
        ("sweep: {train: {track: [mlflw]}}", "sweep.train.track[0] is the text 'mlflw', expected one of mlflow, wandb"),
        ("experiments: [--out]", "experiments holds a text that begins with a hyphen"),
        ("seed: 3\nannotate: {seed: 4}", "annotate.seed is 4, but a study sets its own seed, 3, in all steps"),
        ("annotate: {model: a/b}", "annotate.model is 'a/b', but a study sets its own model, ''"),
        ("settings: {}\nother: 1", "has other beside settings"),
        ("", "holds nothing; expected settings by name"),
        ("- 1", "holds a list; expected settings by name"),
    ],
)
def test_invalid_settings_are_refused_with_their_path(text: str, message: str, tmp_path: Path) -> None:
    file = write_settings(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        resolve_study("smoke", ["--config", file])
    assert message in str(error.value)
    assert str(error.value).startswith(f"--config {file}")


@pytest.mark.parametrize(("step", "section"), SECTIONS.items())
def test_every_step_reads_its_section_and_rejects_errors_in_it(step: str, section: str, tmp_path: Path) -> None:
    preset = next(iter(STEP_PRESETS[step]))
    value: object = {"titel": 1}
    for name in reversed(section.split(".")):
        value = {name: value}
    file = write_settings(tmp_path, {"settings": value}, "study.json")
    main = importlib.import_module(f"jobs.{step}").main
    with pytest.raises(SettingsError, match=f"there is no setting '{section}.titel'"):
        main([preset, "--out", str(tmp_path / "out"), "--config", file])
    empty = write_settings(tmp_path, {"settings": {"seed": 1}, "versions": {}}, "empty.json")
    if step in ("report",):
        with pytest.raises(SettingsError, match="has no settings of report, which `slick report` takes"):
            main([preset, "--out", str(tmp_path / "out"), "--config", empty])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1, 2]\nb: [*x, *x]", "line 1: found the anchor or alias 'x'"),
        ("a: *x", "found the anchor or alias 'x'"),
        ("&k a: 1", "not a plain string"),
        ("a: !!python/object/apply:os.system [ls]", "found the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!binary aGk=", "found the tag"),
        ("a: 1\na: 2", "line 2: found the key 'a' more than once"),
        ("? [1]\n: 2", "found a key that is not a plain string"),
        ("a: 1\n---\na: 2", "found a second document"),
        ("a: [1", "is not YAML"),
        ("a: " + "[" * 101 + "]" * 101, "more than 100 lists and mappings inside each other"),
        ("a: " + "[" * 20_000, "more than 100 lists and mappings inside each other"),
        ("#" * (1 << 18) + "\n", "at most 262,144 are read"),
    ],
    ids=lambda text: text[:20],
)
def test_unsafe_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_yaml(text.encode(), "FILE", "write it out")
    assert message in str(error.value)
    assert str(error.value).startswith("FILE")


def test_yaml_with_exponential_aliases_is_refused_without_expansion(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 60))]
    with pytest.raises(DataError, match="anchor or alias"):
        resolve_study("smoke", ["--config", write_settings(tmp_path, "\n".join(lines))])
    merged = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60))]
    with pytest.raises(DataError, match="anchor or alias"):
        resolve_study("smoke", ["--config", write_settings(tmp_path, "\n".join(merged))])


def test_plain_yaml_scalars_are_those_of_json() -> None:
    text = (
        "numbers: [1, -2, 1e-5, 1.5, .5, 1E3, 0, +4]\n"
        "texts: ['1', \"true\", no, on, 010, 1:30, 2026-01-01, 0x1f, 1_000, .nan, .inf, None, tRue, !  x]\n"
        "words: [null, ~, true, False, NULL]\nempty:\n"
    )
    value = parse_yaml(text.encode(), "FILE", "")
    assert value["numbers"] == [1, -2, 1e-5, 1.5, 0.5, 1000.0, 0, 4]
    assert [type(number) for number in value["numbers"]] == [int, int, float, float, float, float, int, int]
    assert value["texts"] == [
        *("1", "true", "no", "on", "010", "1:30", "2026-01-01", "0x1f", "1_000", ".nan", ".inf", "None", "tRue", "x")
    ]
    assert value["words"] == [None, None, True, False, None]
    assert value["empty"] is None
    assert parse_yaml(b"", "FILE", "") is None


def test_size_and_depth_of_json_files_are_limited(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        resolve_study(
            "smoke", ["--config", write_settings(tmp_path, '{"seed": ' + "[" * 200 + "]" * 200 + "}", "deep.json")]
        )
    with pytest.raises(DataError, match="more than once"):
        resolve_study("smoke", ["--config", write_settings(tmp_path, '{"seed": 1, "seed": 2}', "twice.json")])


@pytest.mark.parametrize(
    "text",
    [
        '{"questions": "s3://KEY:SECRET@bucket/q.zip"}',
        '{"experiments": ["s3://bucket/x?session_token=SECRET"]}',
        '{"s3://KEY:SECRET@bucket/x": 1}',
        '{"annotate": {"s3://KEY:SECRET@bucket/x": 1}}',
    ],
)
@pytest.mark.parametrize("name", ["settings.yaml", "settings.json"])
def test_uri_with_a_secret_is_refused_and_not_repeated(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(SlickError, match="is or may be a secret") as error:
        resolve_study("smoke", ["--config", write_settings(tmp_path, text, name)])
    assert "=SECRET" not in str(error.value)
    assert "SECRET@bucket" not in str(error.value)


def test_invalid_settings_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder; give a file"):
        resolve_study("smoke", ["--config", str(tmp_path)])
    with pytest.raises(SlickError, match="none"):
        resolve_study("smoke", ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(SettingsError, match="takes one --config FILE"):
        resolve_study("smoke", ["--config", "a", "--config", "b"])
    with pytest.raises(SettingsError, match=r"no flag --confg \(did you mean --config\?\)"):
        study.main(["smoke", "--confg", "a"])
    with pytest.raises(SettingsError, match=r"no flag --sead \(did you mean --seed\?\)"):
        resolve_study("smoke", ["--config", "a", "--sead", "1"])


def test_rescore_config_file_has_only_its_settings(tmp_path: Path) -> None:
    argv = ["annotate", "demo", "--rescore", "--address", "http://10.0.0.5:8265", "--out", "s3://b/s", "--config"]
    job = parse_submission([*argv, write_settings(tmp_path, "matcher: contains\nnum_samples: null\n")])
    assert job.entrypoint.endswith("--rescore --matcher=contains")
    with pytest.raises(SettingsError, match="no setting 'settings'"):
        parse_submission(
            [*argv, write_settings(tmp_path, {"settings": settings_to_json(RescoreConfig())}, "study.json")]
        )


def test_submitted_job_has_the_settings_of_the_file_as_flags(tmp_path: Path) -> None:
    questions = write_settings(tmp_path, "{}", "facts.jsonl")
    file = write_settings(
        tmp_path, {"model": "a/b", "questions": questions, "experiments": [], "report": {"title": "My study"}}
    )
    argv = ["study", "paper", "--address", "http://10.0.0.5:8265", "--out", "s3://b/s", "--config", file, "--seed", "3"]
    job = parse_submission(argv)
    flags = "--model=a/b --questions=files/facts.jsonl '--report.title=My study' --seed 3"
    assert job.entrypoint == f"sh jobs/start.sh study paper --out s3://b/s {flags}"
    assert job.job_files.files == {"files/facts.jsonl": Path(questions)}
    with pytest.raises(SettingsError, match="no setting 'modl'"):
        parse_submission([*argv[:-3], write_settings(tmp_path, {"modl": "a/b"}, "wrong.yaml")])


def test_step_runs_with_the_settings_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"relation": "P19", "split": split, "question": f"Where was {split} {i} born?", "answers": [f"City {i}"]}
        for split in ("train", "dev", "test")
        for i in range(4)
    ]
    questions = write_settings(tmp_path, "\n".join(map(json.dumps, rows)), "facts.jsonl")
    file = write_settings(tmp_path, f"filter: none\nquestions: {questions}\nlimit_per_relation: 2\n")
    questions_main = importlib.import_module("jobs.questions").main
    questions_main(["paper", "--config", file, "--limit-per-relation", "3", "--out", str(tmp_path / "study")])
    manifest = require_manifest(Folder(str(tmp_path / "study" / "questions")), "questions")
    assert manifest.settings["filter"] == "none"
    assert manifest.settings["limit_per_relation"] == 3
