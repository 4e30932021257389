"""What `aigc_ext.info()` and `python -m aigc_ext.info` say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aigc_ext


def test_info_describes_this_process() -> None:
    info = aigc_ext.info()
    assert info.version == aigc_ext.__version__
    assert info.torch == torch.__version__
    assert info.torch_cuda == torch.version.cuda
    assert info.threads == torch.get_num_threads()
    assert info.instruction_set in ("baseline", "avx2", "avx512")
    assert all(library.is_file() for library in info.libraries)
    assert f"aigc_ext {aigc_ext.__version__}, C++ 20" in info.build
    assert "for torch >= 2.10" in info.build


def test_every_op_has_a_cpu_kernel() -> None:
    backends = aigc_ext.info().backends
    assert {"bias_act", "bias_act_backward", "linear_act"} <= backends.keys()
    assert all("CPU" in kinds for kinds in backends.values())
    for name in backends:
        assert hasattr(torch.ops.aigc, name)


def test_cuda_kernels_are_listed_only_where_they_are_loaded() -> None:
    info = aigc_ext.info()
    loaded = any(path.name == "libaigc_ops_cuda.so" for path in info.libraries)
    assert loaded == any("CUDA" in kinds for kinds in info.backends.values())
    if torch.version.cuda is None:
        assert not loaded


@pytest.mark.parametrize("forced", ["", "baseline"])
def test_the_command_prints_it(forced: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "aigc_ext.info"]
    environment = {**os.environ, "AIGC_EXT_ISA": forced}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    fields = dict(re.findall(r"^([\w ]+):\s+(.*)$", result.stdout, re.MULTILINE))
    assert fields["aigc_ext"] == aigc_ext.__version__
    assert fields["torch"].startswith(torch.__version__)
    assert fields["build"] == aigc_ext.info().build
    assert fields["library"] == str(aigc_ext.info().libraries[0])
    expected = "baseline (forced by AIGC_EXT_ISA)" if forced else aigc_ext.info().instruction_set
    assert forced or not os.environ.get("AIGC_EXT_ISA")
    assert fields["instruction set"] == expected
    ops = dict(re.findall(r"^op:\s+(\w+)\s+(.*)$", result.stdout, re.MULTILINE))
    assert ops == {name: ", ".join(kinds) for name, kinds in aigc_ext.info().backends.items()}


def test_cmake_prefix_holds_the_package() -> None:
    prefix = Path(aigc_ext.cmake_prefix())
    assert (prefix / "cmake" / "aigc_ext-config.cmake").is_file()
    assert (prefix / "lib" / "libaigc_kernels.a").is_file()
    assert (prefix / "include" / "aigc_ext" / "bias_act" / "bias_act.h").is_file()
