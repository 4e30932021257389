"""Looks at compiled CUDA kernels: registers, spills, width of the memory accesses.

    python csrc/check_kernels.py aigc_ext/lib/libaigc_ops_cuda.so [--csv FILE]

Takes a library, a cubin or a fatbin. Prints a line for each kernel, and exits with 1 if a hot one (HOT below)
uses local memory, which is where spilled registers go, or lacks the 16-byte accesses that it should have.
Needs cuobjdump and nvdisasm, of the CUDA toolkit or of the packages nvidia-cuda-cuobjdump and -nvdisasm.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TYPES = r"(float|aigc::half|aigc::bfloat16)"


@dataclass(frozen=True)
class Hot:
    """Kernels that must not spill: those whose name, as this program prints it, has the pattern in it."""

    op: str  # the folder of csrc
    pattern: str
    loads: bool = True  # has a 16-byte load from global memory
    stores: bool = True
    stack: int = 0  # bytes of local memory that it has without spilling


# Whoever writes a kernel that training spends its time in adds it here.
HOT = (
    Hot("bias_act", rf"bias_act_kernel<{TYPES}, Forward<"),
    Hot("bias_act", rf"bias_act_kernel<{TYPES}, Backward<"),
    Hot("gated_act", rf"gated_act_kernel<{TYPES}, "),
    # sin and cos of huge numbers have their digits there
    Hot("snake", rf"snake_kernel<{TYPES}, [01]>", stack=32),
    # the same; a thread reads and writes element by element
    Hot(
        "filtered_snake",
        rf"segment_kernel<{TYPES}, [01], (true|false), true>",
        loads=False,
        stores=False,
        stack=32,
    ),
    Hot("pixel_norm", rf"row_kernel<{TYPES}, [01]>"),
    # a thread has four pixels of a plane: 16 bytes of float32 only
    Hot("pixel_norm", r"tile_kernel<float, [01]>", stores=False),
    Hot("sample_sqnorm", rf"dot_kernel<{TYPES}>", stores=False),
    Hot("sample_sqnorm", rf"scale_kernel<{TYPES}>"),
    Hot("gan_loss", rf"terms_kernel<{TYPES}, ", loads=False, stores=False),  # a logit to a thread
    Hot("batch_norm_act", rf"(?<!join_)statistics_kernel<{TYPES}>", stores=False),
    Hot("batch_norm_act", rf"gradient_sums_kernel<{TYPES}, ", stores=False),
    Hot("batch_norm_act", rf"(runs|columns)_kernel<{TYPES}, [^,]*, (true|false)>"),
    Hot("group_norm_act", rf"(?<!join_)statistics_kernel<{TYPES}>", stores=False),
    # forward and backward
    Hot("group_norm_act", rf"(runs|columns)_kernel<{TYPES}, [^,]*, \(aigc::GroupNormStage\)[25]>"),
    Hot("upfirdn2d", rf"tile_kernel<{TYPES}, [12], [12], (4|12)>"),
    # memory is the smaller part of it: its tiles are loaded element by element
    Hot("filtered_lrelu", rf"tile_kernel<{TYPES}, [24], [24]>", loads=False, stores=False),
    Hot("adam_ema", r"update_kernel<"),
    # its tiles, too, are loaded element by element, and go through shared memory
    Hot("vector_quantize", rf"quantize_kernel<{TYPES}>", loads=False, stores=False),
)


@dataclass(frozen=True)
class Kernel:
    arch: str
    name: str
    registers: int
    local_bytes: int  # stack: local arrays and spilled registers
    local_accesses: int  # instructions that load or store there
    loads: int  # 16-byte loads from global memory
    stores: int

    def complaints(self) -> list[str]:
        rules = [hot for hot in HOT if re.search(hot.pattern, self.name)]
        found = []
        stack = max((rule.stack for rule in rules), default=0)
        if rules and (self.local_bytes > stack or (self.local_accesses and not stack)):
            found.append(f"{self.local_bytes} bytes of local memory, {self.local_accesses} accesses to it")
        if any(rule.loads for rule in rules) and not self.loads:
            found.append("no 16-byte load")
        if any(rule.stores for rule in rules) and not self.stores:
            found.append("no 16-byte store")
        return found

    @property
    def is_hot(self) -> bool:
        return any(re.search(hot.pattern, self.name) for hot in HOT)


def find_tool(name: str) -> str | None:
    """On PATH, beside nvcc, or in one of NVIDIA's Python packages."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    folders += [Path("/usr/local/cuda/bin"), *(Path(folder) / "nvidia/cu13/bin" for folder in sys.path)]
    places = [os.environ.get("PATH", ""), *map(str, folders)]
    return shutil.which(name, path=os.pathsep.join(places))


