"""Exports generators and vocoders as programs: torch.export's .pt2, and ONNX."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext import _files, _names
from aigc_ext.losses.spectral import FLOOR
from aigc_ext.models import Vocoder
from aigc_ext.ops import decompose as decomposed_ops
from aigc_ext.version import __version__

FORMATS = _names.EXPORT_FORMATS
RECORD_FILE = "aigc_ext.json"
"""Name of the record in a .pt2's extra files."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class ExportError(RuntimeError):
    """A network that cannot be exported, or whose export gives other results."""


@dataclass(frozen=True)
class Exported:
    """The result of `export_generator`.

    Attributes:
        checked_by: what ran the export to compare it to the network: "torch" or "onnxruntime".
        difference: the largest difference, relative to the largest value.
        ops: the custom ops, `aigc::...`, that a runtime must have; none if decomposed.
    """

    path: Path
    format: str
    checked_by: str
    difference: float
    ops: list[str]


def export_generator(
    generator: Any,
    path: str | Path,
    *,
    format: str | None = None,
    decompose: bool | None = None,
    batch: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes `generator(z)`, with classes `generator(z, c)`, or of a vocoder `vocode(mels)`, in eval mode and
    with its weights, as a program. The file is written atomically, after the program's results have been
    compared to the network's.

    Args:
        generator: on the CPU, with the attributes of `aigc_ext.models` (`z_dim`, `num_classes`), or a
            `models.Vocoder`.
        format: "pt2" for `torch.export.load`, or "onnx" (`pip install aigc_ext[onnx]`), with inputs named z
            and c and output named images, or mels and wave. By default the suffix of `path` decides.
        decompose: True writes plain PyTorch ops, which run without this package. False, the default for pt2,
            keeps its kernels: `import aigc_ext` before loading. ONNX is always decomposed.
        batch: a fixed number of images or waves; None makes it dynamic. That of a spectrogram's frames always
            is.
        provenance: JSON values, stored with this package's version and what inputs and outputs mean: in a
            .pt2 as the extra file `aigc_ext.json`, in ONNX as the metadata `aigc_ext`.

    Raises:
        ValueError: an argument is not valid.
        ModuleNotFoundError: the packages for ONNX are missing.
        ExportError: torch cannot export this generator (because of control flow that depends on values or on
            a dynamic batch size; for ONNX also an unsupported op, such as a convolution with one group per
            image of a dynamic batch), or the program's results differ from the generator's. Generators of
            `aigc_ext.models`, with and without classes, and its vocoder can be exported in both formats.
    """
    path = Path(path)
    format = format or path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, but must be one of {', '.join(FORMATS)}")
    if decompose is None:
        decompose = format == "onnx"
    if format == "onnx" and not decompose:
        raise ValueError("decompose is False, but ONNX has no custom ops of ours: it is always decomposed")
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}, but must be at least 1, or None for any")
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"the format onnx needs the package {' and '.join(missing)}: pip install aigc_ext[onnx]"
            )
    call = _of_vocoder(generator) if isinstance(generator, Vocoder) else _of_generator(generator)
    record = {"version": __version__, **call.record, **(provenance or {})}
    # Without gradients, the ops save nothing for a backward pass, however the program is called.
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    was_training = generator.training
    generator.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            program = _trace(call, batch, decompose)
            difference = _check(call, program.module(), batch, "the exported program")
            ops = _custom_ops(program)
            if decompose and ops:
                raise ExportError(f"{', '.join(ops)} cannot be decomposed")
            checked_by = "torch"
            if format == "pt2":
                buffer = io.BytesIO()
                torch.export.save(program, buffer, extra_files={RECORD_FILE: json.dumps(record)})
                content = buffer.getvalue()
            else:
                content = _onnx(program, call, record)
                if importlib.util.find_spec("onnxruntime") is not None:
                    checked_by = "onnxruntime"
                    difference = _check(call, _onnx_session(content), batch, "the ONNX model")
    finally:
        generator.train(was_training)
        for parameter in trained:
            parameter.requires_grad_()
    _files.replace_file(path, content, durable=False)
    return Exported(path, format, checked_by, difference, ops)


class _Call(NamedTuple):
    """How a program is called, which does what a network does."""

    name: str  # of the network, in messages
    module: nn.Module
    inputs: Callable[[int, int], tuple[Tensor, ...]]  # of so many items of such a length, if they have one
    dynamic: Sequence[Mapping[int, str]]  # the dimensions of each input that may vary
    names: Sequence[str]
    output: str
    record: Mapping[str, Any]


def _of_generator(generator: Any) -> _Call:
    classes = generator.num_classes

    def inputs(batch: int, _: int) -> tuple[Tensor, ...]:
        parameter = next(generator.parameters())
        rng = torch.Generator().manual_seed(batch)
        z = torch.randn(batch, generator.z_dim, generator=rng).to(parameter.dtype)
        return (z, torch.randint(classes, (batch,), generator=rng)) if classes else (z,)

    return _Call(
        *("generator", generator, inputs),
        dynamic=[{0: "batch"}] * (2 if classes else 1),
        names=["z", "c"] if classes else ["z"],
        output="images",
        record={
            "z_dim": generator.z_dim,
            "num_classes": classes,
            "value_range": list(generator.value_range),
        },
    )


class _Vocoding(nn.Module):
    """A vocoder whose `forward` takes mels."""

    def __init__(self, vocoder: Vocoder) -> None:
        super().__init__()
        self.vocoder = vocoder

    def forward(self, mels: Tensor) -> Tensor:
        return self.vocoder.vocode(mels)


def _of_vocoder(vocoder: Vocoder) -> _Call:
    def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(batch)
        mels = torch.randn(batch, vocoder.n_mels, length, generator=rng)
        return (mels.to(next(vocoder.parameters()).dtype),)

    spectrogram = vocoder.spectrogram
    return _Call(
        *("vocoder", _Vocoding(vocoder), inputs),
        dynamic=[{0: "batch", 2: "frames"}],
        names=["mels"],
        output="wave",
        record={
            "sample_rate": vocoder.sample_rate,
            "value_range": list(vocoder.value_range),
            # Of the mels, which are natural logarithms of amplitudes, not less than that of the floor.
            "mels": {"n_mels": vocoder.n_mels, **spectrogram.frames._asdict(), "floor": FLOOR},
        },
    )


def _trace(call: _Call, batch: int | None, decompose: bool) -> torch.export.ExportedProgram:
    inputs = call.inputs(batch or 3, 7)  # 1 would be treated as a constant
    shapes = tuple(
        {
            dimension: torch.export.Dim(name, min=1)
            for dimension, name in each.items()
            if batch is None or name != "batch"
        }
        for each in call.dynamic
    )
    with decomposed_ops() if decompose else nullcontext():
        try:
            return torch.export.export(call.module, inputs, dynamic_shapes=shapes)
        except Exception as error:  # torch's own exceptions, most of them private
            text = str(error).strip() or type(error).__name__
            # torch's advice, of which only the reason is for whoever reads this
            reason = re.sub(
                r"For more information, run with \S+|The error above occurred.*", "", text, flags=re.S
            )
            shown = " ".join(reason.split())[:500]
            name = type(getattr(call.module, "vocoder", call.module)).__name__
            raise ExportError(f"torch cannot export {name}: {shown}") from error


def _check(call: _Call, program: Any, batch: int | None, what: str) -> float:
    """Runs both on inputs other than those of the trace; returns the largest relative difference."""
    largest = 0.0
    for count, length in ((1, 40), (4, 1)) if batch is None else ((batch, 40),):
        inputs = tuple(x.flip(0) for x in call.inputs(count, length))
        expected, got = call.module(*inputs), program(*inputs)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ExportError(
                f"{what} gives {got.dtype} {list(got.shape)}, but the {call.name} {expected.dtype} "
                f"{list(expected.shape)}"
            )
        scale = expected.abs().max().clamp(min=1e-30)
        difference = float((got - expected).abs().max() / scale)
        if not difference <= _TOLERANCE.get(expected.dtype, 0.05):
            raise ExportError(f"{what} differs from the {call.name} by {difference:.2g} of its largest value")
        largest = max(largest, difference)
    return largest


def _custom_ops(program: torch.export.ExportedProgram) -> list[str]:
    return sorted(
        {
            node.target.name()
            for module in program.graph_module.modules()
            if isinstance(module, torch.fx.GraphModule)
            for node in module.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aigc"
        }
    )


def _onnx(program: torch.export.ExportedProgram, call: _Call, record: Mapping[str, Any]) -> bytes:
    import onnx

    inputs = program.example_inputs[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # from within torch
        try:
            made = torch.onnx.export(
                program,
                inputs,
                dynamo=True,
                input_names=list(call.names),
                output_names=[call.output],
                verbose=False,
            )
        except Exception as error:  # several of torch's own exceptions
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            reason = reason.removesuffix(" See the stack trace for more information.").removesuffix(".")
            hint = "; with a fixed batch it may be possible" if program.range_constraints else ""
            raise ExportError(f"torch cannot write this as ONNX: {reason}{hint}") from error
    model = made.model_proto  # type: ignore[union-attr]
    entry = model.metadata_props.add()
    entry.key, entry.value = "aigc_ext", json.dumps(record)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _onnx_session(content: bytes) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
