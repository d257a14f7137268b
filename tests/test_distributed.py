"""The gradients of a batch in several processes, or in parts, are those of the batch in one."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import free_port
from conftest import small_model
from conftest import torchrun
from torch import nn

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.model import load_model
from promptswitch_nb.model import systems
from promptswitch_nb.steps import Stepper
from promptswitch_nb.steps import StepPlan
from promptswitch_nb.system import make_system

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from promptswitch_nb.distributed import join_processes, leave_processes, rank, world_size
from promptswitch_nb.model import load_model
from promptswitch_nb.steps import StepPlan, Stepper

torch.set_num_threads(1)
join_processes("cpu")
folder, found = sys.argv[1], {}
batch = torch.load(f"{folder}/batch.pt")
n = len(batch[0])
own = slice(rank() * n // world_size(), (rank() + 1) * n // world_size())
for case in sys.argv[2:]:
    for how, parts in (("whole", 1), ("parts", 2), ("cached", 2)):
        model = load_model(f"{folder}/{case}").train()
        plan = StepPlan(steps=1, lr_clip=0.0, lr_new=0.0, grad_cache=how == "cached")
        cut = zip(*(part[own].tensor_split(parts) for part in batch))
        row = Stepper(model, plan).step(0, list(cut))
        found[case, how] = row, {name: p.grad.clone() for name, p in model.named_parameters()}
if rank() == 0:
    torch.save(found, f"{folder}/gradients-{world_size()}.pt")
dist.barrier()
leave_processes()
"""


CASES = {
    "batch_sum": dict(caption_reduction="batch_sum"),
    "token_mean": dict(caption_reduction="token_mean"),
    "xpool": {},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return a folder with models, a batch that 2 and 4 do not divide, and what these find."""
    folder = tmp_path_factory.mktemp("two")
    for name, options in CASES.items():
        model = small_model(fusion="xpool" if name == "xpool" else "mean", **options)
        nn.init.normal_(model.aggregation.attention.out_proj.weight, std=0.1)  # it starts at zero
        model.save(folder / name)
    texts = ["a red square moves left", "a ring", "a blue square", "up and up and up"]
    texts += ["a green ring moves up .", "right", "a red ring", "left", "down", "a square moves up"]
    texts += ["red and blue", "a ring is moving down and left", "white"]
    frames, ids = torch.randn(13, 2, 3, 16, 16), model.tokenize(texts)
    torch.save((frames, ids), folder / "batch.pt")
    (folder / "script.py").write_text(SCRIPT)
    for processes in (2, 4):
        torchrun(folder / "script.py", folder, *CASES, processes=processes)
    found = {n: torch.load(folder / f"gradients-{n}.pt") for n in (2, 4)}
    return folder, frames, ids, found


def in_parts(tensor: torch.Tensor, processes: int) -> list[torch.Tensor]:
    """Join what the processes compute at the same time: their first halves, their second halves."""
    n = len(tensor)
    shares = [tensor[i * n // processes : (i + 1) * n // processes] for i in range(processes)]
    return [torch.cat(part) for part in zip(*(share.tensor_split(2) for share in shares))]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("how", ["whole", "parts", "cached"])
@pytest.mark.parametrize("name", CASES)
def test_processes_of_uneven_shares_have_the_gradients_of_one(case, name, how, processes):
    folder, frames, ids, found = case
    model = load_model(folder / name).train()
    parts = [(frames, ids)]
    if how == "parts":
        parts = list(zip(in_parts(frames, processes), in_parts(ids, processes)))
        assert [len(part) for _, part in parts] == {2: [7, 6], 4: [8, 5]}[processes]
    row = Stepper(model, StepPlan(steps=1, lr_clip=0.0, lr_new=0.0)).step(0, parts)
    assert name != "xpool" or sum(p.grad.norm() for p in model.fusion.parameters()) > 0
    theirs, gradients = found[processes][name, how]
    assert theirs == pytest.approx(row, rel=1e-5)
    for key, parameter in model.named_parameters():
        difference = (gradients[key] - parameter.grad).norm()
        assert difference < 1e-5 * parameter.grad.norm().clamp_min(1e-3), key


@pytest.mark.parametrize("name", systems())
def test_cached_gradients_are_those_of_the_whole_batch(name):
    torch.manual_seed(0)
    options = dict(samples=16) if name == "ts2net" else {}  # drawn by 16, alike for whole and parts
    model = make_system(name, tiny_clip(), options=options).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # in a fusion it is drawn for the batch
    n, size = model.preprocess.n_frames, model.preprocess.image_size
    frames = torch.randn(6, n, 3, size, size)
    ids = model.tokenize(["red", "red moves", "a ring", "left left left", "up", "a blue one"])
    state, found = copy.deepcopy(model.state_dict()), []
    for cut, cache in (([6], False), ([3, 2, 1], True)):
        model.load_state_dict(state)
        torch.manual_seed(1)
        plan = StepPlan(steps=1, lr_clip=0.0, lr_new=0.0, grad_cache=cache)
        Stepper(model, plan).step(0, list(zip(frames.split(cut), ids.split(cut))))
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append({key: grad.clone() for key, grad in grads.items()})
    whole, cached = found
    assert whole.keys() == cached.keys()
    length = torch.stack([grad.norm() for grad in whole.values()]).norm()
    for key, gradient in whole.items():
        assert (cached[key] - gradient).norm() < 1e-5 * length, key


WAITS = """
import sys, time
import torch
import torch.distributed as dist
from promptswitch_nb.distributed import average, join_processes, rank

join_processes("cpu")
average(dict(one=torch.ones(())))
print("joined", flush=True)
if rank() == 1:
    time.sleep(1000)
average(dict(one=torch.ones(())))
"""


@contextmanager
def three(script: Path) -> Iterator[list[subprocess.Popen]]:
    """Start a script in three processes, without torchrun."""
    processes, port = [], free_port()
    for i in range(3):
        own = dict(RANK=i, LOCAL_RANK=i, WORLD_SIZE=3, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        environment = os.environ | {key: str(value) for key, value in own.items()}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command = [sys.executable, str(script)]
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_process_that_dies_ends_the_others(tmp_path):
    """Without torchrun, which would end them as well."""
    (tmp_path / "waits.py").write_text(WAITS)
    for attempt in range(2):
        with three(tmp_path / "waits.py") as processes:
            ended = (p for p in processes if not any("joined" in line for line in p.stdout))
            if lost := next(ended, None):  # somebody may have been faster to take the port
                said = lost.stderr.read()
                assert attempt == 0 and "EADDRINUSE" in said, said
                continue
            processes[1].send_signal(signal.SIGKILL)
            for process in (processes[0], processes[2]):
                assert process.wait(timeout=180) not in (0, -signal.SIGKILL)
                assert "Error" in process.stderr.read()
            return
