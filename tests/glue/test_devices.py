"""Native ops compare the devices of all their tensors, kind and index, without cards: see devices.cpp. The
fakes' side is in tests/ops/test_refusals.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.test_repository import ROOT


@pytest.fixture(scope="module")
def tensors_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    library = tmp_path_factory.mktemp("devices") / "devices.so"
    torch_dir = torch.__path__[0]
    subprocess.run(
        [
            *("c++", "-std=c++20", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{ROOT / 'csrc'}", "-isystem", f"{torch_dir}/include"),
            *("-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
            *(str(ROOT / "tests/glue/devices.cpp"), "-o", str(library)),
            *(
                f"-L{torch_dir}/lib",
                "-Wl,-Bsymbolic",
                "-Wl,--no-as-needed",
                "-ltorch_cpu",
                "-ltorch",
                "-lc10",
            ),
        ],
        check=True,
    )
    torch.ops.load_library(str(library))
    op: Callable[..., Any] = torch.ops.aigc_devices.tensors_of
    return op


def on(card: int) -> torch.Tensor:
    return torch.zeros(card)


def test_tensors_of_one_card_are_taken(tensors_of: Callable[..., Any]) -> None:
    assert tensors_of(on(3), None, []) == 1
    assert tensors_of(on(3), on(3), [on(3), on(3)]) == 4


@pytest.mark.parametrize(
    ("b", "others", "place"), [(2, [3, 3], "b"), (None, [3, 2], "list[1]"), (3, [2, 1], "list[0]")]
)
def test_another_card_is_named(
    tensors_of: Callable[..., Any], b: int | None, others: list[int], place: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        tensors_of(on(3), None if b is None else on(b), [on(card) for card in others])
    assert str(error.value) == f"tensors_of: {place} is on cuda:2, but must be on cuda:3, as x is"


def test_a_tensor_that_is_missing_is_named_first(tensors_of: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="tensors_of: x is None, but must be a tensor"):
        tensors_of(None, on(2), [on(3)])
