"""The gradients of a batch in two processes are those of the batch in one."""

import pytest
import torch
from conftest import small_model
from conftest import torchrun
from torch import nn

from promptswitch_nb.model import load_model
from promptswitch_nb.steps import TrainingPass

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from promptswitch_nb.distributed import join_processes, leave_processes, rank
from promptswitch_nb.model import load_model
from promptswitch_nb.steps import TrainingPass

torch.set_num_threads(1)
join_processes("cpu")
folder, found = sys.argv[1], {}
frames, ids = (part.chunk(2)[rank()] for part in torch.load(f"{folder}/batch.pt"))
for case in sys.argv[2:]:
    model = load_model(f"{folder}/{case}").train()
    parallel = DistributedDataParallel(TrainingPass(model))  # which must live until the backward
    parallel(frames, ids)["loss"].backward()
    found[case] = {name: p.grad.clone() for name, p in model.named_parameters()}
if rank() == 0:
    torch.save(found, f"{folder}/gradients.pt")
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
    """Return a folder with models, a batch of eight pairs, and the gradients of two processes."""
    folder = tmp_path_factory.mktemp("two")
    for name, options in CASES.items():
        model = small_model(fusion="xpool" if name == "xpool" else "mean", **options)
        nn.init.normal_(model.aggregation.attention.out_proj.weight, std=0.1)  # it starts at zero
        model.save(folder / name)
    texts = ["a red square moves left", "a ring", "a blue square", "up and up and up"]
    texts += ["a green ring moves up .", "right", "a red ring", "left"]
    frames, ids = torch.randn(8, 2, 3, 16, 16), model.tokenize(texts)
    torch.save((frames, ids), folder / "batch.pt")
    (folder / "script.py").write_text(SCRIPT)
    torchrun(folder / "script.py", folder, *CASES)
    return folder, frames, ids, torch.load(folder / "gradients.pt")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradients_of_one(case, name):
    folder, frames, ids, of_two = case
    model = load_model(folder / name).train()
    TrainingPass(model)(frames, ids)["loss"].backward()
    assert name != "xpool" or sum(p.grad.norm() for p in model.fusion.parameters()) > 0
    for key, parameter in model.named_parameters():
        difference = (of_two[name][key] - parameter.grad).norm()
        assert difference < 1e-5 * parameter.grad.norm().clamp_min(1e-3), key
