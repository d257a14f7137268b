"""Train and evaluate on a miniature data tree, through papermill as a user would.

    python scripts/smoke.py msvd FOLDER

writes FOLDER/data in the dataset's public format, runs notebooks 07 and 08 on it for two steps, and
fails when one of them fails or no results come out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from promptswitch_nb.datasets import dataset_names
from promptswitch_nb.datasets import write_example

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"
# Cells on real data are for `nbdev_test`.
ENV = {name: value for name, value in os.environ.items() if name != "PROMPTSWITCH_TEST_DATA"}


def papermill(notebook: str, folder: Path, **parameters) -> None:
    """Run a notebook, its executed copy in `folder`; show what it printed only when it fails."""
    options = [part for name, value in parameters.items() for part in ["-p", name, str(value)]]
    copy = folder / f"{notebook}.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [NOTEBOOKS / copy.name, copy, *options]
    result = subprocess.run(
        [str(part) for part in command],
        cwd=NOTEBOOKS.parent,
        env=ENV,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        error = result.stderr.rpartition("Exception encountered")[
            2
        ]  # leave out papermill's own stack
        sys.exit(f"{error[-4000:]}\n{notebook} failed with {' '.join(options)}")


def main() -> None:
    dataset, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    data, run, results = folder / "data", folder / "run", folder / "results"
    folder.mkdir(parents=True, exist_ok=True)
    if dataset in dataset_names(with_example=True):  # notebook 07 makes the moving shapes
        write_example(dataset, data, n_videos=24)
    papermill(
        "07_train", folder, dataset=dataset, data_root=data, output_dir=run, steps=2, batch_size=4
    )
    papermill(
        "08_evaluate",
        folder,
        dataset=dataset,
        data_root=data,
        checkpoint=run / "last",
        results_dir=results,
    )
    [written] = results.glob("*.json")
    assert "R@1" in json.dumps(json.loads(written.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