def missing_tool() -> str | None:
    """What is needed and not here; None if all is."""
    absent = [name for name in ("cuobjdump", "nvdisasm") if find_tool(name) is None]
    return f"{' and '.join(absent)} not found" if absent else None


def dump(option: str, path: Path) -> Iterable[str]:
    disassembler = find_tool("nvdisasm")
    assert disassembler is not None
    environment = {**os.environ, "PATH": f"{Path(disassembler).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(find_tool("cuobjdump")), option, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")


def demangled(names: Iterable[str]) -> dict[str, str]:
    """As written, without `aigc::(anonymous namespace)::`, arguments and return type; by mangled name."""
    names = list(names)
    tool = shutil.which("c++filt") or find_tool("cu++filt")
    if tool is None:
        sys.exit("c++filt was not found: it is part of binutils")
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    result = {}
    for name, plain in zip(names, text.splitlines(), strict=True):
        plain = re.sub(r"aigc::\(anonymous namespace\)::", "", plain).removeprefix("void ")
        result[name] = re.sub(r"\([^()]*\)$", "", plain)
    return result


def kernels(path: Path) -> list[Kernel]:
    """All kernels of a library, cubin or fatbin, of every architecture in it."""
    resources: dict[tuple[str, str], tuple[int, int]] = {}
    arch, name = "", ""
    for line in dump("-res-usage", path):
        if match := re.match(r"\s*(?:arch = |Function )(\S+?):?\s*$", line):
            arch, name = (match[1], "") if "arch" in line else (arch, match[1])
        elif name and (match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line)):
            resources[arch, name] = int(match[1]), int(match[2]) + int(match[3])
            name = ""
    counts: dict[tuple[str, str], Counter[str]] = {}
    arch = ""
    here: Counter[str] = Counter()
    for line in dump("-sass", path):
        if match := re.match(r"\s*code for (\S+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            here = counts.setdefault((arch, match[1]), Counter())
        elif match := re.search(r"\b(LDL|STL|LDG\S*\.128|STG\S*\.128)\b", line):
            here["local" if match[1].endswith("L") else match[1][:3]] += 1
    plain = demangled(sorted({function for _, function in counts}))
    result = []
    for (sass_arch, function), count in counts.items():
        registers, local = resources.get((sass_arch, function)) or resources["", function]  # a cubin
        result.append(
            Kernel(sass_arch, plain[function], registers, local, count["local"], count["LDG"], count["STG"])
        )
    return sorted(result, key=lambda kernel: (kernel.arch, kernel.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="library, cubin or fatbin")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    if missing := missing_tool():
        sys.exit(f"check_kernels: {missing}: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    found = kernels(options.path)
    if not found:
        sys.exit(f"check_kernels: there are no kernels in {options.path}")
    header = ("arch", "hot", "registers", "local", "16-byte loads", "16-byte stores", "kernel")
    rows = [
        (k.arch, "hot" if k.is_hot else "", k.registers, k.local_bytes, k.loads, k.stores, k.name)
        for k in found
    ]
    for row in (header, *rows):
        print("{:6} {:4} {:>9} {:>6} {:>13} {:>14}  {}".format(*row))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    bad = [(kernel, complaint) for kernel in found for complaint in kernel.complaints()]
    for kernel, complaint in bad:
        print(f"BAD: {kernel.arch} {kernel.name}: {complaint}")
    absent = [hot for hot in HOT if not any(re.search(hot.pattern, kernel.name) for kernel in found)]
    if options.path.suffix == ".so":  # all ops are in it
        for hot in absent:
            print(f"BAD: no kernel of {hot.op} has {hot.pattern} in its name")
    elif len(absent) < len(HOT):
        absent = []
    hot_kernels = sum(kernel.is_hot for kernel in found)
    print(f"{len(found)} kernels, {hot_kernels} of them hot, {len(bad) + len(absent)} complaints")
    sys.exit(1 if bad or absent else 0)


if __name__ == "__main__":
    main()
