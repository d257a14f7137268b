"""Draw the pictures that the index and README.md show, from the code and from the recorded runs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from promptswitch_nb.demo import TITLES
from promptswitch_nb.figures import architecture
from promptswitch_nb.figures import colour_of
from promptswitch_nb.figures import use_style
from promptswitch_nb.motions import describe
from promptswitch_nb.motions import reverse_motion
from promptswitch_nb.shapes import render
from promptswitch_nb.studies import read_records
from promptswitch_nb.studies import read_study
from promptswitch_nb.studies import values_of

ROOT = Path(__file__).resolve().parent.parent
METRICS = {
    "t2v/R@1": "the right video comes first\n(R@1)",
    "motion pairs": "a motion told from its reverse\n(motion pairs)",
}


def result() -> plt.Figure:
    """Draw the demo's table: bars are means over seeds, points are the seeds."""
    study = read_study(ROOT / "configs" / "studies" / "shapes_table1.yaml")
    records = read_records(study, ROOT / "results")
    fig, ax = plt.subplots(figsize=(5.9, 3.56))
    for row, title in TITLES.items():
        colour = colour_of("prompt_switch" if row == "full" else "clip_mean")
        for place, metric in enumerate(METRICS):
            values = values_of(records[row], metric)
            mean, at = sum(values) / len(values), place + (0.2 if row == "full" else -0.2)
            ax.bar(at, mean, 0.36, color=colour, label=title if not place else None)
            ax.plot([at] * len(values), values, "o", color="black", ms=3)
            ax.text(at, max(values) + 2, f"{mean:.0f} %", ha="center")
    ax.set_xticks(range(len(METRICS)), METRICS.values())
    ax.axhline(50, 0.53, 0.98, color="0.4", lw=0.8, ls=":")
    ax.text(1.42, 51, "chance", fontsize=8, color="0.4")
    ax.set(ylim=(0, 118), yticks=[], title="Averaged frames do not know which way things move")
    ax.spines["left"].set_visible(False)
    ax.legend(loc="upper left")
    return fig


def shapes() -> plt.Figure:
    """Draw a video of moving shapes, the same one backwards, and another one."""
    motion = ("left", "up")
    scene = render("red", "square", motion, np.random.default_rng(20))
    other = render("yellow", "cross", ("right", "clockwise"), np.random.default_rng(3))
    rows = {
        describe(scene.look, motion): scene.frames,
        describe(scene.look, reverse_motion(motion)): scene.frames[::-1],
        describe(other.look, ("right", "clockwise")): other.frames,
    }
    fig, axes = plt.subplots(3, 1, figsize=(8, 4.9))
    for ax, (caption, frames) in zip(axes, rows.items()):
        gaps = np.pad(frames[::2], ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
        ax.imshow(np.concatenate([*gaps], axis=1))
        ax.set_title(f"“{caption}”", loc="left")
        ax.axis("off")
    fig.suptitle("Which way a shape moves is in the caption, and in no single frame")
    return fig


def main() -> None:
    use_style()
    folder = ROOT / "nbs" / "images"
    shapes().savefig(folder / "shapes.jpg", dpi=100)
    for name, figure in {"architecture": architecture(), "result": result()}.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
