"""Information on this installation: versions, build, the backends of every op, the CMake package's
location."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from aigc_ext import _native
from aigc_ext._output import unread_output
from aigc_ext.version import __version__


@dataclass(frozen=True)
class Info:
    """The result of :func:`info`. ``backends`` maps each native op to the device types that have a kernel;
    ``autograd`` is the library of the C++ autograd nodes, and None if they are Python's."""

    version: str
    python: str
    torch: str
    torch_cuda: str | None
    platform: str
    threads: int
    build: str
    libraries: tuple[Path, ...]
    autograd: Path | None
    instruction_set: str
    instruction_set_forced: bool
    cuda_architectures: tuple[str, ...]
    cuda_devices: tuple[str, ...]
    backends: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        forced = " (forced by AIGC_EXT_ISA)" if self.instruction_set_forced else ""
        lines = [
            ("aigc_ext", self.version),
            ("python", self.python),
            ("torch", f"{self.torch} (CUDA {self.torch_cuda or 'none'})"),
            ("platform", self.platform),
            ("threads", str(self.threads)),
            ("build", self.build),
            *(("library", str(path)) for path in self.libraries),
            (
                "autograd nodes",
                "Python's (small calls take longer)" if self.autograd is None else str(self.autograd),
            ),
            ("instruction set", self.instruction_set + forced),
            ("CUDA built for", ", ".join(self.cuda_architectures) or "no CUDA library in this installation"),
            ("CUDA devices", ", ".join(self.cuda_devices) or "none"),
            *(
                ("op", f"{name:28} {', '.join(kinds) or 'no kernel: plain PyTorch'}")
                for name, kinds in self.backends.items()
            ),
        ]
        return "\n".join(f"{key + ':':17}{value}" for key, value in lines)


def info() -> Info:
    """Versions, build, instruction set, devices and each op's backends in this process.

    ``print(aigc_ext.info())`` is the text of ``python -m aigc_ext.info``.
    """
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Info(
        version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        platform=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        build=torch.ops.aigc.build_info(),
        libraries=tuple(_native.libraries),
        autograd=None if _native.autograd is None else Path(str(_native.autograd.__file__)),
        instruction_set=torch.ops.aigc.instruction_set(),
        instruction_set_forced=bool(os.environ.get("AIGC_EXT_ISA")),
        cuda_architectures=_cuda_architectures(_native.LIBRARY_DIR / "libaigc_ops_cuda.so"),
        cuda_devices=tuple(devices),
        backends=_backends(),
    )


def cmake_prefix() -> str:
    """The folder for ``CMAKE_PREFIX_PATH``, with which ``find_package(aigc_ext CONFIG)`` finds the targets
    ``aigc_ext::kernels`` (static, without torch) and ``aigc_ext::ops`` (to link together with LibTorch).
    """
    return str(Path(__file__).parent)


def _backends() -> dict[str, tuple[str, ...]]:
    has_kernel: Callable[[str, str], bool] = torch._C._dispatch_has_kernel_for_dispatch_key
    names = sorted(
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aigc::")
        and schema.arguments
        and not has_kernel(schema.name, "CompositeExplicitAutograd")  # composed of PyTorch's own ops
    )
    return {
        name.removeprefix("aigc::"): tuple(kind for kind in ("CPU", "CUDA") if has_kernel(name, kind))
        for name in names
    }


def _cuda_architectures(library: Path) -> tuple[str, ...]:
    """The architectures that cuobjdump lists; without cuobjdump, only that the library exists."""
    if not library.exists():
        return ()
    try:
        command = ["cuobjdump", "--list-elf", "--list-ptx", str(library)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ("unknown (cuobjdump, which would tell, is not here)",)
    names = {part for part in result.stdout.replace(".", " ").split() if part.startswith(("sm_", "compute_"))}
    return tuple(sorted(names))


def main() -> None:
    with unread_output():
        print(info())
