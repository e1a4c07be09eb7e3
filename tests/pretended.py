"""A pretended accelerator, which a CPU computes for: a device of its own to PyTorch, that tells what a real one would.

Tensors on it are wrappers of tensors on the CPU. An operation on tensors of both devices is an error, as on a GPU; each
operation that a GPU would start a kernel for is counted, and so is, with the line of budgetnet that is behind it, each
that makes the host wait for the device: numbers that are read, shapes that depend on them, copies in either direction.
As on Apple's GPUs, there are no numbers of 64 bits with a fraction (where PyTorch's scaling of losses does without).
What has two implementations in PyTorch takes that of the CPU, and autocast casts nothing.

It changes PyTorch for the whole process, and is imported before budgetnet. As a program it trains on it:

    python tests/pretended.py steps CASES     a JSON object of lists of arguments by name: what `steps` returns by name
    python tests/pretended.py whole CASES     likewise of `whole`
    python tests/pretended.py logits CASES    likewise of `logits`
"""

import json
import sys
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class _Generator(torch.Generator):
    """One on the CPU, wherever it is asked for: both devices then draw the same."""

    def __new__(cls, device="cpu", *_):
        return super().__new__(cls, "cpu")


backend_registration._setup_privateuseone_for_python_backend("pretended", _Module())
_autocast = torch.library.Library("_", "IMPL")
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
torch.Generator = _Generator
# A device has a thread of its own for backward, and there is none for this one.
torch.autograd.set_multithreading_enabled(False)
DEVICE = torch.device("pretended", 0)

_WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount"}
_WAITS |= {"_unique2", "unique_dim"}
_VIEWS = {"alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice", "split", "squeeze", "t"}
_VIEWS |= {"split_with_sizes", "transpose", "unbind", "unfold", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"}


class Pretended(TorchDispatchMode):
    """Within it, the device is there.

    Attributes:
        kernels: how often each operation that is no view was started on the device.
        waits: how often the host waited for it, by operation and line.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        leaves, spec = pytree.tree_flatten((args, kwargs))
        here = [leaf for leaf in leaves if isinstance(leaf, _Tensor)]
        there = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, _Tensor)]
        device = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if name == "copy_":
            on_it, fetched = (isinstance(tensor, _Tensor) for tensor in args[:2])
            copies = on_it != fetched and (fetched or args[1].ndim > 0)
        else:
            on_it = device == DEVICE.type or (device is None and bool(here))
            copies = name == "_to_copy" and on_it != bool(here)
        if here and there and name != "copy_":
            if name in ("index", "index_put_", "_index_put_impl_"):  # whose indices are copied
                copies = True
            elif any(tensor.ndim for tensor in there):
                raise RuntimeError(f"{func} of tensors on the accelerator and on the CPU")
        masks = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if copies or (here and (name in _WAITS or masks)):
            self.note(name)
        if on_it and name not in _VIEWS:
            self.kernels[name] += 1

        args, kwargs = pytree.tree_unflatten([_plain(leaf) for leaf in leaves], spec)
        mine = {id(tensor.plain): tensor for tensor in here}  # what is changed in place comes back as it came

        def wrapped(out):
            if out.dtype == torch.float64 and not any("grad_scaler" in f.filename for f in traceback.extract_stack()):
                raise RuntimeError(f"{func} gives float64, which not every accelerator has")
            return mine[id(out)] if id(out) in mine else _Tensor(out)

        found = func(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, wrapped, found) if on_it else found

    def note(self, name):
        """Count a wait, by the innermost line of budgetnet."""
        lines = [f for f in traceback.extract_stack() if f"{Path('src/budgetnet')}/" in f.filename]
        self.waits[f"{name} in {Path(lines[-1].filename).name}: {lines[-1].line}" if lines else name] += 1


class _Tensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, plain):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device=DEVICE,
        )
        made.plain = plain
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended accelerator outside of Pretended()")

    def tolist(self):  # which PyTorch has for no tensor but its own
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):  # in a file, the device is the place that it was written from, and no more
        return self.cpu().__reduce_ex__(protocol)


def _plain(leaf):
    if isinstance(leaf, _Tensor):
        return leaf.plain
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == DEVICE.type else leaf


def steps(recipe, *options):
    """Two steps of a training by random images, on the CPU and on the accelerator, as after a tenth of a run.

    Returns:
        Of each device the losses, the loss of another batch afterwards, how many kernels the second step started,
        for the gradient and for the update, and where the host waited in both steps.
    """
    from budgetnet.data import Dataset, Images
    from budgetnet.inputs import progressive_size
    from budgetnet.recipe import load_recipe
    from budgetnet.training import Training

    config = load_recipe(Path(recipe), options)
    size = progressive_size(config.progressive, 0.1, 32)
    draw = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=draw), torch.arange(64) % 10)
    dataset = Dataset("random", tuple("abcdefghij"), images, images, (0.5,) * 3, (0.25,) * 3, "")

    def train(device, pretended):
        training = Training(config, dataset, torch.arange(64), device)
        training.network.train()
        batches = torch.arange(64).to(device).split(config.batch_size)
        pretended.waits.clear()
        losses, kernels = [], []
        for seed, batch in enumerate(batches[:2]):
            compute = partial(training.gradient, batch, seed, size)
            for work in (compute, partial(training.update, 0.01, compute)):
                pretended.kernels.clear()
                losses.append(work())
                kernels.append(pretended.kernels.total())
        waits = dict(pretended.waits)
        losses.append(training.loss(batches[2], 2, size))
        return {"losses": [pair[0].item() for pair in losses if pair], "kernels": kernels[2:], "waits": waits}

    with Pretended() as pretended:
        return {"cpu": train(torch.device("cpu"), pretended), "accelerator": train(DEVICE, pretended)}


def whole(recipe, *options):
    """A run on each of the devices, stopped once and resumed: its summary, and where the host waited since then."""
    import tempfile

    from budgetnet.errors import Interrupted
    from budgetnet.recipe import load_recipe
    from budgetnet.train import train

    sys.modules["budgetnet.train"]._LOOK_EVERY[DEVICE.type] = 1e9
    config = load_recipe(Path(recipe), options)
    found = {}
    for name, device in {"cpu": torch.device("cpu"), "accelerator": DEVICE}.items():
        with tempfile.TemporaryDirectory() as folder, Pretended() as pretended:
            run, asked = Path(folder) / "run", iter(range(1000))
            try:
                train(config, run, device=device, track=False, stop=lambda asked=asked: next(asked) == 60)
            except Interrupted:
                pretended.waits.clear()
                found[name] = {"stopped": True} | train(config, run, device=device, track=False, resume=True)["final"]
            found[name]["waits"] = dict(pretended.waits)
    return found


def logits(name):
    """The logits of some random images by a network of that name, on each device: mean over views, and after its norms
    have the statistics of the images."""
    from budgetnet import models
    from budgetnet.config import ModelConfig
    from budgetnet.logits import predict_logits
    from budgetnet.remedies import adapted

    torch.manual_seed(0)
    network = models.build(ModelConfig(name=name, width=8), 10)
    images, mean, std = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3
    found = {}
    for where, device in {"cpu": torch.device("cpu"), "accelerator": DEVICE}.items():
        with Pretended():
            network = network.to(device)
            own = predict_logits(network, images, mean, std, tta="crops")
            better = predict_logits(adapted(network, images, mean, std, prior=4), images, mean, std)
            found[where] = [own.tolist(), better.tolist()]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"steps": steps, "whole": whole, "logits": logits}[sys.argv[1]]
    print(json.dumps({name: work(*case) for name, case in json.loads(sys.argv[2]).items()}))
