"""A whole training run of the released code, step by step: the preset `official` gives its numbers.

Sizes, settings and the number of steps are read from the files.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from promptswitch_nb.losses import frequent_word_weights
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.released import rename_released
from promptswitch_nb.steps import Stepper
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import step_plan

TEST_DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
GOLDEN = Path(TEST_DATA or "", "golden")
pytestmark = pytest.mark.skipif(not TEST_DATA, reason="needs the numbers of the released code")


@pytest.fixture(scope="module")
def run() -> tuple[PromptSwitch, list[dict], dict]:
    """Train as the released code did; return the model, a row for each step, and what is right."""
    right = json.loads((GOLDEN / "trajectory.json").read_text())
    sizes = json.loads((GOLDEN / "expected.json").read_text())
    pool = load_file(GOLDEN / "trajectory.safetensors")
    config = TrainConfig(
        preset="official",
        dataset="folder",
        data_root="x",
        output_dir="x",
        lr_clip=right["clip_lr"],
        lr_new=right["new_lr"],
        weight_decay=right["weight_decay"],
        warmup=right["warmup"],
        clip_grad=right["clip_grad"],
        lam=sizes["caption_loss_mult"],
    )
    heads = {f"{tower}_heads": sizes[tower]["heads"] for tower in ("vision", "text")}
    model = PromptSwitch.load_official(GOLDEN / "checkpoint.pth", **heads).train()
    assert (model.config.lam, model.config.k) == (config.lam, config.k)
    frequent = load_file(GOLDEN / "tensors.safetensors")["frequent_ids"]
    weight = sizes["frequent_word_weight"]
    model.word_table = frequent_word_weights(model.clip.vocab_size, frequent, weight=weight)
    stepper, rows = Stepper(model, step_plan(config, right["steps"])), []
    for number, batch in enumerate(pool["order"].long()):
        row = stepper.step(number, [(pool["video"][batch], pool["input_ids"][batch])])
        rates = {group["name"]: group["lr"] for group in stepper.optimizer.param_groups}
        row |= dict(
            caption_times_mult=row["caption"] * config.lam,
            lr_clip=rates["clip"],
            lr_new=rates["captioner"],
            logit_scale=model.clip.model.logit_scale.item(),
        )
        rows.append(row)
    return model, rows, right


@pytest.mark.parametrize(
    "name",
    ["contrastive", "caption_times_mult", "grad_norm", "lr_clip", "lr_new", "logit_scale"],
)
def test_every_step_is_that_of_the_released_code(run, name):
    _, rows, right = run
    assert len(rows) == len(right["rows"]) == right["steps"]
    for step, (ours, theirs) in enumerate(zip(rows, right["rows"])):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-12), step


def test_the_parameters_end_where_the_released_ones_end(run):
    model, _, right = run
    state: dict[str, Tensor] = torch.load(GOLDEN / "checkpoint.pth", weights_only=True)[
        "state_dict"
    ]
    zeros = {name: torch.zeros_like(weight) for name, weight in state.items()}
    ours = model.state_dict()
    for name, norm in right["final_norms"].items():
        # which of our numbers came from such a weight? ones that pass through the renaming tell
        masks = rename_released(zeros | {name: torch.ones_like(state[name])})
        parts = [(ours[key] * mask).norm() for key, mask in masks.items() if mask.any()]
        assert torch.stack(parts).norm().item() == pytest.approx(norm, rel=1e-5), name
