from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aigc_ext.data import BatchStream, DatasetError, ImageDataset, TensorImages, split

SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 2**70)


def numbered(count: int) -> TensorImages:
    """Image i is [i, 100 + i] and has label i: it tells which image it is, and whether it is mirrored."""
    pixels = torch.arange(count, dtype=torch.uint8)
    images = torch.stack([pixels, 100 + pixels], dim=1).view(count, 1, 1, 2)
    return TensorImages("numbered", images, torch.arange(count))


def take(stream: BatchStream, batches: int) -> list[tuple[list[list[int]], list[int]]]:
    return [(images.flatten(1).tolist(), labels.tolist()) for images, labels in islice(stream, batches)]


def labels_of(stream: BatchStream, batches: int) -> list[int]:
    return [label for _, labels in take(stream, batches) for label in labels]


@given(count=SIZES, batch=st.integers(1, 40), seed=SEEDS)
def test_each_epoch_has_every_image_once_also_across_its_borders(count: int, batch: int, seed: int) -> None:
    epochs = 4
    labels = labels_of(BatchStream(numbered(count), batch, seed), -(-epochs * count // batch))
    for epoch in range(epochs):
        assert sorted(labels[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(count=SIZES, batch=st.integers(1, 30), seed=SEEDS, before=st.integers(0, 6), mirror=st.booleans())
def test_position_is_the_whole_state(count: int, batch: int, seed: int, before: int, mirror: bool) -> None:
    dataset = numbered(count)
    stream = BatchStream(dataset, batch, seed, mirror)
    take(stream, before)
    assert stream.position == before * batch
    resumed = BatchStream(dataset, batch, seed, mirror)
    resumed.position = stream.position
    expected = take(stream, 4)
    assert take(resumed, 4) == expected
    stream.position = before * batch  # and it can be rewound
    assert take(stream, 4) == expected


@given(count=SIZES, batches=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=SEEDS)
def test_order_and_flips_do_not_depend_on_the_batch(count: int, batches: tuple[int, int], seed: int) -> None:
    rows = []
    for batch in batches:
        stream = BatchStream(numbered(count), batch, seed, mirror=True)
        rows.append([row for images, _ in take(stream, -(-60 // batch)) for row in images][:60])
    assert rows[0] == rows[1]


@given(count=SIZES, share=st.integers(1, 7), world_size=st.integers(1, 4), seed=SEEDS)
def test_ranks_share_the_batch_of_a_single_process(
    count: int, share: int, world_size: int, seed: int
) -> None:
    dataset = numbered(count)
    batch = share * world_size
    whole = take(BatchStream(dataset, batch, seed, mirror=True), 5)
    ranks = [take(BatchStream(dataset, batch, seed, True, rank, world_size), 5) for rank in range(world_size)]
    for step, (images, labels) in enumerate(whole):
        assert [row for rank in ranks for row in rank[step][0]] == images
        assert [label for rank in ranks for label in rank[step][1]] == labels


def test_mirrored_images_keep_their_label_and_are_about_half() -> None:
    mirrored = 0
    for images, labels in take(BatchStream(numbered(100), 50, seed=3, mirror=True), 80):
        for row, label in zip(images, labels, strict=True):
            assert sorted(row) == [label, 100 + label]
            mirrored += row[0] > row[1]
    assert abs(mirrored - 2000) < 5 * 1000**0.5  # 5 standard deviations of 4000 fair coins


def test_without_mirror_nothing_is_flipped_and_the_order_is_the_same() -> None:
    plain = BatchStream(numbered(30), 7, seed=5)
    assert all(row[0] < row[1] for images, _ in take(plain, 20) for row in images)
    plain.position = 0
    assert labels_of(plain, 20) == labels_of(BatchStream(numbered(30), 7, seed=5, mirror=True), 20)


def test_the_dataset_itself_is_never_flipped() -> None:
    dataset = numbered(10)
    take(BatchStream(dataset, 10, seed=0, mirror=True), 5)
    assert (dataset.read(range(10))[0][..., 0] < 100).all()


@given(
    labels=st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=30), batch=st.integers(1, 30), seed=SEEDS
)
def test_a_balanced_epoch_has_as_many_of_each_class(labels: list[int], batch: int, seed: int) -> None:
    count, present, epochs = len(labels), sorted(set(labels)), 3
    data = TensorImages("few", torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.tensor(labels))
    stream = BatchStream(data, batch, seed, balance=True)
    drawn = [stream._draw(epoch * count, (epoch + 1) * count)[0].tolist() for epoch in range(epochs)]
    for items in drawn:
        of_class = [[item for item in items if labels[item] == label] for label in present]
        assert {len(part) for part in of_class} <= {count // len(present), -(-count // len(present))}
        for part, label in zip(of_class, present, strict=True):
            times = [part.count(item) for item in range(count) if labels[item] == label]
            assert max(times) - min(times) <= 1  # none again before all others
    expected = take(stream, 4)
    resumed = BatchStream(data, batch, seed, balance=True)
    resumed.position = 2 * batch
    assert take(resumed, 2) == expected[2:]


def test_balanced_epochs_differ_and_need_labels() -> None:
    data = TensorImages(
        "few", torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.arange(100) // 90
    )  # 90 and 10
    stream = BatchStream(data, 10, seed=0, balance=True)
    epochs = [stream._draw(100 * epoch, 100 * (epoch + 1))[0] for epoch in range(20)]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 20
    assert set(range(100)) == set(torch.cat(epochs).tolist())
    unlabelled = TensorImages("plain", torch.zeros(3, 1, 1, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="balance is True, but plain has no labels"):
        BatchStream(unlabelled, 1, seed=0, balance=True)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    count, epochs = 40, 5
    orders = []
    # 2**32 + 5 has the 32-bit words (5, 1), which a careless mixing confuses with seed 5 in epoch 1.
    for seed in (0, 1, 5, 2**32 + 5):
        labels = labels_of(BatchStream(numbered(count), count, seed), epochs)
        orders += [tuple(labels[i * count : (i + 1) * count]) for i in range(epochs)]
    assert len(set(orders)) == len(orders)


def test_first_image_is_uniform() -> None:
    counts = torch.zeros(5)
    for seed in range(2000):
        counts[labels_of(BatchStream(numbered(5), 1, seed), 1)[0]] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 23.5  # chi-squared with 4 degrees of freedom, p = 1e-4


def test_order_is_the_one_that_old_runs_were_trained_with() -> None:
    # Fixed for good: with another order a checkpoint would resume on other data.
    order = labels_of(BatchStream(numbered(10), 10, seed=7), 2)
    assert order == [1, 8, 6, 5, 9, 2, 4, 7, 0, 3, 1, 4, 9, 3, 2, 6, 5, 8, 0, 7]


def test_a_failed_read_does_not_advance_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = numbered(4)
    stream = BatchStream(dataset, 3, seed=0)

    def fail(indices: torch.Tensor) -> None:
        raise DatasetError("unplugged")

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read", fail)
        with pytest.raises(DatasetError, match="unplugged"):
            next(stream)
    assert stream.position == 0
    assert take(stream, 3) == take(BatchStream(dataset, 3, seed=0), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch is 0, but must be at least 1"),
        ({"seed": -1}, "seed is -1, but must be at least 0"),
        ({"world_size": 0}, "world_size is 0, but must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, but must be from 0 to 1"),
        ({"rank": -1}, "rank is -1, but must be from 0 to 0"),
        ({"batch": 5, "world_size": 2}, "batch is 5, but must be a multiple of world_size, which is 2"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchStream(numbered(3), **{"batch": 2, "seed": 0, **arguments})


def test_a_negative_position_is_named() -> None:
    stream = BatchStream(numbered(3), 2, seed=0)
    with pytest.raises(ValueError, match="position is -1, but must be at least 0"):
        stream.position = -1


def test_a_dataset_is_split_into_disjoint_parts_that_tell_what_they_have() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    data = TensorImages("ten", images, torch.arange(10) % 3)
    training, held = split(data, 0.25, seed=1)
    assert isinstance(training, ImageDataset)
    assert (len(training), len(held), training.num_classes) == (8, 2, 3)
    both = [*training.read(range(8))[0].flatten().tolist(), *held.read(range(2))[0].flatten().tolist()]
    assert sorted(both) == list(range(10))
    pixels, labels = training.read([3, 1])
    assert labels.tolist() == [pixel % 3 for pixel in pixels.flatten().tolist()]
    again, other = split(data, 0.25, seed=1)[0], split(data, 0.25, seed=2)[0]
    assert training.content_hash() == again.content_hash() != other.content_hash()
    whole = data.identity()
    assert training.identity().digests[0] == whole.digests[whole.names.index(training.identity().names[0])]
    assert [len(part) for part in split(data, 0.999)] == [1, 9]
    with pytest.raises(ValueError, match="one image, but must have two"):
        split(TensorImages("one", images[:1]), 0.5)
