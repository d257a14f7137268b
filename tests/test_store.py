"""What befalls a store: damage, foreign folders, a full disk, kills, several writers, odd names."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_NEWS
from conftest import served

pa = pytest.importorskip("pyarrow")
lancedb = pytest.importorskip("lancedb")

import promptswitch_nb.lance_store  # noqa: E402, F401
from promptswitch_nb import vector_store  # noqa: E402
from promptswitch_nb.rows import StoreError  # noqa: E402
from promptswitch_nb.rows import clustered  # noqa: E402
from promptswitch_nb.rows import example_rows  # noqa: E402
from promptswitch_nb.vector_store import Gallery  # noqa: E402
from promptswitch_nb.vector_store import Store  # noqa: E402
from promptswitch_nb.vector_store import open_store  # noqa: E402
from promptswitch_nb.vector_store import try_store  # noqa: E402

HERE = Path(__file__).parent


class Memory(Store):
    """Keep batches of windows in a list."""

    def __init__(self):
        super().__init__("memory://")
        self.parts = []

    def _width(self, table: str) -> int | None:
        return self.parts[0]["vector"].type.list_size if self.parts else None

    def _write(self, table: str, rows: pa.Table) -> None:
        self.parts += rows.to_batches()

    def _batches(self, table: str, columns: list[str], ids: list[str] | None) -> list:
        return self.parts

    def count(self, table: str) -> int:
        return sum(map(len, self.parts))

    def version(self) -> str:
        return str(len(self.parts))


def run(*arguments: object, **environment: str) -> str:
    """Run Python in a process of its own; return what it prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """Make a store of a few writes, in which every column holds something."""
    path = tmp_path_factory.mktemp("store") / "videos.lance"
    store = open_store(path, create=True)
    for first in (0, 40, 80):
        rows = example_rows(clustered(40, seed=first), first=first)
        chance = np.random.default_rng(first)
        place = rows.schema.get_field_index("features")
        features = pa.array([chance.bytes(300) for _ in range(40)], pa.binary())
        store.write("windows", rows.set_column(place, rows.schema.field(place), features))
    store.optimize()
    store.write("about", pa.table(dict(id=["about"], value=["{}"])))
    return path


def contents(path: Path) -> list[dict]:
    """Read all windows of a store."""
    return sorted(open_store(path).read("windows").to_pylist(), key=str)


