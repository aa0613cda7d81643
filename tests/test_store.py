"""The annotation store: what was written is there, in order, once, whatever happens to the process or the file."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.captions import caption_id
from reward_server.export import export_parquet
from reward_server.mirror import mirror_path
from reward_server.store import AnnotationStore, AnnotationStoreError, LabelRecord
from reward_server.types import Answer, JudgeKey, Pair
from tests.full_disk import no_file_larger_than

KEY = JudgeKey("v1", "default", "model", "direct", "{}")
OTHER = JudgeKey("v2", "default", "model", "direct", "{}")


def record(text: str, label: int | None, probability: float | None = None, raw: str = "raw") -> LabelRecord:
    return LabelRecord(caption_id(text), Answer(label, probability, raw, 0.25), attempts=2)


def put(store: AnnotationStore, text: str, label: int | None, key: JudgeKey = KEY) -> int:
    return store.write(key, [record(text, label)], [(caption_id(text), text)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.sqlite"


def test_what_is_written_is_read_again_after_reopening(path: Path) -> None:
    texts = ["You see here a key.", "Größe: 3 \N{SNOWMAN}", "lone surrogate \udce9"]
    with AnnotationStore(path) as store:
        assert store.add_captions((caption_id(t), t) for t in texts) == 3
        assert store.add_captions([(caption_id(texts[0]), texts[0])]) == 0
        written = store.write(KEY, [record(texts[0], 1, 0.75), record(texts[2], 0, raw="\udcff odd")])
        assert written == 2
    with AnnotationStore(path) as store:
        labels, cursor = store.labels_since(0, KEY)
        assert [(row.text, row.label, row.probability) for row in labels] == [(texts[0], 1, 0.75), (texts[2], 0, None)]
        assert cursor == store.cursor(KEY) == labels[-1].seq
        assert store.labels_since(cursor, KEY) == ([], cursor)
        assert store.unlabelled(KEY) == [(caption_id(texts[1]), texts[1])]
        assert store.texts([caption_id(texts[1]), 77]) == {caption_id(texts[1]): texts[1]}
        assert store.keys() == [KEY]


def test_a_label_gives_way_to_nothing_and_a_failure_to_a_label(path: Path) -> None:
    with AnnotationStore(path) as store:
        assert put(store, "a", None) == 1
        assert store.failed_ids(KEY) == {caption_id("a")}
        assert put(store, "a", 1) == 1  # asked again by a later run
        assert store.failed_ids(KEY) == set()
        assert put(store, "a", 0) == 0  # a late second answer
        assert put(store, "a", None) == 0
        labels, _ = store.labels_since(0, KEY)
        assert [(row.text, row.label) for row in labels] == [("a", 1)]
        assert (store.counts(KEY).labelled, store.counts(KEY).failed) == (1, 0)


def test_labels_hang_on_their_key(path: Path) -> None:
    with AnnotationStore(path) as store:
        put(store, "a", 1, KEY)
        put(store, "a", 0, OTHER)
        assert store.labelled_ids(KEY) == store.labelled_ids(OTHER) == {caption_id("a")}
        assert store.labels_since(0, OTHER)[0][0].label == 0
        assert store.counts().labelled == 2
        assert store.labels_since(0, JudgeKey("", "", "", "", "")) == ([], 0)


def test_a_transaction_is_whole_or_not_there(path: Path) -> None:
    with AnnotationStore(path) as store:
        with pytest.raises(AnnotationStoreError, match="FOREIGN KEY"):
            store.write(KEY, [record("a", 1), record("never added", 1)], [(caption_id("a"), "a")])
        assert store.counts() == store.counts(KEY)
        assert (store.counts().captions, store.counts().labelled) == (0, 0)
        assert put(store, "a", 1) == 1  # the key of the transaction that failed is not remembered


def test_labels_set_aside_wait_for_their_turn_and_then_come_once(path: Path) -> None:
    with AnnotationStore(path) as store:
        for text in "abc":
            put(store, text, 1)
        cursor = store.labels_since(0, KEY, limit=1)[1]
        assert store.set_aside(KEY, cursor) == 2
        assert store.labelled_ids(KEY) == {caption_id("a")}
        assert set(store.aside(KEY)) == {caption_id("b"), caption_id("c")}
        assert store.labels_since(cursor, KEY) == ([], cursor)
        put(store, "c", 0)
        labels, end = store.labels_since(cursor, KEY)
        assert [(row.text, row.label) for row in labels] == [("c", 0)]
        assert end > cursor
        assert store.counts(KEY).labelled == 3, "what is aside was paid for"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1, None]), st.booleans()), max_size=40))
def test_a_cursor_misses_nothing_and_repeats_nothing(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int | None, bool]]
) -> None:
    with AnnotationStore(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        expected: dict[str, int] = {}
        order: list[str] = []
        seen: list[str] = []
        cursor = 0
        for number, label, look in writes:
            text = f"caption {number}"
            put(store, text, label)
            if label is not None and text not in expected:
                expected[text] = label
                order.append(text)
            if look:
                rows, cursor = store.labels_since(cursor, KEY)
                seen += [row.text for row in rows]
        rows, _ = store.labels_since(cursor, KEY)
        assert seen + [row.text for row in rows] == order
        everything, _ = store.labels_since(0, KEY)
        assert {row.text: row.label for row in everything} == expected


def test_export_is_one_object_a_line(path: Path, tmp_path: Path) -> None:
    with AnnotationStore(path) as store:
        put(store, "lone \udce9", 1)
        put(store, "b", None)
        assert store.export_jsonl(tmp_path / "out.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["text"], line["state"], line["label"]) for line in lines] == [
        ("lone \udce9", "labelled", 1),
        ("b", "failed", None),
    ]
    assert lines[0]["prompt_version"] == "v1" and lines[0]["attempts"] == 2


# -- one writer, many readers ---------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_a_reader_is_not(path: Path) -> None:
    with AnnotationStore(path) as store:
        put(store, "a", 1)
        with pytest.raises(AnnotationStoreError, match=f"being written by process {os.getpid()}"):
            AnnotationStore(path)
        with AnnotationStore(path, read_only=True) as reader:
            assert reader.counts(KEY).labelled == 1
            put(store, "b", 1)
            assert reader.counts(KEY).labelled == 2
            with pytest.raises(AnnotationStoreError, match=r"readonly.*run\.dir"):
                put(reader, "c", 1)
    AnnotationStore(path).close()


def test_a_writer_in_another_process_holds_the_lock_until_its_death(path: Path) -> None:
    child = _child(path, "print('ready', flush=True); time.sleep(60)")
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(AnnotationStoreError, match=f"being written by process {child.pid}"):
            AnnotationStore(path)
    finally:
        child.kill()
        child.wait()
    AnnotationStore(path).close()


def test_every_acknowledged_label_survives_kill_9(path: Path) -> None:
    child = _child(
        path,
        """
