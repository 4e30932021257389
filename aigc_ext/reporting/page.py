"""The report of a run: one self-contained HTML file, without scripts."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import safetensors
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from aigc_ext import _files
from aigc_ext._runs import find_run, known_runs
from aigc_ext._safetensors import open_safetensors
from aigc_ext.reporting.chart import Point, line_chart, number
from aigc_ext.training.checkpoint import STATE_FILE, list_checkpoints
from aigc_ext.training.run import CONFIG_FILE, METRICS_FILE, STATS_FILE, RunError, StatsLog, is_number
from aigc_ext.version import __version__

ROBUSTNESS_FILE = "robustness.json"
"""In a run: the result of `aigc-ext robust`, by network."""
_PREVIEW = re.compile(r"([a-z]+)(\d{6,})(?:-(\d{3}))?\.(png|wav|txt)")
_HEADINGS = {"fakes": "Samples"}
_MAX_GRIDS = 24
_MAX_HEARD = 3  # recordings, or texts
_MAX_TEXT = 20_000  # characters
_MAX_IMAGE_BYTES = 1 << 19
_THUMBNAIL = 720  # pixels
_MAX_TABLE_ROWS = 100
_LARGEST = 1e300  # that can be drawn: the range of an axis must be finite too

# Title, the columns with their names, and the minimum range of the axis.
_TRAINING = (
    ("Losses", {"loss_d": "discriminator", "loss_g": "generator"}, None),
    ("The discriminator's scores", {"d_real": "D(x)", "d_fake": "D(G(z))"}, None),
    ("Share it judges right", {"acc_real": "real", "acc_fake": "generated"}, (0.0, 1.0)),
    ("Variety of its samples", {"variety": "relative to the data's"}, (0.0, 1.0)),
    ("Gradient penalties", {"r1": "R1", "r2": "R2"}, None),
    ("Path length", {"path_length": "path length"}, None),
    ("Probability of augmentation", {"augment_p": "p"}, (0.0, 1.0)),
    ("Blur of what D sees", {"blur_sigma": "sigma, pixels"}, None),
    ("Speed", {"img_per_sec": "images per second"}, None),
    ("Memory", {"memory_gb": "peak, GB"}, None),
)
_METRICS = (
    ("Fréchet distance", {"fd": "fd"}, None),
    ("FID", {"fid": "fid"}, None),
    ("Kernel distance", {"kid": "kid"}, None),
    ("Precision and recall", {"precision": "precision", "recall": "recall"}, (0.0, 1.0)),
)
_NO_CURVE = {
    "warnings",
    "step",
    "nimg",
    "epoch",
    "seconds",
    "skipped_d",
    "skipped_g",
    "ema_decay",
    "gamma",
    "lr_g",
}

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 16px 48px;background:#fafaf8;color:#1c1c1a;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:36px 0 12px}
h3{font-size:.95rem;margin:0}
p{margin:0 0 12px}
.note,figcaption,.legend{color:#5c5c57;font-size:.85rem}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px 24px;margin:20px 0 0}
dl.facts dt{color:#5c5c57;font-size:.8rem}
dl.facts dd{margin:0;overflow-wrap:anywhere}
.strip{display:flex;gap:12px;overflow-x:auto;padding-bottom:12px}
.strip figure{margin:0;flex:none}
.texts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:16px}
.texts figure{margin:0}
.texts audio{width:100%}
.texts pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:420px;overflow-y:auto;margin:0;padding:12px;
background:#fff;border:1px solid #e4e4df;border-radius:8px;font-size:.85rem}
.strip img{display:block;height:min(72vw,360px);width:auto;border-radius:4px;background:#e4e4df}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:16px}
.chart{margin:0;padding:12px;background:#fff;border:1px solid #e4e4df;border-radius:8px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:2px 0 4px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.legend b{color:#1c1c1a;font-weight:600}
svg{display:block;width:100%;height:auto}
svg text{font-size:11.5px;fill:#5c5c57}
svg .rule{stroke:#e4e4df;fill:none}
svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.scroll{overflow-x:auto;margin-top:16px}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid #e4e4df;text-align:left;vertical-align:top}
.rows td,.rows th{text-align:right;white-space:nowrap}
.config{columns:2 380px;column-gap:40px}
.config div{display:flex;gap:16px;justify-content:space-between;break-inside:avoid;
border-bottom:1px solid #e4e4df;padding:3px 0;font-size:.88rem}
.config span:last-child{text-align:right;overflow-wrap:anywhere}
.config span:first-child{color:#5c5c57}
"""


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Writes a run's report as one HTML file and returns its path.

    The page has the run's state and model, its sample grids over time, the curves of `stats.jsonl` and
    `metrics.jsonl`, and its config. Each further numeric column of the two files gets its own curve. The
    report of a run that has not written anything yet says so.

    Args:
        run_dir: a run, `latest` for the newest one in `runs`, or the beginning of its name.
        output: by default `report.html` in the run directory.

    Raises:
        RunError: it is not a run, or one of its files is damaged; the message names it.
        OSError: the output cannot be written.
    """
    run_dir = find_run(run_dir)
    output = run_dir / "report.html" if output is None else Path(output)
    # JSON may have half of a surrogate pair, which is no text.
    _files.replace_file(output, _page(run_dir).encode(errors="backslashreplace"), durable=False)
    return output


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `stats.jsonl` or `metrics.jsonl`, without a last line that is still being written; none
    if the file does not exist.

    Raises RunError, naming file and line, if a line isn't a JSON object with a number `nimg`.
    """
    try:
        return StatsLog(path).rows()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _page(run_dir: Path) -> str:
    if not (run_dir / CONFIG_FILE).is_file():
        raise RunError(f"{run_dir} is no run: it has no {CONFIG_FILE}{known_runs(run_dir)}")
    config = _read_object(run_dir / CONFIG_FILE)
    rows = read_rows(run_dir / STATS_FILE)
    metrics = read_rows(run_dir / METRICS_FILE)
    name = run_dir.resolve().name
    body = [
        f"<h1>{escape(name)}</h1>",
        f"<p class='note'>{escape(_progress(config, rows, _item(run_dir)))}</p>",
        _facts(run_dir, config, rows),
        _warnings(rows),
        *_previews(run_dir),
    ]
    item = _item(run_dir)
    if metrics:
        body += ["<h2>Metrics</h2>", _charts(metrics, _METRICS, item), _table(metrics)]
    body.append(_robustness(run_dir / ROBUSTNESS_FILE))
    body.append("<h2>Training</h2>")
    charts = _charts(rows, [entry for entry in _training_charts(config) if _has(rows, entry[1])], item)
    body.append(charts if rows else "<p>No figures have been written yet.</p>")
    body += ["<h2>Config</h2>", _config(config)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f'\n<p class="note" style="margin-top:36px">Written by aigc_ext {escape(__version__)}. The samples '
        "are AI-generated.</p>\n</body></html>\n"
    )


