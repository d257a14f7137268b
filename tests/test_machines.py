"""What the machine does to a run: disks without links, full shared memory, a second process."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from test_train import equal
from test_train import run
from test_train import weights

from promptswitch_nb.annotations import DataError
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.files import replace_linked_folder
from promptswitch_nb.files import write_json
from promptswitch_nb.runs import hold_folder
from promptswitch_nb.samples import BadVideos
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.steps import Stepper
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import Trainer

NO_LINKS = OSError(errno.EOPNOTSUPP, "Operation not supported")
STOP = mock.Mock(side_effect=KeyboardInterrupt)


def script(folder: Path, text: str) -> subprocess.CompletedProcess:
    """Run a script of a user."""
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=200
    )


def test_a_disk_without_links_holds_the_same_run(small_run, tmp_path):
    linked = run(small_run, output_dir=str(tmp_path / "linked"))
    settings = small_run | dict(output_dir=str(tmp_path / "plain"))
    with mock.patch.object(os, "symlink", side_effect=NO_LINKS):
        with mock.patch.object(Trainer, "save_state", STOP), pytest.raises(KeyboardInterrupt):
            run(settings)
        plain = run(settings, resume=True)
    for name in ("last", "best"):
        assert (linked / name).is_symlink() and not (plain / name).is_symlink()
        assert equal(weights(plain, name), weights(linked, name))


def test_a_run_that_was_copied_with_its_links_followed_goes_on(small_run, tmp_path):
    whole = run(small_run, output_dir=str(tmp_path / "whole"))
    first = dict(output_dir=str(tmp_path / "first"))
    after_step = Trainer.after_step

    def stop_after_4(self, row):
        after_step(self, row)
        if self.progress.step == 4:
            raise KeyboardInterrupt

    with mock.patch.object(Trainer, "after_step", stop_after_4), pytest.raises(KeyboardInterrupt):
        run(small_run, **first)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert not (tmp_path / "copy" / "last").is_symlink()
    copy = run(small_run, output_dir=str(tmp_path / "copy"), resume=True)
    assert equal(weights(copy), weights(whole))
    assert json.loads((tmp_path / "first" / "last" / "run.json").read_text())["step"] == 4


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    link = tmp_path / "last"
    replace_linked_folder(link, lambda folder: (folder / "a").write_text("good"))

    def fill_the_disk(folder):
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_linked_folder(link, fill_the_disk)
    assert (link / "a").read_text() == "good"
    assert len([*(tmp_path / "checkpoints").iterdir()]) == 1


def test_a_folder_is_held_by_one_process(small_run, tmp_path):
    folder = tmp_path / "run"
    text = (
        "from promptswitch_nb.runs import hold_folder\n"
        f"with hold_folder({str(folder)!r}):\n"
        "    print('held', flush=True)\n"
        "    input()\n"
    )
    (tmp_path / "hold.py").write_text(text)
    other = subprocess.Popen(
        [sys.executable, tmp_path / "hold.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process is training in .*run: wait for its end"):
        run(small_run)
    assert {path.name for path in folder.iterdir()} == {".lock"}
    other.kill()  # the lock of a dead process holds nobody up
    other.wait()
    run(small_run, steps=1)


def test_a_disk_that_cannot_lock_is_told(tmp_path):
    no_locks = mock.patch("filelock.FileLock.acquire", side_effect=NotImplementedError("no flock"))
    with no_locks, pytest.warns(UserWarning, match="cannot be locked"), hold_folder(tmp_path):
        pass


def test_a_script_without_a_main_guard_is_told_so(small_run, tmp_path):
    settings = small_run | dict(workers=1, steps=1)
    done = script(
        tmp_path,
        "from promptswitch_nb.train import TrainConfig, train\n"
        f"train(TrainConfig.from_dict({settings!r}))\n",
    )
    guard = 'put what it does behind `if __name__ == "__main__":`, or set workers: 0.'
    assert done.returncode == 1 and done.stderr.rstrip().endswith(guard), done.stderr[-2000:]
    assert "already holds a run" not in done.stderr and "is training in" not in done.stderr


LOADING = """
from torch.utils.data import DataLoader
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.samples import VideoTextDataset, collate
from promptswitch_nb.video import open_video

