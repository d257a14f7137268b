"""Kill writers of a store, let several write and read at a time, and compare what is there.

python tests/store_faults.py kill 50 DIR        kill a writer 50 times at random moments
python tests/store_faults.py writers 40 URI     two writers, 40 writes each
python tests/store_faults.py readers 20 DIR     one writer, three readers

This process never opens a store, because LanceDB does not bear a fork after that; its forks do.
"""

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable

import pyarrow as pa

from promptswitch_nb.lance_store import LanceStore
from promptswitch_nb.rows import StoreError
from promptswitch_nb.rows import clustered
from promptswitch_nb.rows import example_rows
from promptswitch_nb.vector_store import Gallery
from promptswitch_nb.vector_store import Store
from promptswitch_nb.vector_store import try_store

ABOUT = pa.table(dict(id=["about"], value=["{}"]))
BATCH, SHIFT = 40, 25  # rows of a write, and how far the next one is from it: 15 rows are replaced


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run a function in a fork; return its process, and where to read what it writes."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    os.close(read)
    try:
        work(write)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def demand_success(process: int) -> None:
    """Wait for a fork, which must not fail."""
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def state(operations: int) -> dict[str, tuple[int, int]]:
    """Tell which rows are there after some operations, and which one wrote them, at which place."""
    rows = {}
    for number in range(operations):
        first = number // 2 * SHIFT
        if number % 2 == 0:
            ids = example_rows(clustered(BATCH), first=first)["id"].to_pylist()
            rows |= {name: (number, place) for place, name in enumerate(ids)}
        else:
            for name in doomed(first):
                rows.pop(name, None)
    return rows


def doomed(first: int) -> list[str]:
    """Name the rows that are deleted after a write."""
    return example_rows(clustered(3), first=first)["id"].to_pylist()


def operate(store: Store, number: int) -> None:
    """Write rows, or delete some, by the operation's number."""
    first = number // 2 * SHIFT
    if number % 2 == 0:
        store.write("windows", example_rows(clustered(BATCH, seed=number), first=first))
    else:
        store.delete("windows", doomed(first))
    if number % 7 == 6:
        store.optimize()


def compare(store: Store, operations: int) -> bool:
    """Compare all that a store holds with what it holds after some operations."""
    rows = store.read("windows", ["id", "vector"])
    expected = state(operations)
    found = dict(zip(rows["id"].to_pylist(), rows["vector"].to_pylist()))
    return len(rows) == len(found) and found == {
        name: clustered(BATCH, seed=number)[place].tolist()
        for name, (number, place) in expected.items()
    }


def kill(count: int, folder: str) -> None:
    """Kill a writer at random moments; each time go on from what is there."""
    chance, done = random.Random(0), 0
    ahead = 0

    def write(pipe: int) -> None:
        store = LanceStore(folder, create=True)
        for number in range(done, 100_000):
            operate(store, number)
            os.write(pipe, b".")

    def check(pipe: int) -> None:
        store = LanceStore(folder, create=True)
        acknowledged = [number for number in (done, done + 1) if compare(store, number)]
        assert acknowledged, f"the rows are those of neither {done} nor {done + 1} operations"
        os.write(pipe, bytes([acknowledged[0] - done]))

    for _ in range(count):
        process, pipe = fork(write)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with os.fdopen(pipe, "rb") as answers:
            done += len(answers.read())
        process, pipe = fork(check)
        demand_success(process)
        with os.fdopen(pipe, "rb") as answers:
            step = answers.read()[0]
        done, ahead = done + step, ahead + step
    print(f"{count} kills, {done} operations, {ahead} of them done and not yet acknowledged: whole")


def writers(count: int, uri: str) -> None:
    """Let two write at the same time: rows of their own, and new and old rows of the same ids."""

    def write(pipe: int, own: int, start: float) -> None:
        store = LanceStore(uri, create=True)
        for number in range(count):
            drawn = clustered(10, seed=own * 1000 + number)
            store.write("windows", example_rows(drawn, first=own * 10_000 + number * 10))
            store.write("windows", example_rows(drawn, first=90_000))
            time.sleep(max(0, start + number / 5 - time.time()))  # so that both come at once
            store.write("windows", example_rows(drawn, first=50_000 + number * 10))
            if own == 1 and number % 4 == 3:
                store.optimize()

    def prepare(pipe: int) -> None:
        try:
            LanceStore(uri)
        except StoreError as error:
            assert f"no store at {uri}" in str(error)
        else:
            raise AssertionError("a store was found where none is")
        try_store(LanceStore(f"{uri}.tried", create=True))

    def check(pipe: int) -> None:
        store = LanceStore(uri)
        ids = store.read("windows")["id"].to_pylist()
        assert len(ids) == len({*ids}) == 3 * count * 10 + 10, (len(ids), len({*ids}))
        for first, number in [(90_000, count - 1), *((50_000 + i * 10, i) for i in range(count))]:
            shared = example_rows(clustered(10), first=first)["id"].to_pylist()
            vectors = store.read("windows", ["vector"], shared)["vector"].to_pylist()
            whole = [clustered(10, seed=own * 1000 + number).tolist() for own in (1, 2)]
            assert vectors in whole, "rows of two writes are mixed"

    demand_success(fork(prepare)[0])
    start = time.time() + 1
    processes = [fork(lambda pipe, own=own: write(pipe, own, start))[0] for own in (1, 2)]
    for process in processes:
        demand_success(process)
    demand_success(fork(check)[0])
    print(f"2 writers, {3 * count} writes each: whole")


def readers(count: int, folder: str) -> None:
    """Let one write and three read: each sees whole writes, and the last one in the end."""

    def write(pipe: int) -> None:
        store = LanceStore(folder)
        for number in range(count):
            drawn = clustered(BATCH, seed=number)
            store.write("windows", example_rows(drawn, first=number * BATCH))
            if number % 5 == 4:
                store.optimize()

    def read(pipe: int) -> None:
        gallery, seen = Gallery(LanceStore(folder)), {0}
        while len(gallery.ids) < count * BATCH:
            gallery.refresh()
            seen.add(len(gallery.ids))
            assert len(gallery.ids) == len({*gallery.ids})
        assert not any(size % BATCH for size in seen), seen
        os.write(pipe, bytes([min(len(seen), 255)]))

    def prepare(pipe: int) -> None:
        LanceStore(folder, create=True).write("about", ABOUT)

    demand_success(fork(prepare)[0])
    watching = [fork(read) for _ in range(3)]
    demand_success(fork(write)[0])
    for process, pipe in watching:
        demand_success(process)
        with os.fdopen(pipe, "rb") as answers:
            assert answers.read()[0] > 2, "nothing was seen while the other wrote"
    print(f"3 readers saw {count} writes: whole")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "lancedb fork")  # it is kept in mind here
    dict(kill=kill, writers=writers, readers=readers)[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
