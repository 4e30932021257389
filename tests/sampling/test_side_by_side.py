"""Two samplers in one process, and a process made by fork: the bits of each alone."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from aigc_ext.models import build_generator
from aigc_ext.sampling import Sampler

SEEDS = range(12)
CONFIGS = [
    {"family": "mlp", "image_shape": [1, 8, 8], "z_dim": 8, "hidden": [16, 16]},
    {"family": "dcgan", "image_shape": [3, 16, 16], "z_dim": 8, "channels": 4, "num_classes": 3},
    {"family": "stylegan2", "image_shape": [3, 16, 16], "z_dim": 8, "w_dim": 8, "channel_max": 8},
]


def make(config) -> Sampler:
    torch.manual_seed(0)
    return Sampler(build_generator(config).eval())


def images(sampler: Sampler) -> np.ndarray:
    return np.concatenate([sampler.sample([seed]) for seed in SEEDS])


def test_samplers_in_threads():
    samplers = [make(config) for config in CONFIGS]
    expected = [images(sampler) for sampler in samplers]
    for _ in range(3):
        with ThreadPoolExecutor(len(samplers)) as pool:
            for found, alone in zip(pool.map(images, samplers), expected, strict=True):
                assert np.array_equal(found, alone)


def test_one_sampler_in_several_threads():
    sampler = make(CONFIGS[2])
    expected = images(sampler)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(images, [sampler] * 4):
            assert np.array_equal(found, expected)


def _send(sampler: Sampler, pipe: Connection) -> None:
    pipe.send_bytes(images(sampler).tobytes())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["family"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process(config):
    """After the parent has used the ops."""
    if torch.get_num_threads() > 1:
        pytest.skip("the threads of OpenMP, which PyTorch uses too, are lost in a fork: OMP_NUM_THREADS=1")
    sampler = make(config)
    expected = images(sampler)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(sampler, there))
    process.start()
    assert here.poll(120), "the forked process says nothing"
    found = here.recv_bytes()
    process.join(30)
    assert process.exitcode == 0
    assert found == expected.tobytes()
    assert np.array_equal(images(sampler), expected)
