from __future__ import annotations

import pytest
import torch

from aigc_ext.data import TensorImages
from aigc_ext.training.batches import batches
from tests.training.helpers import tiny_images


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_start_anywhere_and_can_be_closed(workers):
    data = tiny_images(17, classes=3)

    def take(position, count):
        stream = batches(data, 5, 7, mirror=True, position=position, workers=workers)
        taken = [next(stream) for _ in range(count)]
        stream.close()
        return taken

    reference = batches(data, 5, 7, mirror=True, position=0, workers=0)
    everything = [next(reference) for _ in range(12)]
    for start in (0, 1, 7):
        for (images, labels), (expected, expected_labels) in zip(
            take(5 * start, 5), everything[start:], strict=False
        ):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


def test_an_error_while_reading_ahead_arrives():
    class Broken(TensorImages):
        def _read_items(self, index):
            raise OSError("the disk is gone")

    tiny = tiny_images()
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches(Broken("x", tiny._images), 5, 0, mirror=False, position=0, workers=2))
