"""The device that an argument names."""

from __future__ import annotations

import torch


def usable_device(
    device: str | torch.device, known: str = "one that torch knows, such as 'cpu' or 'cuda:0'"
) -> torch.device:
    """`device`, with a ValueError that names the argument if torch does not know it or has none here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None:
        raise ValueError(f"device is {device!r}, but must be {known}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(device)!r}, but this PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    return found
