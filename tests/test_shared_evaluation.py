"""Processes that share an evaluation find what one finds, and open each video once."""

import json

import numpy as np
import pytest
import torch
from conftest import WORDS
from conftest import small_model
from conftest import torchrun

from promptswitch_nb.annotations import Pair
from promptswitch_nb.evaluate import main
from promptswitch_nb.gallery import Encoded
from promptswitch_nb.gallery import encode_split
from promptswitch_nb.gallery import gallery_metrics
from promptswitch_nb.model import load_model
from promptswitch_nb.samples import GalleryDataset
from promptswitch_nb.video import write_video

SCRIPT = """
import json
import sys
import torch
from promptswitch_nb import samples
from promptswitch_nb.annotations import Pair
from promptswitch_nb.distributed import all_ranks, gather_objects, join_processes, rank
from promptswitch_nb.evaluate import main
from promptswitch_nb.gallery import encode_split
from promptswitch_nb.model import load_model

torch.set_num_threads(1)
join_processes("cpu")
folder, options = sys.argv[1], sys.argv[2:]
open_video, opened, found = samples.open_video, [], {}

def noted(path):
    opened.append(path)
    return open_video(path)

samples.open_video = noted
pairs = [Pair(*pair) for pair in json.load(open(f"{folder}/pairs.json"))]
for name in ("mean", "xpool"):
    model = load_model(f"{folder}/{name}").eval()
    for videos in (1, 5, 8):
        gallery = samples.GalleryDataset(pairs[: 40 * videos], model.preprocess)
        encoded = encode_split(model, gallery, batch_size=2, ranks=all_ranks())
        assert (encoded is None) == (rank() > 0)
        of_all = gather_objects(opened.copy())
        opened.clear()
        if rank() == 0:
            parts = {key: value for key, value in vars(encoded).items() if key != "model"}
            found[name, videos] = parts, of_all
if rank() == 0:
    torch.save(found, f"{folder}/found.pt")
main(options)
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory, few_shapes):
    """Return a folder, the pairs, what three processes found, options and output of a command."""
    folder = tmp_path_factory.mktemp("shared")
    for fusion in ("mean", "xpool"):
        small_model(fusion=fusion).save(folder / fusion)
    rng, pairs = np.random.default_rng(0), []
    for n in range(8):
        path = write_video(
            folder / f"{n}.mp4", rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
        )
        words = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(40)]
        pairs += [Pair(f"v{n}", str(path), text) for text in words]
    (folder / "2.mp4").write_bytes(b"not a video")
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "script.py").write_text(SCRIPT)
    options = [str(folder / "mean"), "--dataset=shapes", f"--data_root={few_shapes}"]
    options += ["--split=train", "--batch_size=3"]
    where = f"--results_dir={folder / 'three'}"
    output = torchrun(folder / "script.py", folder, *options, where, processes=3)
    found = torch.load(folder / "found.pt", weights_only=False)
    return folder, pairs, found, options, output


@pytest.fixture(autouse=True)
def one_thread():
    """Compute as the processes do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("videos", [1, 5, 8])
@pytest.mark.parametrize("fusion", ["mean", "xpool"])
def test_three_processes_encode_what_one_encodes(case, fusion, videos):
    folder, pairs, found, *_ = case
    model = load_model(folder / fusion).eval()
    gallery = GalleryDataset(pairs[: 40 * videos], model.preprocess)
    alone = encode_split(model, gallery, batch_size=2)
    parts, opened = found[fusion, videos]
    together = Encoded(model, **parts)
    for side in ("text", "video"):
        one, three = getattr(alone, side), getattr(together, side)
        assert one.keys() == three.keys() and (fusion == "mean") == (len(one) == 1)
        assert all(torch.equal(one[name], three[name]) for name in one)
    assert (alone.videos, alone.failures) == (together.videos, together.failures)
    assert len(alone.failures) == (videos > 2)
    assert alone.queries.texts == together.queries.texts
    assert alone.queries.video_of_text.equal(together.queries.video_of_text)
    assert gallery_metrics(alone) == gallery_metrics(together)
    assert [len(part) for part in opened] == {1: [1, 0, 0], 5: [2, 2, 1], 8: [4, 2, 2]}[videos]
    assert sorted(sum(opened, [])) == [video.path for video in gallery.videos]


def test_a_command_of_three_processes_writes_and_prints_once(case, tmp_path, capsys):
    folder, _, _, options, output = case
    main([*options, f"--results_dir={tmp_path}"])
    files = (next(place.glob("*.json")) for place in (tmp_path, folder / "three"))
    one, three = (json.loads(file.read_text()) for file in files)
    for name in ("metrics", "computed_on", "bad_videos"):
        assert one[name] == three[name], name
    assert len(one["metrics"]) > 20
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert table and [line for line in output.splitlines() if line.startswith("|")] == table
    assert output.count("The results are in") == 1
