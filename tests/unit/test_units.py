"""How the batches of a study are dealt out: each once, in large units first, so that the last ones end together."""

import heapq

import pyarrow as pa
import pytest

from slick.annotation.store import QuestionBatch, cut_batches, make_units

NUM_QUESTIONS = {"P17": 70, "P19": 201, "P36": 5}


def batches(size: int = 4) -> list[QuestionBatch]:
    rows = [
        {"relation": relation, "question_id": f"{relation}-{i}", "question": f"Who is {i}?", "answers": [str(i)]}
        for relation, num in NUM_QUESTIONS.items()
        for i in range(num)
    ]
    return cut_batches(pa.Table.from_pylist(rows), size)


@pytest.mark.parametrize(("most", "num_actors"), [(1, 1), (3, 2), (16, 1), (1000, 3), (16, 1000)])
def test_every_batch_is_dealt_out_once_and_whole_with_those_of_its_relation(most: int, num_actors: int) -> None:
    units = make_units(
        {"generations": batches(), "controls": batches()[:3]}, max_batches=most, num_actors=num_actors, num_turns=2
    )
    for store, wanted in (("generations", batches()), ("controls", batches()[:3])):
        rows = [row for unit in units for row in unit.to_pylist() if row["store"] == store]
        for relation in NUM_QUESTIONS:
            dealt = [i for row in rows if row["relation"] == relation for i in row["question_id"]]
            all_ids = (i for batch in wanted for i in batch.questions["question_id"].to_pylist())
            assert dealt == [i for i in all_ids if i.startswith(f"{relation}-")]
        begins = {batch.questions["question_id"][0].as_py(): batch.index for batch in wanted}
        for row in rows:
            assert begins[row["question_id"][0]] == row["first_batch"]
            assert {i.split("-")[0] for i in row["question_id"]} == {row["relation"]}
            assert len(row["question_id"]) == len(row["question"]) == len(row["answers"]) <= 4 * most


def test_units_shrink_towards_the_end_to_single_batches() -> None:
    units = make_units({"generations": batches(1)}, max_batches=8, num_actors=2, num_turns=2)
    sizes = [len(unit["question_id"][0]) for unit in units]
    assert max(sizes) == 8
    assert sizes[-6:] == [1] * 6  # more than the two actors hold at once
    assert len(sizes) < sum(NUM_QUESTIONS.values()) / 3  # single ones at the end alone


@pytest.mark.parametrize("num_actors", [1, 2, 3, 6])
def test_few_actors_meet_the_same_relation(num_actors: int) -> None:
    nums = {f"P{i:02d}": 40 + 7 * (i % 5) for i in range(12)}
    rows = [
        {"relation": relation, "question_id": f"{relation}-{i}", "question": "Who?", "answers": [""]}
        for relation, num in nums.items()
        for i in range(num)
    ]
    missing = {"generations": cut_batches(pa.Table.from_pylist(rows), 4)}
    units = make_units(missing, max_batches=2, num_actors=num_actors, num_turns=num_actors)
    free = [(0, actor) for actor in range(num_actors)]
    met: set[tuple[int, str]] = set()
    for unit in units:
        at, actor = heapq.heappop(free)  # whoever is free first, as the pool does
        (row,) = unit.to_pylist()
        met.add((actor, row["relation"]))
        heapq.heappush(free, (at + len(row["question_id"]), actor))
    # One relation after the other, nearly every actor would meet each.
    assert len(met) <= len(nums) * (1 + num_actors) / 2


def test_one_actor_has_done_with_a_relation_before_the_next_where_more_may_come() -> None:
    units = make_units({"generations": batches()}, max_batches=2, num_actors=40, num_turns=1)
    relations = [unit["relation"][0].as_py() for unit in units]
    assert relations == sorted(relations)


def test_many_actors_all_get_work() -> None:
    units = make_units({"generations": batches()}, max_batches=16, num_actors=40, num_turns=1)
    assert len(units) == len(batches())
