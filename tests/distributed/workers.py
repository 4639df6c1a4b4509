"""What the processes of a group do. Each writes what it ended with, and the tests compare that with one process."""

import copy
import io
import math
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from learned_optim import Guard, LSTMOptimizer, MetaSGD
from tests.specs import OPTIMIZERS, seeded_rule

STEPS = 10
SAVED_AFTER = 3


def drawn_rates(params, **options):
    torch.manual_seed(0)
    return MetaSGD(params, alpha=(0.05, 0.2), **options)


OPTIMIZERS = OPTIMIZERS | {
    "LSTMOptimizer-moves-unseen": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm-moves-unseen", {}), **options
    ),
    # So little trust that Adam soon has a tensor of which some processes have no part.
    "LSTMOptimizer-mistrusted": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm", {}), guard=Guard(first=1.01), **options
    ),
    "MetaSGD-drawn": drawn_rates,
    "MetaSGD-given": lambda params, **options: MetaSGD(
        params, rule=seeded_rule("meta_sgd", dict(network().named_parameters())), **options
    ),
}


def place():
    """Which of how many processes this is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def network():
    """Tensors of 5 rows and of 1: 2 and 4 processes share neither evenly, and some have nothing of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def deep_network():
    """One that tensor parallelism takes, with a norm whose weights all processes have whole."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1)]
    return nn.Sequential(*layers).double()


def backward(model, optimizer, part=None):
    """The gradient of the mean over all data, of which each process has its part."""
    index, count = place() if part is None else part
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(8, 1, dtype=torch.float64, generator=generator)
    x[:, 2] = 0  # some weights never see a gradient
    optimizer.zero_grad()
    (model(x[index::count]) - y[index::count]).square().mean().backward()


def train(model, optimizer, steps, part=None):
    for _ in range(steps):
        backward(model, optimizer, part)
        optimizer.step()


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def local(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


def forget(*modules):
    """Other weights for models and rules, as in a process that has yet to load them."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.zero_()


def ended(model, optimizer, take=whole):
    """Parameters, their states and the rule's weights by name, and the count of skipped steps."""
    named = list(model.named_parameters())
    return {
        "params": {name: take(p) for name, p in named},
        "state": {name: {key: take(value) for key, value in optimizer.state[p].items()} for name, p in named},
        "rule": {name: take(weight) for name, weight in optimizer.rule.state_dict().items()},
        "skipped": optimizer.skipped_steps,
    }


# Steps


def alone(name, steps, make=network):
    model = make()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, steps)
    return ended(model, optimizer)


def ddp(name):
    model = DistributedDataParallel(network())
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, STEPS)
    return ended(model.module, optimizer)


def sharded(name, **options):
    model = network()
    fully_shard(model[0], **options)
    fully_shard(model, **options)
    return model, OPTIMIZERS[name](model.parameters())


def fsdp(name):
    model, optimizer = sharded(name)
    train(model, optimizer, STEPS)
    return ended(model, optimizer)


def hybrid(name):
    """Two copies of the model, each sharded over two processes."""
    model, optimizer = sharded(name, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard")))
    train(model, optimizer, STEPS)
    return ended(model, optimizer)


def tensor_parallel(name, *, and_sharded=False):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = deep_network()
    plan = {
        "0": ColwiseParallel(output_layouts=Shard(0)),
        "2": SequenceParallel(sequence_dim=0),
        "3": ColwiseParallel(input_layouts=Shard(0)),
        "5": RowwiseParallel(),
    }
    parallelize_module(model, mesh["tensor"], plan)
    if and_sharded:
        fully_shard(model, mesh=mesh["data"])
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, STEPS, part=(mesh["data"].get_local_rank(), 2) if and_sharded else (0, 1))
    return ended(model, optimizer)


def tensor_parallel_and_sharded(name):
    return tensor_parallel(name, and_sharded=True)


def poisoned(model, optimizer):
    """Among others a step in which one coordinate of the first tensor, in its last row, has no finite gradient."""
    train(model, optimizer, 2)
    before = ended(model, optimizer, local)
    backward(model, optimizer)
    rank, size = place()
    if rank == math.ceil(5 / math.ceil(5 / size)) - 1:  # rows are dealt out as torch.chunk does
        grad = next(model.parameters()).grad
        (grad.to_local() if size > 1 else grad)[-1, 0] = math.nan
    optimizer.step()
    after = ended(model, optimizer, local)
    train(model, optimizer, 2)
    return {"before": before, "after": after, "end": ended(model, optimizer)}


