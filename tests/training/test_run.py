from __future__ import annotations

from aigc_ext.training.run import next_run_name


def test_run_names(tmp_path):
    assert next_run_name(tmp_path / "none", "mlp", "digits") == "00000-mlp-digits"
    for name in ("00003-mlp-digits", "00010-x", "123456-old", "notes", "7-x", "00020"):
        (tmp_path / name).mkdir()
    assert next_run_name(tmp_path, "mlp", "my data/é", "a b/../c") == "123457-mlp-my_data_-a_b_.._c"
