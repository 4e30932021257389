"""The Transformer is causal, samples what it learned, and one seed gives one item."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aigc_ext.data.text import END, PAD, SEPARATOR
from aigc_ext.models import Transformer, TransformerConfig, build_network
from aigc_ext.models.decoding import CHUNK, Choice
from aigc_ext.nn.split_batch import split_batch

LAYOUTS: dict[str, dict[str, Any]] = {
    "codes": {"vocabulary": 11, "outputs": 11, "length": 9},
    "classes": {"vocabulary": 11, "outputs": 11, "length": 9, "num_classes": 3},
    "captions": {"vocabulary": 20, "outputs": 11, "length": 12, "prefix": 3},
    "text": {"vocabulary": 14, "outputs": 14, "length": 12, "source": 5},
}


def network(layout: str, **options: Any) -> Transformer:
    torch.manual_seed(0)
    small = {"width": 16, "heads": 2, "layers": 2, "hidden": 12}
    made = Transformer(**(small | LAYOUTS[layout] | options)).double().eval()
    with torch.no_grad():  # at first, everything is nearly equally probable
        for parameter in made.parameters():
            parameter.mul_(4)
    return made


def rows(layout: str, count: int) -> tuple[Tensor, Tensor | None]:
    """Items, and their classes."""
    settings, rng = LAYOUTS[layout], torch.Generator().manual_seed(1)
    items = torch.randint(settings["outputs"], (count, settings["length"]), generator=rng)
    if layout == "captions":
        items[:, :3] = items[:, :3] % 9 + 11
    if layout == "text":
        items = items.clamp_min(3)
        for number, row in enumerate(items):
            start = 1 + number % 5
            row[start], row[start + 3], row[start + 4 :] = SEPARATOR, END, PAD
    classes = torch.arange(count) % 3 if layout == "classes" else None
    return items, classes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_with_a_cache_are_the_whole_sequence(layout):
    model = network(layout)
    items, classes = rows(layout, 4)
    whole = model(items, classes)
    cache = model.new_cache(4)
    starts = torch.full((4,), model.settings.num_classes) if classes is None else classes
    for position in range(items.shape[1]):
        before = items[:, position - 1] if position else None
        with torch.no_grad():
            step = model.step(before, starts, position, cache)
        torch.testing.assert_close(step, whole[:, position], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_logit_depends_on_a_later_token(layout):
    model = network(layout)
    items, classes = rows(layout, 2)
    logits: dict[str, Tensor] = {}
    embedded = model.embedding.register_forward_hook(lambda _m, _i, out: logits.setdefault("x", out))
    try:
        out = model(items, classes)
    finally:
        embedded.remove()
    x = logits["x"]  # the tokens 0 to T - 2: what logits 1 to T - 1 may read
    for position in range(items.shape[1]):
        (gradient,) = torch.autograd.grad(out[:, position].square().sum(), x, retain_graph=True)
        assert not gradient[:, position:].any()
        if position:
            assert (gradient[:, :position].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_the_targets(layout):
    model = network(layout)
    items, classes = rows(layout, 5)
    nats, count = model.loss(items, classes)
    expected, targets = 0.0, 0
    probabilities = model(items, classes).log_softmax(-1)
    for number, row in enumerate(items.tolist()):
        first = {"captions": 3, "text": 2 + number % 5}.get(layout, 0)
        last = row.index(END, first) + 1 if layout == "text" else len(row)
        targets += last - first
        expected -= sum(probabilities[number, i, row[i]].item() for i in range(first, last))
    assert count == targets
    assert nats.item() == pytest.approx(expected, rel=1e-12)


def test_sources_count_in_training_only():
    items, _ = rows("text", 6)
    plain, model = network("text").train(), network("text", source_weight=0.25).train()
    nats, count = plain.loss(items)
    logits = plain(items).log_softmax(-1).gather(2, items[..., None])[..., 0]
    before = torch.arange(items.shape[1]) <= (items == SEPARATOR).int().argmax(1)[:, None]
    weighted, weights = model.loss(items)
    assert weighted.item() == pytest.approx(nats.item() - 0.25 * logits[before].sum().item(), rel=1e-10)
    assert weights == count + 0.25 * before.sum()
    assert model.eval().loss(items)[0].item() == pytest.approx(nats.item(), rel=1e-12)


def test_texts_are_computed_in_groups_of_a_length():
    model = network("text").train()
    items, _ = rows("text", 40)
    assert len(model._of_a_length(model._weights(items))) == 4
    whole, count = model.loss(items)
    each = [model.loss(row[None]) for row in items]
    assert whole.item() == pytest.approx(sum(nats.item() for nats, _ in each), rel=1e-12)
    assert count == sum(number for _, number in each)


def test_a_batch_in_parts_draws_the_numbers_of_the_whole():
    for layout in LAYOUTS:
        model = network(layout, dropout=0.3, condition_dropout=0.5).train()
        items, classes = rows(layout, 6)

        def part(rows: slice, model=model, items=items, classes=classes) -> tuple[float, int]:
            torch.manual_seed(4)
            with split_batch(6, rows.start):
                nats, count = model.loss(items[rows], None if classes is None else classes[rows])
            return nats.item(), int(count)

        whole, one, other = part(slice(0, 6)), part(slice(0, 2)), part(slice(2, 6))
        assert one[0] + other[0] == pytest.approx(whole[0], rel=1e-12)
        assert one[1] + other[1] == whole[1]
        model.eval()
        assert part(slice(0, 6))[0] != pytest.approx(whole[0], rel=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seed_alone_is_the_seed_among_others(layout):
    model = network(layout).float()
    seeds = [5, 21, 5, 0, 37, *range(100, 120)]  # several in one place of a chunk, and one twice
    given: list[list[int]] | None = None
    options: dict[str, Any] = {}
    if layout == "text":
        given = [[3 + seed % 9] * (1 + seed % 4) + [SEPARATOR] for seed in seeds]
    if layout == "captions":
        given = [[11 + seed % 9] * 3 for seed in seeds]
    if layout in ("classes", "captions"):
        options["guidance"] = 1.5
    made = model.sample_tokens(seeds, given=given, **options)
    assert made.shape == (len(seeds), LAYOUTS[layout]["length"])
    assert len({tuple(row) for row in made.tolist()}) > 20
    for index, seed in enumerate(seeds):
        alone = None if given is None else [given[index]]
        assert torch.equal(model.sample_tokens([seed], given=alone, **options)[0], made[index])
    if given is not None:
        assert all(row[: len(start)] == start for row, start in zip(made.tolist(), given, strict=True))
    assert not model.training


def test_samples_have_the_networks_probabilities():
    model = network("classes").float()
    made = model.sample_tokens(range(1000), [1] * 1000)
    expected = model(made[:1, :1], torch.tensor([1])).softmax(-1)[0, 0]
    found = torch.bincount(made[:, 0], minlength=11) / 1000
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / 1000)
    assert expected.max() - expected.min() > 0.05
    first = made[0, 0].item()
    chosen = made[made[:, 0] == first]
    expected = model(chosen[:1, :2], torch.tensor([1])).softmax(-1)[0, 1]
    found = torch.bincount(chosen[:, 1], minlength=11) / len(chosen)
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / len(chosen))


def test_choices_are_limited():
    logits = torch.tensor([[0.5, 0.1, 0.25, 0.15]], dtype=torch.float64).log()
    numbers = torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]

    def chosen(temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> list[float]:
        tokens = Choice(temperature, top_k, top_p)(logits.expand(100, -1), numbers)
        return (torch.bincount(tokens, minlength=4) / 100).tolist()

    assert chosen() == pytest.approx([0.5, 0.1, 0.25, 0.15], abs=0.011)
    assert chosen(temperature=0) == [1, 0, 0, 0]
    assert chosen(top_k=2) == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=0.011)
    assert chosen(top_p=0.49) == [1, 0, 0, 0]
    assert chosen(top_p=0.51) == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=0.011)
    assert chosen(top_p=0.89) == pytest.approx([5 / 9, 0, 2.5 / 9, 1.5 / 9], abs=0.011)
    squares = [p * p / (0.25 + 0.01 + 0.0625 + 0.0225) for p in (0.5, 0.1, 0.25, 0.15)]
    assert chosen(temperature=0.5) == pytest.approx(squares, abs=0.011)


def test_guidance_goes_beyond_the_class():
    model = network("classes").float()
    seeds = range(256)
    plain, free, far = (
        torch.bincount(model.sample_tokens(seeds, [1] * 256, guidance=g)[:, 0], minlength=11) / 256
        for g in (1.0, 0.0, 3.0)
    )
    none = model.step(None, torch.tensor([3]), 0, model.new_cache(1)).softmax(-1)[0]
    assert (free - none).abs().max() < 0.1
    assert (far - free).abs().sum() > (plain - free).abs().sum()


def test_texts_end():
    model = network("text").float()
    made = model.sample_tokens(range(64), given=[[5, 6, SEPARATOR]] * 64)
    ended = [row for row in made.tolist() if END in row[3:-1]]
    assert len(ended) > 4
    for row in ended:
        assert set(row[row.index(END, 3) + 1 :]) == {PAD}


def test_classes_come_from_the_seed_and_those_trained():
    model = network("classes").float()
    model.trained_classes = [0, 2]
    found = model._classes_of(range(60), None)
    assert found is not None
    assert sorted(set(found)) == [0, 2]
    assert np.array_equal(model.sample(range(8)), model.sample(range(8), found[:8]))


def test_the_config_makes_the_same_network():
    model = network("captions", condition_dropout=0.2).float()
    other = build_network(model.config)
    assert isinstance(other, Transformer)
    assert other.config == model.config
    other.load_state_dict(model.state_dict())
    items, _ = rows("captions", 3)
    assert torch.equal(other.eval()(items), model(items))
    assert isinstance(model.settings, TransformerConfig)
    assert "vocabulary" not in model.settings.key_names()  # it comes from the data


def test_half_precision_and_gradients():
    model = network("text").float().train()
    items, _ = rows("text", CHUNK)
    exact, count = model.loss(items)
    with torch.autocast("cpu", torch.bfloat16):
        nats, _ = model.loss(items)
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(exact.item(), rel=0.03)
    (nats / count).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18, "heads": 2}, r"width is 18, but must be a multiple of 2 \* heads, 4"),
        ({"outputs": 12}, "outputs is 12, but must be at most vocabulary, 11"),
        ({"prefix": 9}, "prefix is 9, but must be less than length, 9"),
        ({"code_shape": (3, 3)}, "codec and code_shape must be given together"),
        ({"codec": {"family": "dcgan"}, "code_shape": (3, 3)}, "codec.family is 'dcgan', but must be one of"),
        ({"tokenizer": "{}"}, "the tokenizer can't be read"),
    ],
)
def test_impossible_settings(options, message):
    if "tokenizer" in options:
        pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=message):
        network("codes", **options)


@pytest.mark.parametrize(
    ("layout", "call", "message"),
    [
        (
            "codes",
            lambda n: n(torch.zeros(2, 10, dtype=torch.int64)),
            r"items are torch.int64 of shape \(2, 10\)",
        ),
        (
            "codes",
            lambda n: n(torch.full((2, 9), 11)),
            "items have the token 11, but must have tokens from 0 to 10",
        ),
        ("codes", lambda n: n.sample([1], [0]), "classes are given, but this network is unconditional"),
        ("codes", lambda n: n.sample([-1]), "seeds has -1, but must have integers from 0 to"),
        ("codes", lambda n: n.sample([1], guidance=2.0), "guidance is 2.0, but must be 1"),
        ("codes", lambda n: n.sample([1], temperature=math.nan), "temperature is nan, but must be a finite"),
        ("codes", lambda n: n.sample([1], top_k=0), "top_k is 0, but must be an integer of at least 1"),
        ("codes", lambda n: n.sample([1], top_p=0.0), "top_p is 0.0, but must be a number above 0"),
        ("codes", lambda n: n.sample([1], prompts=["a"]), "prompts are given, but this network has no"),
        ("classes", lambda n: n.sample([1], [3]), "classes has 3, but must have integers from 0 to 2"),
        ("classes", lambda n: n.sample([1, 2], [1]), "classes has 1 entries, but must have one per seed, 2"),
        ("classes", lambda n: n(torch.zeros(2, 9, dtype=torch.int64)), "c is None, but this network is cond"),
        ("text", lambda n: n.sample([1]), "prompts is None, but this network needs a source text"),
    ],
)
def test_impossible_calls(layout, call, message):
    with pytest.raises(ValueError, match=message):
        call(network(layout).float())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_elsewhere_than_on_the_cpu_nothing_is_waited_for(layout):
    """A tensor on the device `meta` has no values, so that none can be asked for."""
    model = network(layout, source_weight=0.5, condition_dropout=0.5).to("meta").train()
    items, classes = (each if each is None else each.to("meta") for each in rows(layout, 3))
    assert items is not None
    nats, count = model.loss(items, classes)
    nats.backward()
    assert nats.shape == count.shape == ()
