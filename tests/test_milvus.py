"""The store over Milvus, tried on `milvus-lite server`."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import served

pytest.importorskip("milvus_lite")
pa = pytest.importorskip("pyarrow")
pymilvus = pytest.importorskip("pymilvus")

from promptswitch_nb import milvus  # noqa: E402
from promptswitch_nb.rows import StoreError  # noqa: E402
from promptswitch_nb.rows import clustered  # noqa: E402
from promptswitch_nb.rows import example_rows  # noqa: E402
from promptswitch_nb.rows import schema_of  # noqa: E402
from promptswitch_nb.vector_store import open_store  # noqa: E402


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """Start a server on this machine alone."""
    folder = tmp_path_factory.mktemp("milvus") / "data"
    command = [Path(sys.executable).with_name("milvus-lite"), "server", "--data-dir", folder]
    with served(lambda port: [*command, "--host", "127.0.0.1", "--port", port]) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def store(uri) -> milvus.MilvusStore:
    """Open a store in which there is nothing."""
    client = pymilvus.MilvusClient(uri)
    for name in client.list_collections():
        client.drop_collection(name)
    return open_store(uri, create=True)


def test_bytes_and_lists_come_back(store):
    rows = example_rows(clustered(3)).to_pylist()
    rows[0] |= dict(features=bytes(range(256)) * 190, times=[], thumbnail=b"")
    rows[1] |= dict(times=list(np.arange(4096, dtype=np.float32)))
    table = pa.Table.from_pylist(rows, schema_of("windows", 32))
    store.write("windows", table)
    assert store.read("windows", ids=[row["id"] for row in rows]).to_pylist() == rows
    path = b"/videos/\xff\xfe '\"\n#%.mp4"
    file = dict(id="a", path=path, file="", size=2**40, mtime_ns=2**60 + 1, duration=0.0)
    file |= dict(windows=0, scheme=1, reader="", reason="no video: \n", shots=[])
    files = pa.Table.from_pylist([file], schema_of("files"))
    store.write("files", files)
    assert store.read("files").to_pylist() == [file]


def test_what_is_too_large_is_refused_whole(store):
    rows = example_rows(clustered(3)).to_pylist()
    rows[2]["features"] = b"x" * 50_000
    with pytest.raises(StoreError, match=r"file0:2.*65535 characters.*'features'"):
        store.write("windows", pa.Table.from_pylist(rows, schema_of("windows", 32)))
    assert store.count("windows") == 0


def test_others_see_every_write(store, uri):
    other = open_store(uri, create=True)
    seen = [other.version()]
    store.write("windows", example_rows(clustered(10)))
    seen.append(other.version())
    store.write("windows", example_rows(clustered(10)))
    seen.append(other.version())
    store.delete("windows", ["file0:1"])
    seen.append(other.version())
    assert len({*seen}) == 4
    assert other.version() == seen[-1]
    assert other.read("windows", ["id"]).num_rows == other.count("windows") == 9
    with pytest.raises(StoreError, match="of 32 numbers"):
        other.write("windows", example_rows(clustered(2, 8)))


def test_long_writes_go_in_parts(store, monkeypatch):
    monkeypatch.setattr(milvus, "_REQUEST", 20_000)
    sent = []
    upsert = store._client.upsert
    monkeypatch.setattr(
        store._client, "upsert", lambda name, rows: sent.append(len(rows)) or upsert(name, rows)
    )
    rows = example_rows(clustered(100))
    store.write("windows", rows)
    assert sum(sent[:-1]) == 100
    assert max(sent) < 60
    ids = rows["id"].to_pylist()
    assert store.read("windows", ids=ids).equals(rows)


def test_ids_do_no_harm(store):
    rows = example_rows(clustered(4))
    store.write("windows", rows)
    odd = ['"] or id != "', "'", "\\", '"']
    store.delete("windows", odd)
    assert store.read("windows", ["id"], odd).num_rows == 0
    assert store.count("windows") == 4


def test_a_collection_of_something_else_is_told(store, uri):
    client = pymilvus.MilvusClient(uri)
    client.create_collection("promptswitch_windows", dimension=4)
    with pytest.raises(StoreError, match="promptswitch_windows is of something else"):
        open_store(uri, create=True)


def test_looking_makes_nothing(store, uri):
    with pytest.raises(StoreError, match="there is no index at"):
        open_store(uri)
    assert pymilvus.MilvusClient(uri).list_collections() == []
