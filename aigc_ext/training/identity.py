"""Which data a run was trained on. They are recognised by their content, wherever they are."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aigc_ext import _files
from aigc_ext.data import Dataset
from aigc_ext.data.dataset import format_shape
from aigc_ext.data.open import absolute_source, is_there
from aigc_ext.training.checkpoint import Checkpoint, CheckpointError

DATA_FILE = "data.json"
"""In a run directory: name, digest and label of each item, by which a later start can say what differs."""
_SHOWN = 3


def describe(data: Dataset, source: str) -> dict[str, Any]:
    """The JSON values of a checkpoint about its data: what they are, and where they were."""
    found = {
        "name": data.name,
        "item": data.item,
        "images": len(data),  # or other items
        "shape": list(data.item_shape),
        "num_classes": data.num_classes,
        "sha256": data.content_hash(),
    }
    return {**found, "path": absolute_source(source)} if is_there(source) else found


def source_of(checkpoint: Checkpoint, source: str) -> str:
    """The source named in a checkpoint's config, whose relative path was that of another working
    directory."""
    path = checkpoint.state["data"].get("path")
    if path is None or path == absolute_source(source) or not is_there(path):
        return source
    return str(path)


def write_items(run_dir: Path, data: Dataset) -> None:
    """Writes `DATA_FILE`."""
    content = {"sha256": data.content_hash(), **_items(data)}
    text = json.dumps(content, separators=(",", ":"))
    path = run_dir / DATA_FILE
    if not path.exists() or _files.read_bytes(path) != text.encode():
        _files.replace_file(path, text.encode())


def check_data(checkpoint: Checkpoint, data: Dataset, *, cond: bool, may_change: bool) -> str | None:
    """Compares the data of a checkpoint with the ones it is to go on with.

    A checkpoint of an older version has no hash, so only the number of items, their shape and classes are
    compared.

    Returns a remark on what differs, None if nothing does.

    Raises CheckpointError if they differ and must not, or if networks made for the old ones don't fit.
    """
    old = checkpoint.state["data"]
    classes = data.num_classes if cond else 0
    for what, before, now in (
        (f"{data.item}s of the shape", format_shape(old["shape"]), format_shape(data.item_shape)),
        ("classes", old["num_classes"] if cond else 0, classes),
    ):
        if before != now:
            raise CheckpointError(
                checkpoint.path,
                f"its networks are for data with {what} {before}, but {data.name} has {now}; "
                "--init-from starts a new run from its weights",
            )
    if "sha256" in old:
        if old["sha256"] == data.content_hash():
            return None
        differences = _differences(checkpoint, data)
    else:
        new = {"images": len(data), "num_classes": data.num_classes}
        differences = [f"{key} {old[key]}, now {value}" for key, value in new.items() if old[key] != value]
        if not differences:
            return None
    what = ", ".join(differences)
    if not may_change:
        raise CheckpointError(
            checkpoint.path,
            f"the content of its data differs from {data.name}: {what}; --data-changed goes on with it as it "
            "is now, but then the result is not that of an uninterrupted run",
        )
    return (
        f"the data have changed: {what}. From here on the run is not exact: no uninterrupted run has this "
        f"result, and metrics before and after compare with different {data.item}s"
    )


def _items(data: Dataset) -> dict[str, Any]:
    identity = data.identity()
    return {
        "names": identity.names,
        "digests": identity.digests,
        "labels": data.labels.tolist() if data.num_classes else None,
    }


def _differences(checkpoint: Checkpoint, data: Dataset) -> list[str]:
    """What distinguishes the data from those of a checkpoint, in phrases."""
    old, new = _recorded(checkpoint.path.resolve().parents[1] / DATA_FILE), _items(data)
    if old.get("sha256") != checkpoint.state["data"]["sha256"] or not old["digests"] or not new["digests"]:
        before, now = checkpoint.state["data"]["sha256"], data.content_hash()
        return [f"its SHA-256 was {before[:16]}..., and is {now[:16]}... now"]
    return compare_items(old, new, data.item)


def _recorded(path: Path) -> dict[str, Any]:
    """What `write_items` wrote; empty if it cannot be read, without which nothing is lost but words."""
    try:
        found = _files.parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    lists = [found.get(key) for key in ("names", "digests", "labels")] if isinstance(found, dict) else []
    kinds = ((list, str), (list, str), (list, int))
    fits = [
        isinstance(each, kind) and all(isinstance(entry, inner) for entry in each)
        for each, (kind, inner) in zip(lists, kinds, strict=False)
    ]
    whole = len(fits) == 3 and fits[0] and fits[1] and (fits[2] or lists[2] is None)
    if not whole or len({len(each) for each in lists if each}) > 1:
        return {}
    return dict(found)


def compare_items(old: Mapping[str, Any], new: Mapping[str, Any], item: str = "image") -> list[str]:
    """What distinguishes two lists of items, each with names, digests and labels, in phrases."""
    before, after = (_by_name(each) for each in (old, new))
    added, removed = ([n for n in one if n not in other] for one, other in ((after, before), (before, after)))
    # An item with another name is not two other items.
    gone: dict[str, list[str]] = {}
    for name in removed:
        gone.setdefault(before[name][0], []).append(name)
    renamed = {name: gone[after[name][0]].pop(0) for name in added if gone.get(after[name][0])}
    both = [name for name in after if name in before]
    changed = [name for name in both if after[name][0] != before[name][0]]
    relabelled = [name for name in both if name not in changed and after[name][1] != before[name][1]]
    groups = {
        "added": [name for name in added if name not in renamed],
        "removed": [name for name in removed if name not in renamed.values()],
        "changed": changed,
        "with another label": relabelled,
        "renamed": [" -> ".join(_distinct(one, other)) for other, one in renamed.items()],
    }
    phrases = [_phrase(names, what, item) for what, names in groups.items() if names]
    return phrases or [f"the {item}s have another order"]


def _by_name(images: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
    labels = images["labels"] or [None] * len(images["names"])
    return dict(zip(images["names"], zip(images["digests"], labels, strict=True), strict=True))


def _phrase(names: Sequence[str], what: str, item: str) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {item}{'s' * (len(names) > 1)} {what} ({', '.join(shown)}{more})"


def _distinct(one: str, other: str) -> tuple[str, str]:
    """Two names, escaped if they would look alike."""
    alike = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    return (ascii(one), ascii(other)) if alike else (one, other)