for i in range(10**6):
    text = f'caption {i}'
    store.write(key, [LabelRecord(caption_id(text), Answer(i % 2, None, 'x' * 200, 0.0))], [(caption_id(text), text)])
    print(i, flush=True)
""",
    )
    assert child.stdout is not None
    acknowledged = -1
    while acknowledged < 300:
        acknowledged = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read()
    child.wait()
    acknowledged = max([acknowledged, *(int(line) for line in rest.split("\n")[:-1])])
    with AnnotationStore(path) as store:
        labels, _ = store.labels_since(0, KEY)
    assert [row.text for row in labels][: acknowledged + 1] == [f"caption {i}" for i in range(acknowledged + 1)]
    assert len(labels) <= acknowledged + 2  # one more may be written and not yet said


def _child(path: Path, body: str) -> "subprocess.Popen[str]":
    program = f"""
import time
from envs.captions import caption_id
from reward_server.mirror import mirror_path
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeKey, Pair
key = JudgeKey('v1', 'default', 'model', 'direct', '{{}}')
store = AnnotationStore({str(path)!r})
{body}
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())


# -- files that are no store ----------------------------------------------------------------------------------------


def _filled(path: Path) -> None:
    with AnnotationStore(path) as store:
        texts = [f"caption {i}" for i in range(2000)]
        store.write(KEY, [record(t, 0) for t in texts], [(caption_id(t), t) for t in texts])


def _header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"garbage garbage!")


