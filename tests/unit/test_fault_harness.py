"""The harness of random faults: it finds changed rows, judges how a run ended, and counts faults by kind and step."""

import json
import random
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults import kinds
from tests.faults.comparison import find_differences
from tests.faults.harness import next_number, read_results, write_results
from tests.faults.kinds import KINDS, Target
from tests.faults.leftovers import Watch, leftover_files, session_processes, unused_shared_memory
from tests.faults.places import choose_place
from tests.faults.results import summary, table
from tests.faults.rounds import CONTINUED, RESUMED, WRONG, Applied, Round, _judge_end, plan_round
from tests.faults.store_proxy import CUT, ERRORS, LATENCY, StoreProxy, running_proxy
from tests.waiting import wait_for

ANSWERS = {
    "question_id": ["a", "b", "c", "d"],
    "greedy": ["Paris", "Rome", "", "Oslo"],
    "hits": [[True], [False], [False], [True]],
    "loss": [0.25, 1.5, float("nan"), 3.0],
}


def write_study(path: Path, parts: tuple[slice, ...] = (slice(0, 4),), **changes: list[object]) -> Path:
    folder = path / "annotate" / "generations"
    folder.mkdir(parents=True)
    table = pa.table(ANSWERS | changes)
    for number, rows in enumerate(parts):
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), folder / f"part-{number:06}.parquet")
    (path / "report").mkdir()
    findings = [{"id": "E1", "verdict": "holds", "own": "0.5", "power": 0.75}]
    (path / "report" / "outcomes.json").write_text(json.dumps(findings))
    return path


def test_equal_studies_may_have_their_rows_in_other_files(tmp_path: Path) -> None:
    first = write_study(tmp_path / "first")
    assert find_differences(first, write_study(tmp_path / "same", (slice(2, 4), slice(0, 2)))) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"greedy": ["Paris", "Rome", " ", "Oslo"]}, "annotate/generations/part-*: column greedy differs in 1 rows"),
        ({"hits": [[True], [True], [False], [True]]}, "column hits differs in 1 rows; row 1: [True], not [False]"),
        ({"loss": [0.26, 1.5, float("nan"), 3.0]}, "column loss differs in 1 rows; row 0: 0.26, not 0.25"),
        ({"loss": [0.25, 1.5, 0.0, 3.0]}, "column loss differs in 1 rows; row 2: 0.0, not nan"),
        ({"question_id": ["a", "b", "c", "c"]}, "column question_id differs in 1 rows"),
        ({"more": [1, 2, 3, 4]}, "columns ["),
    ],
)
def test_a_changed_row_is_found(tmp_path: Path, changes: dict[str, list[object]], expected: str) -> None:
    first, second = write_study(tmp_path / "first"), write_study(tmp_path / "second", **changes)
    (difference,) = find_differences(first, second)
    assert expected in difference


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    second = write_study(tmp_path / "second", loss=[0.25000001, 1.5, float("nan"), 3.0])
    assert find_differences(write_study(tmp_path / "first"), second) == []


def test_missing_rows_files_and_verdicts_are_found(tmp_path: Path) -> None:
    first = write_study(tmp_path / "first")
    fewer = write_study(tmp_path / "fewer", (slice(0, 3),))
    assert find_differences(first, fewer) == ["annotate/generations/part-*: 3 rows, expected 4"]

    (fewer / "annotate" / "generations" / "part-000000.parquet").unlink()
    (fewer / "report" / "outcomes.json").write_text('[{"id": "E1", "verdict": "fails", "own": "0.5", "power": 0.75}]')
    assert find_differences(first, fewer) == [
        "annotate/generations/part-*: missing",
        "report/outcomes.json: E1 differs in verdict",
    ]


def test_table_counts_faults_by_kind_and_step() -> None:
    rounds = [
        Round(
            number=0,
            applied=[
                Applied(kind="driver", step="sweep", action="", outcome=RESUMED),
                Applied(kind="actor", step="annotate", action="", outcome=CONTINUED),
            ],
            statuses=[-9, 0],
        ),
        Round(
            number=1,
            applied=[
                Applied(kind="driver", step="sweep", action="", outcome=RESUMED),
                Applied(kind="driver", step="report", action="", outcome=WRONG),
            ],
            differences=["points.parquet: 1 row"],
            late=["raylet"],
            longest_s=31.4,
        ),
    ]
    assert table(rounds)[2:] == [
        "| actor | annotate | 1 | 1 | 0 | 0 | 0 |",
        "| driver | report | 1 | 0 | 0 | 0 | 1 |",
        "| driver | sweep | 2 | 0 | 1 | 1 | 0 |",
        "| all |  | 4 | 1 | 1 | 1 | 1 |",
    ]
    assert "differ from the undisturbed one: 1" in summary(rounds)[1]
    assert "more than 20 s: 1; the longest life was 31 s" in summary(rounds)[2]


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (-9, "", RESUMED),
        (2, "\nslick: the disk is full; run the same command again\n", RESUMED),
        (2, "\nslick: the disk is full\n", WRONG),
        (2, "slick: one, run it again\nslick: two\n", WRONG),
        (1, "Traceback (most recent call last):\nValueError: slick\n", WRONG),
        (-999, "", WRONG),
    ],
)
def test_a_run_must_end_with_one_message_that_says_how_to_resume(status: int, output: str, expected: str) -> None:
    result = Round(number=0, applied=[Applied(kind="driver" if status == -9 else "raylet", step="sweep", action="")])
    _judge_end(result, status, output, is_disturbed=True)
    assert [fault.outcome for fault in result.applied] == [expected]


