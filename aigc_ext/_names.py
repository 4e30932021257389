"""The names from which options choose: here, without torch, because the command line's help lists them."""

TASKS = {
    "gan": ("mlp", "dcgan", "sngan", "stylegan2", "stylegan3-t", "stylegan3-r", "r3gan"),
    "adversarial": ("vae", "vqgan", "vocoder"),
    "likelihood": ("prior", "textgen", "wavenet"),
}
"""The presets of each task."""
PRESETS = tuple(preset for presets in TASKS.values() for preset in presets)
TRANSFORMS = ("center-crop", "center-crop-wide", "letterbox")
METRICS = ("fd", "kid", "pr", "fid", "coverage", "memorised")
RECONSTRUCTION_METRICS = ("rfd",)
NOISE_MODES = ("const", "random", "none")
CURVES = ("cubic", "linear")
EXPORT_FORMATS = ("pt2", "onnx")
WHITE = 65535  # of 16-bit grey
DEFAULT_PRODUCER = "aigc_ext"
