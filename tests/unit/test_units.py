"""Batches are distributed once each, in units of decreasing size, so that actors finish together."""

import heapq

import pyarrow as pa
import pytest

from slick.annotation.store import QuestionBatch, cut_batches, make_units

NUM_QUESTIONS = {"P17": 70, "P19": 201, "P36": 5}


def batches(size: int = 4) -> list[QuestionBatch]:
    rows = [
        {
            "relation": relation,
            "prompt_group": relation,
            "question_id": f"{relation}-{i}",
            "suffix": f"Q: Who is {i}?\nA:",
            "answers": [str(i)],
        }
        for relation, num in NUM_QUESTIONS.items()
        for i in range(num)
    ]
    return cut_batches(pa.Table.from_pylist(rows), size)


@pytest.mark.parametrize(("max_batches", "num_actors"), [(1, 1), (3, 2), (16, 1), (1000, 3), (16, 1000)])
def test_every_batch_is_in_one_unit_of_its_relation(max_batches: int, num_actors: int) -> None:
    units = make_units(
        {"generations": batches(), "controls": batches()[:3]},
        max_batches=max_batches,
        num_actors=num_actors,
        num_turns=2,
    )
    for store, expected in (("generations", batches()), ("controls", batches()[:3])):
        rows = [row for unit in units for row in unit.to_pylist() if row["store"] == store]
        for relation in NUM_QUESTIONS:
            ids = [i for row in rows if row["relation"] == relation for i in row["question_id"]]
            all_ids = (i for batch in expected for i in batch.questions["question_id"].to_pylist())
            assert ids == [i for i in all_ids if i.startswith(f"{relation}-")]
        first_batches = {batch.questions["question_id"][0].as_py(): batch.index for batch in expected}
        for row in rows:
            assert first_batches[row["question_id"][0]] == row["first_batch"]
            assert {i.split("-")[0] for i in row["question_id"]} == {row["relation"]}
            assert len(row["question_id"]) == len(row["suffix"]) == len(row["answers"]) <= 4 * max_batches


def test_units_shrink_to_single_batches() -> None:
    units = make_units({"generations": batches(1)}, max_batches=8, num_actors=2, num_turns=2)
    sizes = [len(unit["question_id"][0]) for unit in units]
    assert max(sizes) == 8
    assert sizes[-6:] == [1] * 6  # more than two actors hold at once
    assert len(sizes) < sum(NUM_QUESTIONS.values()) / 3  # single batches only at the end


@pytest.mark.parametrize("num_actors", [1, 2, 3, 6])
def test_few_actors_process_the_same_relation(num_actors: int) -> None:
    nums = {f"P{i:02d}": 40 + 7 * (i % 5) for i in range(12)}
    rows = [
        {
            "relation": relation,
            "prompt_group": relation,
            "question_id": f"{relation}-{i}",
            "suffix": "Q: Who?\nA:",
            "answers": [""],
        }
        for relation, num in nums.items()
        for i in range(num)
    ]
    missing = {"generations": cut_batches(pa.Table.from_pylist(rows), 4)}
    units = make_units(missing, max_batches=2, num_actors=num_actors, num_turns=num_actors)
    free_actors = [(0, actor) for actor in range(num_actors)]
    pairs: set[tuple[int, str]] = set()
    for unit in units:
        time, actor = heapq.heappop(free_actors)  # the first free actor, as in the pool
        (row,) = unit.to_pylist()
        pairs.add((actor, row["relation"]))
        heapq.heappush(free_actors, (time + len(row["question_id"]), actor))
    # With sequential relations, nearly every actor would process every relation.
    assert len(pairs) <= len(nums) * (1 + num_actors) / 2


def test_relations_are_sequential_without_interleaving() -> None:
    units = make_units({"generations": batches()}, max_batches=2, num_actors=40, num_turns=1)
    relations = [unit["relation"][0].as_py() for unit in units]
    assert relations == sorted(relations)


def test_many_actors_all_get_work() -> None:
    units = make_units({"generations": batches()}, max_batches=16, num_actors=40, num_turns=1)
    assert len(units) == len(batches())