class TestDamage:
    @pytest.mark.parametrize("seed", range(40))
    def test_random_bytes_are_told_or_do_no_harm(self, filled, tmp_path, seed):
        chance = random.Random(seed)
        copy = shutil.copytree(filled, tmp_path / "copy.lance")
        kind = (".lance", ".manifest")[seed % 2]
        files = [path for path in copy.rglob("*") if path.is_file() and path.suffix == kind]
        # Names are drawn by LanceDB; sizes are the same in every run.
        path = chance.choice(sorted(files, key=lambda path: (path.stat().st_size, path.name)))
        content = bytearray(path.read_bytes())
        start = chance.randrange(len(content))
        end = start + chance.choice([1, 16, 400, 4000])
        content[start:end] = chance.randbytes(len(content[start:end]))
        path.write_bytes(content)
        damage = f"seed {seed}, bytes {start} to {end} of {path.relative_to(copy)}"
        print(damage)  # shown with other errors than these
        try:
            found = contents(copy)
        except StoreError as error:
            assert "copy.lance" in str(error), damage
        else:
            assert found == contents(filled), damage

    def test_every_byte_of_the_vectors_counts(self, filled, tmp_path):
        expected = contents(filled)
        vector = np.float32(expected[7]["vector"]).tobytes()
        for place in range(0, len(vector), 17):
            copy = shutil.copytree(filled, tmp_path / f"{place}.lance")
            for path in copy.glob("windows.lance/data/*.lance"):
                content = bytearray(path.read_bytes())
                found = content.find(vector)
                if found >= 0:
                    content[found + place] ^= 1
                    path.write_bytes(content)
            with pytest.raises(StoreError, match=f"{place}.lance is damaged.*'vector'"):
                contents(copy)

    @pytest.mark.parametrize("kind", ["data/*.lance", "_versions/*.manifest"])
    @pytest.mark.parametrize("ruin", ["cut", "empty", "gone", "garbage"])
    def test_ruined_files_are_told(self, filled, tmp_path, kind, ruin):
        copy = shutil.copytree(filled, tmp_path / "copy.lance")
        for path in copy.glob(f"windows.lance/{kind}"):
            content = path.read_bytes()
            if ruin == "gone":
                path.unlink()
            else:
                changed = dict(cut=content[: len(content) // 2], empty=b"", garbage=b"?" * 999)
                path.write_bytes(changed[ruin])
        with pytest.raises(StoreError, match="copy.lance"):
            contents(copy)

    def test_a_lost_newest_state_is_told(self, filled, tmp_path):
        copy = shutil.copytree(filled, tmp_path / "copy.lance")
        min((copy / "windows.lance/_versions").glob("*.manifest")).unlink()
        with pytest.raises(StoreError, match="newest state"):
            open_store(copy)

    def test_a_table_of_which_nothing_was_written_yet_is_none(self, filled, tmp_path):
        copy = shutil.copytree(filled, tmp_path / "copy.lance")
        (copy / "files.lance/data").mkdir(parents=True)  # a first write that was killed
        assert open_store(copy).count("files") == 0


class TestForeign:
    def test_other_tables(self, tmp_path):
        lancedb.connect(tmp_path / "a.lance").create_table("songs", pa.table(dict(id=["1"])))
        for create in (False, True):
            with pytest.raises(StoreError, match=r"a\.lance is a LanceDB of something.*songs"):
                open_store(tmp_path / "a.lance", create)

    @pytest.mark.parametrize(
        "columns", [dict(id=["1"]), dict(vector=[[1.0]]), dict(id=["1"], vector=[[1.0, 0.0]])]
    )
    def test_other_columns(self, tmp_path, columns):
        lancedb.connect(tmp_path / "a.lance").create_table("windows", pa.table(columns))
        with pytest.raises(StoreError, match=r"a\.lance .*'windows' has the columns"):
            open_store(tmp_path / "a.lance", create=True)

    def test_a_folder_of_pictures_stays_as_it_is(self, tmp_path):
        (tmp_path / "cat.jpg").touch()
        with pytest.raises(StoreError, match=r"other things \('cat.jpg'\)"):
            open_store(tmp_path, create=True)
        assert os.listdir(tmp_path) == ["cat.jpg"]

    def test_looking_makes_nothing(self, tmp_path):
        with pytest.raises(StoreError, match="promptswitch index"):
            open_store(tmp_path / "none.lance")
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", 'it\'s "x"', "é;?&", "a:b"])
def test_folders_may_have_odd_names(tmp_path, name):
    try_store(open_store(tmp_path / name / "videos.lance", create=True))
    assert os.listdir(tmp_path) == [name]


def test_ids_may_be_odd(tmp_path):
    store = open_store(tmp_path / "videos.lance", create=True)
    names = ["it's", 'a"b', "a\\b", "a\\", "%_", "é", "a\nb", "') OR ('' = '"]
    rows = example_rows(clustered(len(names)))
    rows = rows.set_column(0, rows.schema.field(0), pa.array(names))
    store.write("windows", rows)
    store.write("windows", rows)
    for name in names:
        assert store.read("windows", ids=[name]).to_pylist() == [
            row for row in rows.to_pylist() if row["id"] == name
        ]
    store.delete("windows", names[:-1])
    assert store.read("windows", ["id"])["id"].to_pylist() == names[-1:]


def test_many_ids_at_once(tmp_path):
    store = open_store(tmp_path / "videos.lance", create=True)
    rows = example_rows(clustered(5000, 8))
    store.write("windows", rows)
    for _ in range(2):
        ids = rows["id"].to_pylist()[::-2]
        found = store.read("windows", ["number", "id"], ids)
        assert found["id"].to_pylist() == ids
        assert found.column_names == ["number", "id"]
        store.optimize()
    store.delete("windows", ids)
    assert store.count("windows") == 2500
    assert not store.read("windows", ["id"], ids).num_rows


def test_the_index_finds_rows_that_came_later_and_none_that_went(tmp_path):
    store = open_store(tmp_path / "videos.lance", create=True)
    vectors = clustered(2000, 16)
    store.write("windows", example_rows(vectors))
    ids = store.read("windows", ["id"])["id"].to_pylist()
    queries = vectors[:40] + vectors[40:80]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for least in (1.0, 0.9):  # exact without an index, nearly so with one
        found = 0
        for query in queries:
            names, scores = store.nearest(query, 5)
            rows = [ids.index(name) for name in names]
            assert np.allclose(scores, vectors[rows] @ query, atol=1e-5)
            assert np.all(np.diff(scores) <= 0)
            found += (scores >= np.sort(vectors @ query)[-5] - 1e-5).sum()
        assert found >= least * 5 * len(queries)
        assert store.build_index()["recall"] >= 0.98
    late = clustered(1, 16, seed=9)
    store.write("windows", example_rows(late, first=9000))
    names, scores = store.nearest(late[0], 3)
    assert names[0] == "file8ca:0"
    assert abs(scores[0] - 1) < 1e-3
    store.delete("windows", names[:1])
    for _ in range(2):  # before and after the index forgets the row
        left, scores = store.nearest(late[0], 3)
        assert len(left) == 3
        assert names[0] not in left
        assert np.allclose(scores, vectors[[ids.index(name) for name in left]] @ late[0], atol=1e-5)
        store.optimize()


class Late(Memory):
    """Be written to between the counting and the reading."""

    def count(self, table: str) -> int:
        return 3


def test_a_gallery_takes_rows_that_came_while_it_read():
    store = Late()
    vectors = clustered(2000, 4)
    for first in range(0, 2000, 500):
        store.write("windows", example_rows(vectors[first : first + 500], first=first))
    gallery = Gallery(store)
    assert np.array_equal(gallery.vectors, vectors)
    assert len(gallery.ids) == len(gallery.columns["start"]) == 2000


def test_queries_go_in_blocks(monkeypatch):
    store = Memory()
    store.write("windows", example_rows(clustered(50)))
    gallery, queries = Gallery(store), torch.from_numpy(clustered(9, seed=1))
    alone = [gallery.top(query, 3) for query in queries]
    for size in (1, 100, 199):
        monkeypatch.setattr(vector_store, "SCORES", size)
        scores, rows = gallery.top(queries, 3)
        assert torch.equal(rows, torch.stack([found[1] for found in alone]))
        assert torch.allclose(scores, torch.stack([found[0] for found in alone]), atol=1e-6)


def test_a_full_disk_leaves_what_was_there(small_disk):
    small_disk.resize("3m")
    path = small_disk.place / "videos.lance"
    store = open_store(path, create=True)
    written = 0
    with pytest.raises(StoreError, match=r"videos\.lance: cannot write .*The disk is full"):
        for first in range(0, 10**6, 500):
            store.write("windows", example_rows(clustered(500, 256), first=first))
            written += 500
    assert written >= 500
    for place in (store, open_store(path)):
        assert place.read("windows").num_rows == written
    small_disk.resize("9m")
    store.write("windows", example_rows(clustered(500, 256), first=written))
    assert store.read("windows").num_rows == written + 500


class TestManyProcesses:
    def test_kills(self, tmp_path):
        print(run(HERE / "store_faults.py", "kill", 5, tmp_path / "videos.lance"))

    def test_two_writers(self, tmp_path):
        print(run(HERE / "store_faults.py", "writers", 12, tmp_path / "videos.lance"))

    def test_readers_see_what_is_written(self, tmp_path):
        print(run(HERE / "store_faults.py", "readers", 8, tmp_path / "videos.lance"))

    def test_two_writers_in_a_bucket(self, tmp_path):
        pytest.importorskip("moto")
        boto3 = pytest.importorskip("boto3")
        command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p"]
        with served(lambda port: [*command, port]) as port:
            address = f"http://127.0.0.1:{port}"
            settings = dict(
                AWS_ENDPOINT=address,
                AWS_ALLOW_HTTP="true",
                AWS_ACCESS_KEY_ID="test",
                AWS_SECRET_ACCESS_KEY="test",
                AWS_REGION="us-east-1",
            )
            client = boto3.client(
                "s3",
                endpoint_url=address,
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
            )
            client.create_bucket(Bucket="videos")
            uri = "s3://videos/mine.lance"
            print(run(HERE / "store_faults.py", "writers", 4, uri, **settings))


def test_what_is_missing_is_told():
    code = """
import sys
from importlib import import_module

import torch

for module, missing in [
    ("rows", "pyarrow"),
    ("vector_store", "pyarrow"),
    ("lance_store", "lancedb"),
    ("milvus", "pymilvus"),
]:
    for name in [name for name in sys.modules if name.startswith("promptswitch_nb")]:
        del sys.modules[name]
    known, sys.modules[missing] = sys.modules.get(missing), None
    try:
        import_module(f"promptswitch_nb.{module}")
    except ImportError as error:
        print(error)
    del sys.modules[missing]
    if known:
        sys.modules[missing] = known
"""
    told = run("-c", code).splitlines()
    assert [line.partition("pip install ")[2] for line in told] == [
        *["'promptswitch_nb[search]'"] * 3,
        "'promptswitch_nb[milvus]'",
    ]


def test_no_word_on_the_screen(tmp_path):
    code = f"""
import promptswitch_nb.lance_store
from promptswitch_nb.rows import clustered, example_rows
from promptswitch_nb.vector_store import open_store, try_store
store = open_store({str(tmp_path / "videos.lance")!r}, create=True)
try_store(store)
store.write("windows", example_rows(clustered(2000)))
store.build_index()
store.optimize()
store.nearest(clustered(1)[0], 3)
store._table("windows").search(clustered(1)[0]).select(["id"]).to_list()  # of which it warns
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | NO_NEWS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