def test_plans_depend_on_the_seed_alone_and_are_in_order_of_the_steps() -> None:
    plans = [plan_round(0, number, list(KINDS)) for number in range(60)]
    assert plans == [plan_round(0, number, list(KINDS)) for number in range(60)]
    assert plans != [plan_round(1, number, list(KINDS)) for number in range(60)]
    assert {fault.kind for plan in plans for fault in plan} == set(KINDS)
    assert all(fault.step in KINDS[fault.kind].steps for plan in plans for fault in plan)


def test_finished_rounds_are_read_and_not_repeated(tmp_path: Path) -> None:
    rounds = [Round(number=0, applied=[Applied(kind="driver", step="sweep", action="")], statuses=[0])]
    write_results(tmp_path / "results.json", rounds)
    assert read_results(tmp_path / "results.json") == rounds
    assert next_number(0, rounds) == 1


def test_processes_and_files_that_remain_are_found(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    driver.wait()
    (orphan,) = session_processes(driver.pid)
    assert "time.sleep(600)" in orphan.title
    watch = Watch(driver.pid)
    wait_for(lambda: watch.longest_s > 0)
    subprocess.run(["kill", "-9", str(orphan.pid)], check=True)
    watch.join()
    assert session_processes(driver.pid) == []

    reference, study, temporary = (tmp_path / name for name in ("reference", "study", "t"))
    for path in ("reference/annotate", "study/annotate", "study/.locks", "t/ray", "t/slick-x"):
        (tmp_path / path).mkdir(parents=True)
    (study / "annotate" / ".knowledge.parquet.0.part").touch()
    assert leftover_files(study, reference, temporary) == [
        "annotate/.knowledge.parquet.0.part",
        ".locks",
        "TMPDIR/slick-x",
    ]
    assert "slick-not-there" not in unused_shared_memory(set())


@pytest.fixture
def store() -> Iterator[StoreProxy]:
    """A proxy of a server that keeps the bodies of PUT requests."""
    objects: dict[str, bytes] = {}

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, b"")

        def do_GET(self) -> None:
            self.answer(200 if self.path in objects else 404, objects.get(self.path, b"not there"))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with running_proxy(f"http://127.0.0.1:{server.server_address[1]}", random.Random(0)) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


def put(store: StoreProxy, name: str, body: bytes) -> int:
    request = urllib.request.Request(f"{store.address}/{name}", data=body, method="PUT")
    return urllib.request.urlopen(request).status


def get(store: StoreProxy, name: str) -> bytes:
    return urllib.request.urlopen(f"{store.address}/{name}").read()


def test_proxy_passes_requests_and_answers(store: StoreProxy) -> None:
    assert put(store, "a", b"x" * 100_000) == 200
    assert get(store, "a") == b"x" * 100_000
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(store, "b")
    connection = HTTPConnection(urlsplit(store.address).netloc)
    connection.request("PUT", "/c", body=iter([b"in ", b"chunks"]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert get(store, "c") == b"in chunks"
    assert store.num_disturbed == 0


def test_disturbed_proxy_answers_errors_or_cuts_connections(store: StoreProxy) -> None:
    put(store, "a", b"x" * 100_000)
    store.disturb(ERRORS)
    statuses = set()
    for _ in range(20):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(store, "a")
        statuses.add(caught.value.code)
    assert statuses == {429, 500, 503}
    store.disturb(CUT)
    for _ in range(10):
        with pytest.raises((OSError, HTTPException)):
            get(store, "a")
    store.disturb(CUT, share=0.0)
    assert get(store, "a") == b"x" * 100_000
    store.recover()
    assert store.num_disturbed == 30
    assert get(store, "a") == b"x" * 100_000


@pytest.mark.parametrize(("name", "fault"), [("errors", ERRORS), ("latency", LATENCY), ("cut", CUT)])
def test_object_store_fails_for_some_time(
    name: str, fault: str, store: StoreProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_STORE_OUTAGES_S", (0.2, 0.4))
    monkeypatch.setattr(kinds, "_LONG_STORE_OUTAGE_S", 0.4)
    actions: list[str] = []

    def request() -> bool:
        actions.append(store.draw_action()[0])
        return False

    target = Target(
        session=0,
        disk=tmp_path,
        hooks=tmp_path,
        store=store,
        has_ended=request,
        is_in_step=lambda: True,
        rng=random.Random(1),
    )
    action = KINDS[f"object store {name}"].inject(target)
    assert action is not None
    assert "requests disturbed" in action
    assert set(actions) <= {"", fault}
    assert fault in actions
    assert store.draw_action() == ("", 0.0), "it has recovered"


def test_place_of_a_study_fits_the_kinds_of_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reference" / "world").mkdir(parents=True)
    with choose_place(tmp_path / "round", tmp_path / "reference", list(KINDS), 0) as place:
        assert place.proxy is None
        assert Path(place.uri, "world").is_dir()
        assert "driver" in place.kinds
        assert not {name for name in place.kinds if KINDS[name].needs == "store"}
        assert place.fetch() == Path(place.uri)