def _training_charts(config: Mapping[str, Any]) -> list[tuple[str, dict[str, str], Any]]:
    """`_TRAINING`, with D's scores as probabilities if the loss defines them so
    (`ops.gan_loss.LossStats`)."""
    loss = config.get("loss")
    if not isinstance(loss, dict) or loss.get("kind") not in ("logistic", "minimax"):
        return list(_TRAINING)
    belief = "The discriminator's belief"
    return [
        (belief, columns, (0.0, 1.0)) if "d_real" in columns else (title, columns, span)
        for title, columns, span in _TRAINING
    ]


def _item(run_dir: Path) -> str:
    """What the run learns from: image, recording or text."""
    checkpoints = list_checkpoints(run_dir)
    data = _read_object(checkpoints[0] / STATE_FILE).get("data") if checkpoints else None
    return str(data.get("item", "image")) if isinstance(data, dict) else "image"


def _progress(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], item: str) -> str:
    total = config.get("kimg")
    goal = "" if total is None or not is_number(total) else f" of {number(total)}"
    if not rows:
        return f"No step has been reported yet: 0{goal} thousand {item}s"
    row = rows[-1]
    text = f"{number(row['nimg'] / 1000)}{goal} thousand {item}s"
    if is_number(row.get("step")):
        text += f", {number(row['step'])} steps"
    if is_number(row.get("seconds")):
        text += f", {_duration(row['seconds'])} of training"
    skipped = {key.removeprefix("skipped_"): row[key] for key in row if key.startswith("skipped_")}
    if any(is_number(count) and count for count in skipped.values()):
        names = {"d": "discriminator", "g": "generator"}
        counts = (f"{count} {names.get(key, key)}" for key, count in skipped.items())
        text += f"; skipped as not finite: {' and '.join(counts)} steps"
    return text


