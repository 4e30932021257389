"""Vector quantisation: rows replaced by the nearest of a codebook's codes (van den Oord, Vinyals and
Kavukcuoglu 2017, "Neural Discrete Representation Learning", arXiv:1711.00937).

The gradient of a codebook is a sum by index, ``code_sums``; its adjoint ``code_rows`` writes a code in place
of each index. Both are linear and each other's derivatives, so that every order has a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_same_kind,
    dtype_name,
    no_tensor,
    promoted_dtype,
    shape_of,
    size_product,
    wrap_dim,
)
from aigc_ext.ops._layout import is_channels_last, new_in_format, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def vector_quantize(x: Tensor, codebook: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """The nearest code of each row by Euclidean distance, and its index, without the matrix of all distances.

    A row is what lies along ``dim``: the features of a pixel of ``[N, D, H, W]``, or with ``dim=-1`` the last
    dimension of ``[..., D]``. Distances that rounding could confuse are computed again from differences in
    float64, so that the index is right where rows are far from 0 and near to each other. Of codes with the
    same distance it is the lowest.

    Args:
        x: at least one dimension, contiguous, or channels-last if ``dim`` is 1, without a copy; float64,
            float32, float16 or bfloat16 (half types are computed in float32).
        codebook: ``[K, D]`` with ``D = x.shape[dim]`` and at least one code. If dtypes differ, both are
            promoted to the wider one.
        dim: the dimension of the rows' numbers.

    Returns:
        The codes, of x's shape, channels-last if ``x`` is and ``dim`` is 1, else contiguous; and their
        indices, int64, of x's shape without ``dim``. A row with a number that is not finite has the index -1
        and a code of NaN. A code with a NaN is nearer to every row than any other, an infinite one farther.

        The gradient of x is that of the codes, unchanged (straight-through); that of the codebook their sum
        by index, in an order that depends on the shapes alone. Pass ``codebook.detach()`` for the first
        alone, ``x.detach()`` for the second. Differentiable to every order.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: ``codebook`` doesn't fit ``x``; ``dim`` out of range; dtype or device not supported.
    """
    if not (isinstance(x, Tensor) and isinstance(codebook, Tensor)):
        raise no_tensor("vector_quantize", x=x, codebook=codebook)
    if decomposed():
        return vector_quantize_ref(x, codebook, dim)
    if codebook.dtype != x.dtype:
        dtype = promoted_dtype("vector_quantize", x=x, codebook=codebook)
        x, codebook = x.to(dtype), codebook.to(dtype)
    codes, indices = _vector_quantize(x, codebook, dim)
    return codes, indices


def vector_quantize_ref(x: Tensor, codebook: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """:func:`vector_quantize` in plain PyTorch, with the matrix of all distances."""
    dtype = torch.promote_types(x.dtype, codebook.dtype)
    x, codebook = x.to(dtype), codebook.to(dtype)
    indices = _nearest(x.detach().movedim(dim, -1), codebook.detach())
    # What is added is 0, or where there is no code NaN, and has the gradient of x.
    return code_rows_ref(codebook, indices, dim) + (x - x.detach()), indices


def code_rows(codebook: Tensor, indices: Tensor, dim: int = 1, channels_last: bool = False) -> Tensor:
    """A code in place of each index, its numbers along dimension ``dim`` of the result, which is contiguous
    or channels-last; NaN for an index outside of ``[0, K)``. Its gradient is :func:`code_sums`."""
    dim = dim % (indices.dim() + 1)
    if decomposed():
        return code_rows_ref(codebook, indices, dim)
    y: Tensor = _rows(codebook, indices, dim, channels_last)
    return y


def code_sums(x: Tensor, indices: Tensor, num_codes: int, dim: int = 1) -> Tensor:
    """For each code, the sum of the rows of x with its index, ``[num_codes, x.shape[dim]]``, in an order that
    depends on the shapes alone. An index outside of ``[0, num_codes)`` adds to none."""
    if decomposed():
        return code_sums_ref(x, indices, num_codes, dim)
    sums: Tensor = _sums(x, indices, num_codes, dim)
    return sums


def code_rows_ref(codebook: Tensor, indices: Tensor, dim: int = 1) -> Tensor:
    known = (indices >= 0) & (indices < codebook.size(0))
    rows = codebook[torch.where(known, indices, 0)]
    return torch.where(known.unsqueeze(-1), rows, float("nan")).movedim(-1, dim)


def code_sums_ref(x: Tensor, indices: Tensor, num_codes: int, dim: int = 1) -> Tensor:
    rows, flat = x.movedim(dim, -1).flatten(0, -2), indices.flatten()
    known = (flat >= 0) & (flat < num_codes)
    rows = torch.where(known.unsqueeze(-1), rows, 0).to(wide_dtype(x))
    sums = rows.new_zeros(num_codes, rows.size(-1))
    return sums.index_add(0, torch.where(known, flat, 0), rows).to(x.dtype)


def _nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """The index of the nearest code, of rows along the last dimension."""
    wide = wide_dtype(rows)
    rows, codebook = rows.to(wide), codebook.to(wide)
    usable = rows.isfinite().all(-1)
    half_norms = codebook.square().sum(1) / 2
    finite = codebook.isfinite().all(1, keepdim=True)  # the product must not make a NaN of an infinite code
    with torch.autocast(rows.device.type, enabled=False):
        products = torch.where(usable.unsqueeze(-1), rows, 0) @ torch.where(finite, codebook, 0).mT
    return torch.where(usable, (half_norms - products).argmin(-1), -1)


# ---- native ops --------------------------------------------------------------------------------------------


def _check_codes(op: str, codebook: Tensor) -> None:
    if codebook.dim() != 2 or codebook.size(0) == 0:
        raise RuntimeError(
            f"{op}: codebook has shape {shape_of(codebook)}, but must be [codes, numbers], with one code at "
            "least"
        )


def _check_indices(op: str, indices: Tensor) -> None:
    if indices.dtype != torch.int64:
        raise RuntimeError(f"{op}: indices is {dtype_name(indices.dtype)}, but must be int64")


def _keeps_channels_last(x: Tensor, dim: int) -> bool:
    return dim == 1 and is_channels_last(x)


def _fake(x: Tensor, codebook: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    op = "vector_quantize"
    check_same_kind(op, x=x)
    dim = wrap_dim(op, x, dim)
    check_same_kind(op, x=x, codebook=codebook)
    _check_codes(op, codebook)
    if codebook.size(1) != x.size(dim):
        raise RuntimeError(
            f"{op}: codebook has shape {shape_of(codebook)}, but must be [codes, {x.size(dim)}] for an x of "
            f"shape {shape_of(x)} and dim {dim}"
        )
    sizes = [*x.shape[:dim], *x.shape[dim + 1 :]]
    codes = new_in_format(x, x.shape, _keeps_channels_last(x, dim))
    return codes, x.new_empty(sizes, dtype=torch.int64)


def _fake_rows(codebook: Tensor, indices: Tensor, dim: int, channels_last: bool) -> Tensor:
    op = "code_rows"
    check_same_kind(op, codebook=codebook)
    _check_codes(op, codebook)
    _check_indices(op, indices)
    if not 0 <= dim <= indices.dim():
        raise RuntimeError(
            f"{op}: dim is {dim}, but must be from 0 to {indices.dim()} for indices of shape "
            f"{shape_of(indices)}"
        )
    if channels_last and not (dim == 1 and indices.dim() >= 2):
        raise RuntimeError(
            f"{op}: channels_last is true, but dim is {dim} and indices has shape {shape_of(indices)}"
        )
    sizes = [*indices.shape[:dim], codebook.size(1), *indices.shape[dim:]]
    size_product(op, *sizes)
    return new_in_format(codebook, sizes, channels_last)


def _fake_sums(x: Tensor, indices: Tensor, num_codes: int, dim: int) -> Tensor:
    op = "code_sums"
    check_same_kind(op, x=x)
    dim = wrap_dim(op, x, dim)
    if num_codes < 1:
        raise RuntimeError(f"{op}: num_codes is {num_codes}, but must be at least 1")
    _check_indices(op, indices)
    expected = [*x.shape[:dim], *x.shape[dim + 1 :]]
    if list(indices.shape) != expected:
        raise RuntimeError(
            f"{op}: indices has shape {shape_of(indices)}, but must be {expected} for an x of shape "
            f"{shape_of(x)} and dim {dim}"
        )
    size_product(op, num_codes, x.size(dim))
    return x.new_empty(num_codes, x.size(dim))


def _layout_of(x: Tensor, dim: int) -> tuple[int, bool]:
    dim %= x.dim()
    return dim, _keeps_channels_last(x, dim)


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    sums = _sums(dy, a.indices, a.num_codes, a.dim) if needs.codebook else None
    return dy if needs.x else None, sums


_rows: Callable[..., Tensor] = native(
    "code_rows",
    fake=_fake_rows,
    gradients=lambda a, needs, dy: (_sums(dy, a.indices, a.num_codes, a.dim),),
    wrt=["codebook"],
    save=["indices"],
    keep=["num_codes"],
    kept=lambda codebook, *rest: (codebook.size(0),),
)
_sums: Callable[..., Tensor] = native(
    "code_sums",
    fake=_fake_sums,
    gradients=lambda a, needs, dsums: (_rows(dsums, a.indices, *a.layout),),
    wrt=["x"],
    save=["indices"],
    keep=["layout"],
    kept=lambda x, indices, num_codes, dim, sums: (_layout_of(x, dim),),
)
_vector_quantize = native(
    "vector_quantize",
    fake=_fake,
    gradients=_gradients,
    save=["indices"],
    constants=["indices"],
    keep=["num_codes"],
    kept=lambda x, codebook, *rest: (codebook.size(0),),
)

OPS = [Op(vector_quantize, vector_quantize_ref, {"x": (2, 3, 4, 4), "codebook": (5, 3)})]
