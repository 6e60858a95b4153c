"""Batches are distributed once each, in units of decreasing size, so that actors finish together."""

import heapq
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slick.annotation.plan import (
    BatchRun,
    Plan,
    make_units,
    missing_batches,
    parts_by_plan,
    place_plans,
    plan_folder,
    read_unit,
    write_plan,
)
from slick.errors import StudyError
from slick.storage import Folder
from slick.study_files import SET_ASIDE_SCHEMA

NUM_QUESTIONS = {"P17": 70, "P19": 201, "P36": 5}
NOTHING = SET_ASIDE_SCHEMA.empty_table()


def plans(size: int = 4, nums: dict[str, int] = NUM_QUESTIONS) -> list[Plan]:
    """One plan per relation, without files."""
    numbers = {relation: np.arange(-(-num // size)) for relation, num in nums.items()}
    return place_plans(
        [
            Plan(
                file=f"{relation}.parquet",
                runs=(BatchRun(relation=relation, prompt_group=relation, batches=batches),),
                num_batches=len(batches),
                num_questions=nums[relation],
            )
            for relation, batches in numbers.items()
        ]
    )


def questions(nums: dict[str, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "relation": relation,
                "prompt_group": relation,
                "question_id": f"{relation}-{i:04d}",
                "suffix": f"Q: Who is {i}?\nA:",
                "answers": [str(i)],
            }
            for relation, num in nums.items()
            for i in range(num)
        ]
    )


@pytest.mark.parametrize(("max_batches", "num_actors"), [(1, 1), (3, 2), (16, 1), (1000, 3), (16, 1000)])
def test_every_batch_is_in_one_unit_of_its_relation(max_batches: int, num_actors: int) -> None:
    expected = {"generations": plans(), "controls": plans()[:1]}
    units = list(make_units(expected, max_batches=max_batches, num_actors=num_actors, num_turns=2))
    for store, of_store in expected.items():
        for plan in of_store:
            rows = [unit for unit in units if (unit["store"], unit["plan"]) == (store, plan.file)]
            assert [batch for row in rows for batch in row["batches"]] == list(range(plan.num_batches))
            for row in rows:
                assert row["relation"] == row["prompt_group"] == plan.runs[0].relation
                assert row["part"] == plan.first + row["batches"][0]
                assert len(row["batches"]) <= max_batches
    assert len({(unit["store"], unit["part"]) for unit in units}) == len(units)


def test_units_shrink_to_single_batches() -> None:
    units = make_units({"generations": plans(1)}, max_batches=8, num_actors=2, num_turns=2)
    sizes = [len(unit["batches"]) for unit in units]
    assert max(sizes) == 8
    assert sizes[-6:] == [1] * 6  # more than two actors hold at once
    assert len(sizes) < sum(NUM_QUESTIONS.values()) / 3  # single batches only at the end


@pytest.mark.parametrize("num_actors", [1, 2, 3, 6])
def test_few_actors_process_the_same_relation(num_actors: int) -> None:
    nums = {f"P{i:02d}": 40 + 7 * (i % 5) for i in range(12)}
    units = make_units({"generations": plans(4, nums)}, max_batches=2, num_actors=num_actors, num_turns=num_actors)
    free_actors = [(0, actor) for actor in range(num_actors)]
    pairs: set[tuple[int, str]] = set()
    for unit in units:
        time, actor = heapq.heappop(free_actors)  # the first free actor, as in the pool
        pairs.add((actor, unit["relation"]))
        heapq.heappush(free_actors, (time + len(unit["batches"]), actor))
    # With sequential relations, nearly every actor would process every relation.
    assert len(pairs) <= len(nums) * (1 + num_actors) / 2


def test_relations_are_sequential_without_interleaving() -> None:
    units = make_units({"generations": plans()}, max_batches=2, num_actors=40, num_turns=1)
    relations = [unit["relation"] for unit in units]
    assert relations == sorted(relations)


def test_many_actors_all_get_work() -> None:
    units = list(make_units({"generations": plans()}, max_batches=16, num_actors=40, num_turns=1))
    assert len(units) == sum(plan.num_batches for plan in plans())


def test_a_unit_has_the_questions_of_its_batches(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    table = questions({"P17": 9000, "P19": 3})  # several row groups
    plan = write_plan(plan_folder(folder, "generations"), "all.parquet", table, 32, NOTHING)
    assert (plan.num_batches, plan.num_questions) == (283, 9003)
    units = list(make_units({"generations": [plan]}, max_batches=5, num_actors=1, num_turns=1))
    rows = [row for unit in units for row in read_unit(folder, unit).to_pylist()]
    for row in rows:
        row.pop("batch")
    assert rows == table.select(["question_id", "suffix", "answers"]).to_pylist()
    with pytest.raises(StudyError, match=r"lacks batches \[283\]"):
        read_unit(folder, units[-1] | {"batches": [282, 283]})


def store_parts(folder: Folder, parts: dict[int, list[str]]) -> None:
    for number, ids in parts.items():
        folder.child("generations").write_table(f"part-{number:06d}.parquet", pa.table({"question_id": ids}))


def missing_of(folder: Folder, plan: Plan) -> Plan:
    return missing_batches(folder, "generations", plan, folder.child("generations").names())


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Folder, Plan]:
    folder = Folder(str(tmp_path))
    return folder, write_plan(plan_folder(folder, "generations"), "all.parquet", questions({"P17": 10}), 4, NOTHING)


def test_stored_batches_are_not_missing(planned: tuple[Folder, Plan]) -> None:
    folder, plan = planned
    store_parts(folder, {1: [f"P17-{i:04d}" for i in (4, 5, 6, 7)]})
    left = missing_of(folder, plan)
    assert ([run.batches.tolist() for run in left.runs], left.num_questions) == ([[0, 2]], 6)
    store_parts(folder, {0: [f"P17-{i:04d}" for i in (0, 1, 2, 3, 8, 9)]})
    left = missing_of(folder, plan)
    assert (left.runs, left.num_questions, left.num_batches) == ((), 0, 3)


@pytest.mark.parametrize("ids", [["P17-0000"], ["P19-0000"], [f"P17-{i:04d}" for i in (8, 9, 8, 9)]])
def test_files_of_other_batches_are_refused(planned: tuple[Folder, Plan], ids: list[str]) -> None:
    folder, plan = planned
    store_parts(folder, {0: ids})
    with pytest.raises(StudyError, match=r"holds \d questions in part-000000\.parquet and 0 further"):
        missing_of(folder, plan)


def test_unreadable_files_are_deleted(planned: tuple[Folder, Plan]) -> None:
    folder, plan = planned
    folder.child("generations").write_bytes("part-000000.parquet", b"PAR1")
    assert missing_of(folder, plan) == plan
    assert folder.child("generations").names() == []


def test_part_files_belong_to_the_plan_of_their_number() -> None:
    names = ["part-000000.parquet", "part-000017.parquet", "part-000018.parquet", "part-000070.parquet", "x.parquet"]
    assert [plan.first for plan in plans()] == [0, 18, 69]
    assert parts_by_plan(plans(), names) == [names[:2], names[2:3], names[3:]]


def test_questions_that_are_set_aside_keep_the_numbers_of_batches(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    ids = [f"P17-{i:04d}" for i in (1, 3, 4, 5)]
    columns = {"relation": "P17", "domain": "id", "split": "test", "reason": "too long"}
    set_aside = pa.Table.from_pylist([{"question_id": name, **columns} for name in ids], SET_ASIDE_SCHEMA)
    table = questions({"P17": 8})
    plan = write_plan(plan_folder(folder, "generations"), "all.parquet", table, 2, set_aside)
    assert [run.batches.tolist() for run in plan.runs] == [[0, 1, 3]]
    assert (plan.num_batches, plan.num_questions) == (4, 4)
    rows = read_unit(folder, unit_of(plan))
    assert dict(zip(rows["question_id"].to_pylist(), rows["batch"].to_pylist(), strict=True)) == {
        "P17-0000": 0,
        "P17-0002": 1,
        "P17-0006": 3,
        "P17-0007": 3,
    }


def unit_of(plan: Plan) -> dict[str, Any]:
    """All batches of a plan."""
    (run,) = plan.runs
    return {"store": "generations", "plan": plan.file, "batches": run.batches.tolist()}


def test_a_plan_may_be_empty(tmp_path: Path) -> None:
    folder = plan_folder(Folder(str(tmp_path)), "generations")
    plan = write_plan(folder, "all.parquet", questions({"P17": 1}).slice(0, 0), 32, NOTHING)
    assert (plan.runs, plan.num_batches, plan.num_questions) == ((), 0, 0)
    assert folder.read_table("all.parquet").num_rows == 0
