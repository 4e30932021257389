"""Every op against float64 within its error budget, for as long as there is time: the first thing that `make
gpu-check` runs on a card.

``python -m tests.cuda.smoke [--device cpu] [--seconds 20]``: first each op once in float32, then the other
dtypes and layouts. A failure is printed when it happens, and the others go on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback

import torch

from tests.cuda.calls import CASES, on
from tests.ops.suite import LAYOUTS, check_call
from tests.ops.test_properties import draw_example

FORMS = sorted(
    itertools.product((torch.float32, torch.bfloat16, torch.float16, torch.float64), LAYOUTS),
    key=lambda form: form != (torch.float32, "contiguous"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.smoke")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    device, started = torch.device(options.device), time.monotonic()
    wanted = [(case, *form) for form in FORMS for case in CASES if form[0] in case.dtypes]
    done, failures = 0, []
    for case, dtype, layout in wanted:
        if time.monotonic() - started > options.seconds and done >= len(CASES):
            break
        try:
            check_call(on(case, device), draw_example(case.calls), dtype, layout, seed=3)
        except Exception as error:
            failures.append(f"{case.name}, {dtype}, {layout}: {type(error).__name__}: {error}")
            print(failures[-1], flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            if device.type == "cuda" and "CUDA error" in str(error):
                break  # after an illegal access nothing works in this process
        done += 1
    print(f"{done} of {len(wanted)} calls, {len(failures)} failed, {time.monotonic() - started:.0f} s")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