def _facts(run_dir: Path, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    facts: dict[str, Any] = {"preset": config.get("preset"), "seed": config.get("seed")}
    checkpoints = list_checkpoints(run_dir)
    if checkpoints:
        state = _read_object(checkpoints[0] / STATE_FILE)
        data = state.get("data")
        if isinstance(data, dict) and isinstance(data.get("shape"), list):
            shape = "x".join(map(str, data["shape"]))
            classes = f", {data.get('num_classes')} classes" if data.get("num_classes") else ""
            facts["data"] = (
                f"{data.get('name')}: {data.get('images')} {data.get('item', 'image')}s {shape}{classes}"
            )
        facts["newest checkpoint"] = f"{checkpoints[0].name} ({len(checkpoints)} on disk)"
        facts["trained on"] = f"{state.get('device')}, {state.get('threads')} CPU threads"
        facts["versions"] = f"aigc_ext {state.get('aigc_ext')}, torch {state.get('torch')}"
    weights = run_dir / "model" / "model.safetensors"
    if weights.is_file():
        model = _read_object(run_dir / "model" / "config.json")
        facts["model"] = f"{model.get('family')}, {number(_count_weights(weights))} weights"
        facts["SHA-256 of its weights"] = _files.sha256_file(weights)[:16] + "…"
    else:
        facts["model"] = "no model has been written yet"
    if metrics := read_rows(run_dir / METRICS_FILE):
        for key in ("fid", "fd", "kid", "rfd"):
            known = [row for row in metrics if is_number(row.get(key))]
            if known:
                best = min(known, key=lambda row: row[key])
                facts[f"best {key}"] = f"{number(best[key])} at {number(best['nimg'] / 1000)} kimg"
    shown = (
        f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in facts.items()
        if value is not None
    )
    return f'<dl class="facts">{"".join(shown)}</dl>'


def _warnings(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the run warned of, if anything."""
    items = (
        f"<li>At {number(row['nimg'] / 1000)} kimg: {escape(text)}</li>"
        for row in rows
        for text in row.get("warnings", {}).values()
    )
    found = "".join(items)
    return f'<h2>Warnings</h2><ul class="warnings">{found}</ul>' if found else ""


def _has(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
    """A chart that is empty is shown only of a run that could have filled it."""
    return not rows or any(column in row for row in rows for column in columns)


def _previews(run_dir: Path) -> Iterator[str]:
    """The run's samples: pictures over time, the newest recordings and texts."""
    found: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in sorted(run_dir.iterdir()):
        if match := _PREVIEW.fullmatch(path.name):
            name, kimg, rest, suffix = match.groups()
            found.setdefault((name, suffix), []).append((int(kimg) * 1000 + int(rest or 0), path))
    for name, suffix in found or [("fakes", "png")]:
        of_one = sorted(found.get((name, suffix), []))
        yield f"<h2>{escape(_HEADINGS.get(name, name.capitalize()))}</h2>"
        yield _strip(run_dir, name, of_one) if suffix == "png" else _newest(suffix, of_one)


def _newest(suffix: str, previews: Sequence[tuple[int, Path]]) -> str:
    figures = []
    for nimg, path in reversed(previews[-_MAX_HEARD:]):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        if suffix == "wav":
            encoded = base64.b64encode(data).decode()
            shown = f'<audio controls src="data:audio/wav;base64,{encoded}"></audio>'
        else:
            shown = f"<pre>{escape(data.decode(errors='replace')[:_MAX_TEXT])}</pre>"
        figures.append(f"<figure>{shown}<figcaption>{number(nimg / 1000)} kimg</figcaption></figure>")
    return f'<div class="texts">{"".join(figures)}</div>'


def _strip(run_dir: Path, name: str, grids: Sequence[tuple[int, Path]]) -> str:
    """The grids side by side: the real images, then the model's, from untrained to newest."""
    chosen = grids
    if len(grids) > _MAX_GRIDS:
        last = len(grids) - 1
        chosen = [grids[round(i * last / (_MAX_GRIDS - 1))] for i in range(_MAX_GRIDS)]
    named = [("real images", run_dir / "reals.png"), ("before training", run_dir / f"{name}_init.png")]
    named += [(f"{number(nimg / 1000)} kimg", path) for nimg, path in chosen]
    figures = [
        f'<figure><img src="{_embed(path)}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for text, path in named
        if path.is_file()
    ]
    if not figures:
        return "<p>No sample grids have been written yet.</p>"
    note = ""
    if len(chosen) < len(grids):
        note = f'<p class="note">{len(chosen)} of {len(grids)} grids, evenly chosen.</p>'
    return f'{note}<div class="strip" tabindex="0">{"".join(figures)}</div>'


def _charts(
    rows: Sequence[Mapping[str, Any]], known: Sequence[tuple[str, dict[str, str], Any]], item: str
) -> str:
    """The known charts, and one for each further numeric column."""
    groups = list(known)
    named = {column for _, columns, _ in known for column in columns} | _NO_CURVE
    others = dict.fromkeys(column for row in rows for column in row if column not in named)
    groups += [(column, {column: column}, None) for column in others]
    charts = (
        line_chart(
            title,
            [(name, _points(rows, column)) for column, name in columns.items()],
            x_label=f"thousands of {item}s",
            y_range=y_range,
        )
        for title, columns, y_range in groups
    )
    return f'<div class="charts">{"".join(charts)}</div>'


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> list[Point]:
    return [
        (row["nimg"] / 1000, float(row[column]))
        for row in rows
        if is_number(row.get(column)) and abs(row[column]) <= _LARGEST
    ]


def _robustness(path: Path) -> str:
    """What `aigc-ext robust` found, if it was called."""
    if not path.exists():
        return ""
    charts = []
    for name, found in _read_object(path).items():
        try:
            clean = (0.0, float(found["clean"]))
            series = [
                (attack, [clean, *zip(map(float, found["epsilons"]), map(float, found[attack]), strict=True)])
                for attack in ("random", "fgsm", "pgd")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not what aigc-ext robust writes: {error!r} in {name}") from error
        charts.append(line_chart(f"The {name} under attack", series, x_label="epsilon", y_range=(0.0, 1.0)))
    note = "Share that it still gets right after changes of each pixel by at most epsilon."
    return f'<h2>Robustness</h2><p class="note">{note}</p><div class="charts">{"".join(charts)}</div>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row if column not in ("nimg", "step")))
    head = "".join(f"<th>{escape(column)}</th>" for column in ("kimg", *columns))
    lines = []
    for row in reversed(rows[-_MAX_TABLE_ROWS:]):
        cells = [row["nimg"] / 1000, *(row.get(column) for column in columns)]
        shown = ("" if c is None else number(c) if is_number(c) else str(c) for c in cells)
        lines.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in shown) + "</tr>")
    note = ""
    if len(rows) > _MAX_TABLE_ROWS:
        note = f'<p class="note">The newest {_MAX_TABLE_ROWS} of {len(rows)} rows.</p>'
    return f'<div class="scroll">{note}<table class="rows"><tr>{head}</tr>{"".join(lines)}</table></div>'


def _config(config: Mapping[str, Any]) -> str:
    lines = []
    for key, value in _flatten(config):
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"<div><span>{escape(key)}</span><span>{escape(text)}</span></div>")
    return f'<div class="config">{"".join(lines)}</div>'


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _embed(path: Path) -> str:
    """A PNG as a data URL, with its text chunks, which have its provenance; large ones are scaled down."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            assert isinstance(image, PngImageFile)
            image.load()
            if len(data) > _MAX_IMAGE_BYTES and max(image.size) > _THUMBNAIL:
                info = PngInfo()
                for key, text in image.text.items():
                    info.add_itxt(key, text)
                image.thumbnail((_THUMBNAIL, _THUMBNAIL))
                buffer = io.BytesIO()
                image.save(buffer, format="PNG", pnginfo=info)
                data = buffer.getvalue()
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RunError(f"{path} cannot be read as a PNG: {error}") from error
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = _files.parse_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, but must hold a JSON object")
    return content


def _count_weights(weights: Path) -> int:
    try:
        with open_safetensors(weights) as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{weights} cannot be read: {error}") from error


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