def poisoned_alone(name):
    model = network()
    return poisoned(model, OPTIMIZERS[name](model.parameters()))


def poisoned_fsdp(name):
    return poisoned(*sharded(name))


# States


def save(names, folder):
    """Saves all of these optimizers before the first step and after some, and goes on."""
    outcomes = {name: {} for name in names}
    for steps in (0, SAVED_AFTER):
        runs = {name: sharded(name) for name in names}
        states = {}
        for name, (model, optimizer) in runs.items():
            train(model, optimizer, steps)
            optimizer.zero_grad()
            states[name] = list(get_state_dict(model, optimizer))
        dcp.save(states, checkpoint_id=folder / f"after-{steps}")
        for name, (model, optimizer) in runs.items():
            train(model, optimizer, SAVED_AFTER)
            outcomes[name][steps] = ended(model, optimizer)
    return outcomes


def load(names, folder, make=sharded):
    """Goes on from what `save` has written, with models and rules that have other weights before."""
    outcomes = {name: {} for name in names}
    for steps in (0, SAVED_AFTER):
        runs = {name: make(name) for name in names}
        for model, optimizer in runs.values():
            forget(model, optimizer.rule)
        states = {name: list(get_state_dict(*run)) for name, run in runs.items()}
        dcp.load(states, checkpoint_id=folder / f"after-{steps}")
        for name, (model, optimizer) in runs.items():
            model_state, optimizer_state = states[name]
            set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
            train(model, optimizer, SAVED_AFTER)
            outcomes[name][steps] = ended(model, optimizer)
    return outcomes


def load_unsharded(names, folder):
    def make(name):
        model = network()
        return model, OPTIMIZERS[name](model.parameters())

    return load(names, folder, make)


def full_state(name):
    """The whole state on the first process, from where another optimizer gets its shards."""
    model, optimizer = sharded(name)
    train(model, optimizer, SAVED_AFTER)
    optimizer.zero_grad()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    resumed = OPTIMIZERS[name](model.parameters())
    forget(resumed.rule)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, resumed, state, options=options)
    train(model, resumed, SAVED_AFTER)
    return ended(model, resumed)


def own_state(name):
    """``state_dict`` and ``load_state_dict`` with sharded tensors as they are."""
    model, optimizer = sharded(name)
    train(model, optimizer, SAVED_AFTER)
    resumed = OPTIMIZERS[name](model.parameters())
    forget(resumed.rule)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, resumed, SAVED_AFTER)
    return ended(model, resumed)


def state_of_one(name):
    """A ``state_dict`` of an ordinary model, loaded for a sharded one."""
    single = network()
    optimizer = OPTIMIZERS[name](single.parameters())
    train(single, optimizer, SAVED_AFTER, part=(0, 1))
    model = copy.deepcopy(single)
    fully_shard(model)
    resumed = OPTIMIZERS[name](model.parameters())
    forget(resumed.rule)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, resumed, SAVED_AFTER)
    return ended(model, resumed)


# ZeroRedundancyOptimizer


