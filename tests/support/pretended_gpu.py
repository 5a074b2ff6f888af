"""A simulated GPU for machines without one: the processor does its computations.

Its tensors claim to be on another device and obey CUDA's rules: they cannot be mixed with the
processor's, NumPy cannot read them, the processor's generators cannot fill them, and in
deterministic mode operations without a deterministic CUDA kernel are refused. So a stage that
forgot to move a tensor fails here as it would on a GPU. Autocast chooses CUDA's types. Kernels,
their rounding, speed and memory are not simulated.

`run_on_it` runs a stage on it.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torchvision.ops  # noqa: F401 - registers its operations
from torch.library import Library, fallthrough_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from stages.common.runtime import devices
from tests.support.run_module import run_module

NAME = "pretended"
PROCESSOR = torch.device("cpu")
aten = torch.ops.aten
# Operations that take tensors of both devices.
CROSSING = {aten._to_copy, aten.copy_}
# Their indices may stay on the processor.
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}
# The operations in torch.use_deterministic_algorithms' list that CUDA refuses.
WITHOUT_ORDER = {
    aten.adaptive_max_pool2d_backward,
    aten._adaptive_avg_pool2d_backward,
    aten.avg_pool3d_backward,
    aten.grid_sampler_2d_backward,
    aten.histc,
    aten.kthvalue,
    aten.max_unpool2d,
    aten.nll_loss2d_forward,
    aten.put_,
    aten.reflection_pad2d_backward,
    aten.replication_pad2d_backward,
    aten.upsample_bicubic2d_backward,
    aten.upsample_bilinear2d_backward,
    aten.upsample_linear1d_backward,
    torch.ops.torchvision._roi_align_backward,
    torch.ops.torchvision._roi_pool_backward,
}
# Products of bfloat16, whose sums a GPU computes in float32; some processors are very slow at them.
PRODUCTS = {
    aten.convolution,
    aten.convolution_backward,
    aten.addmm,
    aten.mm,
    aten.baddbmm,
    aten.bmm,
}
AUTOCAST = torch._C.DispatchKey.AutocastPrivateUse1
# The types in which CUDA's autocast computes operations.
AUTOCAST_TYPES = {
    torch.bfloat16: "addmm baddbmm bmm conv1d conv2d conv_transpose2d.input linear matmul mm"
    " scaled_dot_product_attention",
    torch.float32: "binary_cross_entropy_with_logits cosine_similarity cross_entropy_loss exp"
    " group_norm l1_loss layer_norm log log1p log_softmax.int mse_loss nll_loss pow.Tensor_Scalar"
    " pow.Tensor_Tensor prod reciprocal rsqrt smooth_l1_loss softmax.int softplus sum"
    " sum.dim_IntList",
}
LIBRARIES: list[Library] = []  # registrations last as long as these objects


class Pretended(torch.Tensor):
    """A tensor that claims to be on pretended:0; `held` has its values, on the processor."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    count = 0  # number of tensors made so far

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, held: torch.Tensor):
        self.held = held
        Pretended.count += 1

    def numpy(self, *, force: bool = False):
        """Raise the error that a CUDA tensor raises."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; call cpu() first")

    __array__ = numpy

    def tolist(self) -> list:
        """Return the values, as CUDA does, after waiting for them."""
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Also sees operations without a pretended tensor: those that make one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


def _compute(operation, args, kwargs):
    kind = operation.overloadpacket
    if kind in (aten._pin_memory, aten.pin_memory):
        return args[0].clone()
    if kind is aten.is_pinned:
        return False
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    pretended = [isinstance(tensor, Pretended) for tensor in given]
    wanted = kwargs.get("device")
    there = any(pretended) if wanted is None else torch.device(wanted).type == NAME
    if any(pretended) and kind not in CROSSING:
        values = (args[0], *args[2:3]) if kind in INDEXING else given
        _refuse_mixture(kind, [value for value in values if isinstance(value, torch.Tensor)])
    if there:
        _refuse_kernel(kind, kwargs)
    if kind is aten.copy_:
        there = isinstance(args[0], Pretended)
    if wanted is not None:
        kwargs = kwargs | {"device": PROCESSOR}
    held_args, held_kwargs = tree_map_only(Pretended, lambda tensor: tensor.held, (args, kwargs))
    half = kind in PRODUCTS and any(tensor.dtype is torch.bfloat16 for tensor in given)
    if half and not devices.is_fast_at_bfloat16("cpu"):
        held_args, held_kwargs = _cast_all(torch.bfloat16, torch.float32, (held_args, held_kwargs))
        made = _cast_all(torch.float32, torch.bfloat16, operation(*held_args, **held_kwargs))
    else:
        made = operation(*held_args, **held_kwargs)
    if not there:
        return made
    made = tree_map_only(torch.Tensor, Pretended, made)
    return return_and_correct_aliasing(operation, args, kwargs, made)


def _cast_all(old: torch.dtype, new: torch.dtype, tensors):
    return tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(new) if tensor.dtype is old else tensor, tensors
    )


def _refuse_mixture(kind, tensors) -> None:
    if any(not isinstance(tensor, Pretended) and tensor.dim() for tensor in tensors):
        raise RuntimeError(
            f"{kind}: expected all tensors to be on the same device, but found cuda:0 and cpu:"
            f" {[(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]}"
        )


def _refuse_kernel(kind, kwargs) -> None:
    if torch.are_deterministic_algorithms_enabled() and kind in WITHOUT_ORDER:
        raise RuntimeError(f"{kind} does not have a deterministic implementation on CUDA")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"{kind}: expected a 'cuda' device type for generator but found 'cpu'")


class _Backend:
    """The functions that torch expects in a device's module."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: the processor's generator draws."""

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _autocast_like_cuda() -> None:
    everything, numeric = (Library(name, "IMPL", AUTOCAST.name) for name in ("_", "aten"))
    everything.fallback(fallthrough_kernel)
    for dtype, names in AUTOCAST_TYPES.items():
        for name in names.split():
            kind, _, overload = name.partition(".")
            operation = getattr(getattr(aten, kind), overload or "default")
            numeric.impl(name, partial(_cast_and_call, operation, dtype))
    LIBRARIES.extend((everything, numeric))


def _cast_and_call(operation, dtype: torch.dtype, *args, **kwargs):
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST)):
        cast = partial(tree_map_only, torch.Tensor, lambda tensor: _cast(tensor, dtype))
        return operation(*cast(args), **cast(kwargs))


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    there = tensor.device.type == NAME and tensor.dtype in (torch.bfloat16, torch.float32)
    return tensor.to(dtype) if there else tensor


def pretend() -> None:
    """Give this process, and all its threads, a GPU that every stage takes, until it ends."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(…, device=…) bypasses the mode
    torch.__future__.set_swap_module_params_on_conversion(True)
    _autocast_like_cuda()
    devices.compute_device = lambda: torch.device(NAME, 0)
    _Mode().__enter__()
    run = threading.Thread.run

    def run_in_mode(thread: threading.Thread) -> None:
        with _Mode():
            run(thread)

    threading.Thread.run = run_in_mode


def run_on_it(folder: Path, words: list[str]) -> None:
    """Run `python -m <words>` in `folder`, by a process of its own.

    It is forked from one that has imported torch, which takes longer than most stages.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(folder, words, dict(os.environ)))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{words} in {folder}"


def _run(folder: Path, words: list[str], environment: Mapping[str, str]) -> None:
    os.environ.clear()  # the server's, of when it started
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    pretend()
    run_module(words[0])
    if not Pretended.count:
        raise SystemExit(f"{words[0]} computed nothing on the GPU")
