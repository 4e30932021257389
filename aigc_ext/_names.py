"""The names from which options choose: here, without torch, because the command line's help lists them."""

PRESETS = ("mlp", "dcgan", "sngan", "stylegan2", "stylegan3-t", "stylegan3-r", "r3gan")
TRANSFORMS = ("center-crop", "center-crop-wide", "letterbox")
METRICS = ("fd", "kid", "pr", "fid", "coverage")
NOISE_MODES = ("const", "random", "none")
CURVES = ("cubic", "linear")
EXPORT_FORMATS = ("pt2", "onnx")
DEFAULT_PRODUCER = "aigc_ext"