def sent(state_dict):
    """The first process's state dict as a file that is loaded with weights_only, on all."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    files = [buffer.getvalue()]
    dist.broadcast_object_list(files, src=0)
    return torch.load(io.BytesIO(files[0]), weights_only=True)


def consolidated(optimizer):
    optimizer.consolidate_state_dict(to=0)
    return sent(optimizer.state_dict() if place()[0] == 0 else None)


def zero(name):
    """Half of the steps, then the rest in another model and optimizer; a refusal is returned as its message."""
    model = DistributedDataParallel(network())
    try:
        optimizer = ZeroRedundancyOptimizer(model.parameters(), OPTIMIZERS[name])
    except TypeError as error:
        return {"refused": str(error)}
    train(model, optimizer, STEPS // 2)
    other = DistributedDataParallel(copy.deepcopy(model.module))
    resumed = ZeroRedundancyOptimizer(other.parameters(), OPTIMIZERS[name])
    resumed.load_state_dict(consolidated(optimizer))
    train(other, resumed, STEPS - STEPS // 2)
    named = dict(other.module.named_parameters())
    states = consolidated(resumed)["state"]
    return {
        "params": {key: whole(p) for key, p in named.items()},
        "state": {key: states.get(i, {}) for i, key in enumerate(named)},
    }


def zero_in_groups(name):
    """Each process is left without the parameters of one group, or both groups."""
    outcomes = []
    for layers in ([0], [0, 1]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
        for layer in model:
            layer.requires_grad_(layer in [model[i] for i in layers])
        groups = [{"params": list(model[i].parameters()), "lr": 1.0 - 0.5 * i} for i in layers]
        if dist.is_initialized():
            parallel = DistributedDataParallel(model)
            optimizer = ZeroRedundancyOptimizer(groups, OPTIMIZERS[name])
            train(parallel, optimizer, STEPS)
            consolidated(optimizer)
        else:
            train(model, OPTIMIZERS[name](groups), STEPS)
        outcomes.append([whole(p) for p in model.parameters()])
    return outcomes


ALL = list(OPTIMIZERS)
SOME = [
    "RuleOptimizer-network",
    "LSTMOptimizer-moments",
    "LSTMOptimizer-mistrusted",
    "HierarchicalRNNOptimizer",
    "MetaSGD-drawn",
]
# torch.distributed asks the state for its device, and finds none where no tensor of it has dimensions.
WITH_TENSORS = [
    "RuleOptimizer-adam",
    "RuleOptimizer-map",
    "LSTMOptimizer-moments",
    "LSTMOptimizer-mistrusted",
    "HierarchicalRNNOptimizer",
]
# Inside ZeroRedundancyOptimizer each process has rates for its own tensors only, and draws them for itself.
DIVISIBLE = [name for name in ALL if name not in ("MetaSGD-drawn", "MetaSGD-given")]

CHECKS = {
    1: {"load": (load, ALL), "load_unsharded": (load_unsharded, ALL)},
    2: {
        "save": (save, ALL),
        "ddp": (ddp, ALL),
        "fsdp": (fsdp, ALL),
        "poisoned": (poisoned_fsdp, ALL),
        "full_state": (full_state, WITH_TENSORS),
        "own_state": (own_state, [*SOME, "RuleOptimizer-adam"]),
        "state_of_one": (state_of_one, [*SOME, "RuleOptimizer-adam"]),
        "zero": (zero, DIVISIBLE),
        "zero_in_groups": (zero_in_groups, ["LSTMOptimizer", "RuleOptimizer-sgd"]),
    },
    4: {
        "load": (load, ALL),
        "ddp": (ddp, ALL),
        "fsdp": (fsdp, ALL),
        "poisoned": (poisoned_fsdp, SOME),
        "hybrid": (hybrid, SOME),
        "tensor_parallel": (tensor_parallel, SOME),
        "tensor_parallel_and_sharded": (tensor_parallel_and_sharded, SOME),
    },
}
"""By the number of processes what they do, and with which optimizers."""

TOGETHER = (save, load, load_unsharded)
"""Those that take all optimizers at once, because each file takes its time."""

CASES = [
    (size, check, name) for size, checks in CHECKS.items() for check, (_, names) in checks.items() for name in names
]


def work(rank, folder):
    """One of four processes, of which some form each group; two save what the others load."""
    torch.set_num_threads(1)
    with open(folder / f"{rank}.stderr", "w") as file:  # also for libraries that end the process
        os.dup2(file.fileno(), sys.stderr.fileno())
    outcomes = {}
    for size in (2, 1, 4):
        if rank >= size:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
        for check, (run, names) in CHECKS[size].items():
            together = run(names, folder) if run in TOGETHER else {}
            for name in names:
                try:
                    outcomes[size, check, name] = together[name] if name in together else run(name)
                except Exception as error:  # ends all processes: the others would wait for this one
                    raise RuntimeError(f"{check} of {name} with {size} processes") from error
        dist.barrier()  # a process that leaves takes the connections of those still at work with it
        dist.destroy_process_group()
    torch.save(outcomes, folder / f"{rank}.pt")