if __name__ == "__main__":
    pairs = load_pairs("msrvtt", "data", "train")
    reader = open_video(pairs[0].path)
    reader.frames([0, 1])  # what a decoder has begun in the process that forks
    data = VideoTextDataset(pairs, Preprocess(image_size=32))
    options = dict(num_workers={workers}, multiprocessing_context={method!r}, collate_fn=collate)
    seen = [batch for batch in DataLoader(data, batch_size=4, **options)]
    print(reader.backend, sum(len(batch["captions"]) for batch in seen))
    print(*[float(batch["frames"].double().sum()) for batch in seen])
"""


def test_workers_do_not_hang_however_they_start(tmp_path):
    write_example("msrvtt", tmp_path / "data")
    found = []
    for method, workers in ((None, 0), ("fork", 1), ("fork", 8), ("spawn", 3), ("forkserver", 3)):
        done = script(tmp_path, LOADING.format(method=method, workers=workers))
        assert not done.returncode, done.stderr[-2000:]
        found.append(done.stdout)
    assert len(set(found)) == 1 and found[0].split()[1] == "20"


def test_a_worker_says_that_shared_memory_is_full(small_run, tmp_path):
    """A worker whose shared memory is full: here by a limit of the process on the size of files."""
    settings = small_run | dict(workers=1, steps=1, n_frames=4, batch_size=8)
    done = script(
        tmp_path,
        "import resource\n"
        "from promptswitch_nb.train import TrainConfig, main\n"
        "if __name__ == '__mp_main__':\n"
        "    import signal\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, 2**12))\n"
        "if __name__ == '__main__':\n"
        "    from promptswitch_nb.train import train\n"
        "    from promptswitch_nb.annotations import DataError\n"
        "    try:\n"
        f"        train(TrainConfig.from_dict({settings!r}))\n"
        "    except DataError as error:\n"
        "        print(error)\n",
    )
    assert done.stdout.startswith("a batch of 0 MiB does not fit into shared memory"), done
    assert "set workers: 0, or give the container more of it" in done.stdout


def test_videos_that_were_mended_do_not_stop_a_run(small_run, tmp_path):
    video = sorted((tmp_path / "data" / "videos").iterdir())[0]
    whole = video.read_bytes()
    video.write_bytes(b"no video")
    with pytest.raises(DataError, match="more than the 1.0% allowed"):
        run(small_run)
    with pytest.raises(DataError, match="1 of 10 videos cannot be decoded"):
        run(small_run, resume=True)
    video.write_bytes(whole)
    folder = run(small_run, resume=True)
    record = json.loads((folder / "run.json").read_text())
    assert record["bad_videos"] == "0 of 10 videos cannot be decoded"


def test_a_list_of_bad_videos_of_an_older_version_is_read(tmp_path):
    file = tmp_path / "bad_videos.csv"
    file.write_text("video_id,path,reason\nv,v.mp4,x\n")
    assert len(BadVideos(file, 10, resume=True)) == 0


def test_a_run_goes_on_without_the_weights_it_began_with(small_run, tmp_path):
    steps = dict(steps=5)
    whole = run(small_run, **steps, output_dir=str(tmp_path / "whole"))
    with mock.patch.object(Trainer, "evaluate", STOP), pytest.raises(KeyboardInterrupt):
        run(small_run, **steps)
    shutil.rmtree(tmp_path / "start")
    with pytest.raises(ConfigError, match="pretrained .* does not exist"):
        run(small_run, **steps, output_dir=str(tmp_path / "other"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    write_json(tmp_path / "run" / "config.json", {k: v for k, v in config.items() if k != "ema"})
    moved = str(tmp_path / "moved")
    folder = run(small_run, **steps, resume=True, pretrained=moved)
    assert equal(weights(folder), weights(whole))
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["pretrained"] == small_run["pretrained"]  # what it did begin with


def uneven(small_run: dict, **changes) -> Trainer:
    """Return a trainer that cuts eight pairs into parts of 3, 3 and 2."""
    settings = small_run | dict(accumulate=3, batch_size=8, k=0, repeats="keep", lam=1e3)
    trainer = Trainer(TrainConfig.from_dict(settings | changes), torch.device("cpu"))
    trainer.model.train()
    return trainer


def test_uneven_parts_of_a_batch_have_the_caption_gradient_of_the_whole(small_run):
    trainer = uneven(small_run, accumulate=1)
    model, batch = trainer.model, next(trainer.batches())
    ids = model.tokenize(batch["captions"])
    with mock.patch.object(Stepper, "update", lambda self, number, row: row):
        whole = trainer.train_step(batch)
        head = [p for p in model.captioner.parameters() if p.requires_grad]
        expected = [p.grad.clone() for p in head]
        parts = list(zip(batch["frames"].tensor_split(3), ids.tensor_split(3)))
        assert [len(part) for _, part in parts] == [3, 3, 2]
        row = trainer.stepper.step(0, parts)
    trainer.log.close()
    assert row["caption"].item() == pytest.approx(whole["caption"].item(), rel=1e-5)
    for parameter, gradient in zip(head, expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def test_no_part_has_a_single_pair(small_run):
    trainer = uneven(small_run)
    seen, batch = [], next(trainer.batches())
    with mock.patch.object(Stepper, "step", lambda self, n, parts: seen.append(parts)):
        for size in (8, 7, 3, 2):
            cut = dict(captions=batch["captions"][:size], frames=batch["frames"][:size])
            trainer.train_step(cut)
    trainer.log.close()
    assert [[len(ids) for _, ids in parts] for parts in seen] == [[3, 3, 2], [3, 2, 2], [3], [2]]
    assert all(len(frames) == len(ids) for parts in seen for frames, ids in parts)


def test_each_epoch_says_how_many_pairs_are_left_out(small_run, tmp_path, capsys):
    root = tmp_path / "data"
    rows = json.loads((root / "captions.json").read_text())
    videos = [row for row in rows if row["split"] == "train"]
    videos[0]["captions"] = [f"a red square number {n}" for n in range(100)]
    (root / "captions.json").write_text(json.dumps(rows))
    pairs = load_pairs("folder", root, "train")
    run(small_run, repeats="defer", batch_size=4, steps=5, eval_every=5)
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    placed = 4 * ((len(pairs) - 100) // 3)  # a batch has one pair of that video, three of others
    assert told[0].startswith(f"epoch 0: {len(pairs) - placed} of {len(pairs)} pairs are left out")
    assert told[1].startswith("epoch 1: ") and len(told) == 2
    lonely = dict(
        batch_size=8, repeats="drop", train_split="lonely", output_dir=str(tmp_path / "x")
    )
    for row in videos[1:]:
        row["split"] = "val"
    videos[0]["split"] = "lonely"
    (root / "captions.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="no batch of 8 has two different videos"):
        run(small_run, **lonely, select_on="last", evals_per_epoch=0, eval_every=0)


def test_a_validation_set_that_cannot_be_decoded_is_told(small_run, tmp_path):
    rows = json.loads((tmp_path / "data" / "captions.json").read_text())
    for row in rows:
        if row["split"] == "val":
            (tmp_path / "data" / "videos" / row["video"]).write_bytes(b"no video")
    with pytest.raises(DataError, match="no video of 2 can be decoded"):
        run(small_run, max_bad_share=1)
    assert len((tmp_path / "run" / "bad_videos.csv").read_text().splitlines()) == 3


KILLED = """
import os
import time

from torch.utils.data import DataLoader

from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.samples import GalleryDataset, loader_options

if __name__ == "__main__":
    data = GalleryDataset(load_pairs("msrvtt", "data", "train"))
    batches = iter(DataLoader(data, batch_size=1, **loader_options(2)))
    next(batches)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_workers_end_with_the_process_that_is_killed(tmp_path):
    write_example("msrvtt", tmp_path / "data")
    (tmp_path / "script.py").write_text(KILLED)
    command = [sys.executable, "script.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(started) >= 2
    _, alive = psutil.wait_procs(started, timeout=30)
    for left in alive:
        left.kill()
    assert not alive
