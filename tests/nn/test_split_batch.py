from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aigc_ext.nn.split_batch import batch_randn, split_batch, whole_batch


def test_parts_are_rows_of_what_the_whole_batch_draws():
    torch.manual_seed(3)
    whole = [batch_randn(6, 2, 5), batch_randn(6, 1)]
    then = torch.randn(4)
    for start, end in ((0, 1), (1, 6), (6, 6)):
        torch.manual_seed(3)
        with split_batch(6, start):
            part = [batch_randn(end - start, 2, 5), batch_randn(end - start, 1)]
        assert all(torch.equal(a, b[start:end]) for a, b in zip(part, whole, strict=True))
        assert torch.equal(torch.randn(4), then)  # the random numbers go on as after the whole batch


def test_it_does_not_reach_another_thread():
    torch.manual_seed(3)
    alone = batch_randn(2, 5)
    torch.manual_seed(3)
    with ThreadPoolExecutor(1) as pool:
        with split_batch(6, 3):
            in_another = pool.submit(batch_randn, 2, 5).result()
        with split_batch(9, 2):
            assert pool.submit(whole_batch, 2).result() == 2
    assert torch.equal(in_another, alone)


def test_it_ends_also_by_an_exception_and_may_be_nested():
    def broken():
        with split_batch(9, 2):
            with split_batch(4, 3), pytest.raises(ValueError, match="n is 2, but must be at most 1"):
                batch_randn(2)
            assert torch.equal(_drawn(3), torch.randn(9)[2:5])
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert torch.equal(_drawn(12), torch.randn(12))


def _drawn(n):
    """Leaves the random number generator as it was."""
    state = torch.get_rng_state()
    rows = batch_randn(n)
    torch.set_rng_state(state)
    return rows


@pytest.mark.parametrize("start", [-1, 5])
def test_a_part_outside_the_batch_is_refused(start):
    with (
        pytest.raises(ValueError, match=f"start is {start}, but must be from 0 to total, 4"),
        split_batch(4, start),
    ):
        pass