def _page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 4096)


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [_header, _page, _half])
def test_a_damaged_file_is_made_anew_from_its_copy(path: Path, spoil: Callable[[Path], None]) -> None:
    """Labels, failures, pairs, what was set aside, and their numbers: all as before."""
    with AnnotationStore(path) as store:
        texts = [f"caption {i}" for i in range(2000)]
        store.write(KEY, [record(t, None if i % 7 == 0 else i % 2, 0.25) for i, t in enumerate(texts)],
                    [(caption_id(t), t) for t in texts])  # fmt: skip
        put(store, texts[0], 1)
        put(store, "of another key \ud800", 1, OTHER)
        pair = Pair.of(*((caption_id(t), t) for t in texts[:2]))
        store.pairs.write(KEY, [LabelRecord(pair.id, Answer(2, 0.1, "", 0.5))], [(pair.id, pair)])
        store.set_aside(KEY, 1990)
        before, cursor, captions = store.table(), store.labels_since(0, KEY), store.captions()
        pairs = store.pairs.records(KEY)
    spoil(path)
    spoiled = path.read_bytes()
    for again in range(2):
        with AnnotationStore(path) as store:
            assert (store.table(), store.labels_since(0, KEY), store.captions()) == (before, cursor, captions)
            assert store.pairs.records(KEY) == pairs and len(pairs) == 1
            assert (store.damaged is not None) == (again == 0)
            if store.damaged is not None:
                assert store.damaged.read_bytes() == spoiled
    with AnnotationStore(path) as store:
        put(store, "later", 1)
        assert store.labels_since(cursor[1], KEY)[0][0].text == "later"
    _header(path)
    with AnnotationStore(path) as store:
        assert store.damaged is not None and store.damaged.name.endswith("damaged-2")
        assert [label.text for label in store.labels_since(cursor[1], KEY)[0]] == ["later"]


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_not_there_yet_takes_what_its_copy_holds(path: Path, content: bytes | None) -> None:
    """As after a death while the file was being made anew."""
    _filled(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with AnnotationStore(path) as store:
        assert store.counts(KEY).labelled == 2000
    _header(path)
    with AnnotationStore(path) as store:
        assert store.counts(KEY).labelled == 2000


def test_whenever_it_dies_over_a_damaged_file_nothing_is_lost(path: Path) -> None:
    """kill -9 at many moments of the opening, one after the other."""
    _filled(path)
    context = multiprocessing.get_context("fork")
    for moment in range(40):
        if (
            path.exists()
        ):  # it is gone where the last one died between putting it aside and putting its copy in its place
            _header(path)
        child = context.Process(target=AnnotationStore, args=(path,))
        child.start()
        time.sleep(moment / 1000)
        child.kill()
        child.join()
    with AnnotationStore(path) as store:
        assert store.counts(KEY).labelled == 2000 and len(store.captions()) == 2000


def test_a_damaged_copy_is_made_anew_from_the_file(path: Path) -> None:
    _filled(path)
    _header(mirror_path(path))
    with AnnotationStore(path) as store:
        assert store.damaged is None and store.counts(KEY).labelled == 2000
    _half(path)
    with AnnotationStore(path) as store:
        assert store.damaged is not None and store.counts(KEY).labelled == 2000


def test_a_copy_that_lacks_the_last_transaction_is_brought_up_to_date(path: Path) -> None:
    """As after a crash between the two commits."""
    _filled(path)
    stale = mirror_path(path).read_bytes()
    with AnnotationStore(path) as store:
        put(store, "one more", 1)
    mirror_path(path).write_bytes(stale)
    AnnotationStore(path).close()
    _header(path)
    with AnnotationStore(path) as store:
        assert store.counts(KEY).labelled == 2001


def test_a_damaged_header_is_named_with_a_remedy(path: Path) -> None:
    _filled(path)
    mirror_path(path).unlink()
    content = bytearray(path.read_bytes())
    content[:16] = b"garbage garbage!"
    path.write_bytes(content)
    with pytest.raises(AnnotationStoreError) as error:
        AnnotationStore(path)
    assert str(path) in str(error.value) and "move it away" in str(error.value)
    assert path.read_bytes() == content, "a damaged file is left as it is"


def test_a_damaged_page_is_found_when_the_file_is_opened(path: Path) -> None:
    _filled(path)
    mirror_path(path).unlink()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(AnnotationStoreError, match="move it away"):
        AnnotationStore(path)
    path.rename(path.with_suffix(".damaged"))
    AnnotationStore(path).close()  # the remedy works, and the lock was given back


def test_a_truncated_file_is_found(path: Path) -> None:
    _filled(path)
    _half(mirror_path(path))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(AnnotationStoreError, match="move both away"):
        AnnotationStore(path)


def test_other_files_are_told_apart(path: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE something (x)")
    with pytest.raises(AnnotationStoreError, match="not an annotation store"):
        AnnotationStore(path)
    with pytest.raises(AnnotationStoreError, match="no such file"):
        AnnotationStore(tmp_path / "missing.sqlite", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(AnnotationStoreError, match=r"run\.dir"):
        AnnotationStore(tmp_path / "file" / "below.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(AnnotationStoreError, match="check that it is a file"):
        AnnotationStore(tmp_path / "folder")


def test_a_store_of_another_version_is_not_touched(path: Path) -> None:
    AnnotationStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    with pytest.raises(AnnotationStoreError, match="version 99"):
        AnnotationStore(path)


def test_a_full_disk_is_an_error_and_what_was_there_stays(path: Path) -> None:
    with AnnotationStore(path) as store:
        put(store, "before", 1)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own SQLITE_FULL
        texts = [f"caption {i}" * 20 for i in range(500)]
        with pytest.raises(AnnotationStoreError, match="full; free space"):
            store.write(KEY, [record(t, 0) for t in texts], [(caption_id(t), t) for t in texts])
        assert store.counts().labelled == 1 and store.counts().captions == 1
        store._db.execute("PRAGMA max_page_count = 1000000")
        assert store.write(KEY, [record(t, 0) for t in texts], [(caption_id(t), t) for t in texts]) == 500


def test_a_disk_that_is_full_for_the_copy_alone_leaves_no_label_without_its_caption(path: Path) -> None:
    """Files are committed one after the other: the store has what its copy lacks, and the copy is what a damaged store is made
    anew from. Later labels of those captions must find them there."""
    log = path.with_name(mirror_path(path).name + "-wal")
    with AnnotationStore(path) as store:
        for number in range(50):
            put(store, f"before {number}", 1)
        store._db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
        with no_file_larger_than(log.stat().st_size), pytest.raises(AnnotationStoreError, match="free space"):
            store.add_captions([(caption_id("late"), "late")])
        assert store.texts([caption_id("late")]), "the store has it"
        store.add_captions([(caption_id("late"), "late")])
        assert store.write(KEY, [record("late", 1)]) == 1
    _half(path)
    with AnnotationStore(path) as store:
        assert store.damaged is not None and store.counts(KEY).labelled == 51
        assert store.texts([caption_id("late")]) == {caption_id("late"): "late"}


def test_a_label_whose_caption_is_lost_is_kept_until_it_is_met_again(path: Path) -> None:
    _filled(path)
    with sqlite3.connect(mirror_path(path)) as copy:
        copy.execute("DELETE FROM copy_of_captions WHERE id = ?", (caption_id("caption 7"),))
    copy.close()
    _half(path)
    with AnnotationStore(path) as store:
        assert store.counts(KEY).labelled == 2000 and len(store.captions()) == 1999
        assert caption_id("caption 7") in store.labelled_ids(KEY)
        store.add_captions([(caption_id("caption 7"), "caption 7")])
        assert len(store.labels_since(0, KEY)[0]) == 2000
        with pytest.raises(AnnotationStoreError, match="FOREIGN KEY"):
            store.write(KEY, [record("never met", 1)])


def test_a_file_that_may_not_grow_further_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """The operating system refuses to write (RLIMIT_FSIZE, as a quota does): a clear error, and every label before it
    is there; with room again the same process goes on."""
    child = _child(
        path,
        """
import resource, signal
from reward_server.mirror import mirror_path
from reward_server.store import AnnotationStoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
def put(i):
    text = f'caption {i}'
    store.write(key, [LabelRecord(caption_id(text), Answer(i % 2, None, 'x' * 500, 0.0))], [(caption_id(text), text)])
    print(i, flush=True)
i = 0
try:
    while True:
        put(i)
        i += 1
except AnnotationStoreError as error:
    print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
put(i)
store.close()
""",
    )
    out, _ = child.communicate(timeout=120)
    lines = out.splitlines()
    (error,) = [line for line in lines if not line.isdigit()]
    assert str(path) in error and "free space on that disk" in error
    said = [int(line) for line in lines if line.isdigit()]
    assert said == list(range(len(said))) and len(said) > 50
    with AnnotationStore(path) as store:
        assert [row.text for row in store.labels_since(0, KEY)[0]] == [f"caption {i}" for i in said]


def test_parquet_holds_what_the_store_holds(path: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    target = tmp_path / "labels.parquet"
    with AnnotationStore(path) as store:
        assert export_parquet(store, target) == 0 and pq.read_table(target).num_rows == 0
        store.write(KEY, [record("lone \udce9", 1, 0.75)], [(caption_id("lone \udce9"), "lone \udce9")])
        put(store, "b", None, OTHER)
        assert export_parquet(store, target) == 2
    first, second = pq.read_table(target).to_pylist()
    assert (first["text"], first["label"], first["probability"]) == ("lone \\udce9", 1, 0.75)
    assert (second["text"], second["state"], second["label"], second["prompt_version"]) == ("b", "failed", None, "v2")
    assert sorted(file.name for file in tmp_path.glob("*.parquet*")) == ["labels.parquet"]
