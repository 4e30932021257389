from __future__ import annotations

import pytest

from aigc_ext._runs import newest_run
from aigc_ext.training.run import next_run_name


def test_run_names(tmp_path):
    assert next_run_name(tmp_path / "none", "mlp", "digits") == "00000-mlp-digits"
    for name in ("00003-mlp-digits", "00010-x", "123456-old", "notes", "7-x", "00020"):
        (tmp_path / name).mkdir()
    assert next_run_name(tmp_path, "mlp", "my data/é", "a b/../c") == "123457-mlp-my_data_é-a_b_.._c"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("我的 数据 é", "我的_数据_é"),
        ("हिन्दी चित्र", "हिन्दी_चित्र"),
        ("e\u0301te\u0301", "été"),
        ("a:b*c?<d>|\0\n", "a_b_c_d_"),
        ("\udcff", "_"),
        ("🙂", "_"),
        ("猫" * 200, "猫" * 26),
    ],
)
def test_names_keep_the_letters_of_all_scripts(tmp_path, data, name):
    made = next_run_name(tmp_path, "mlp", data)
    assert made == f"00000-mlp-{name}"
    (tmp_path / made).mkdir()
    assert next_run_name(tmp_path, "mlp", data) == f"00001-mlp-{name}"
    run = newest_run(tmp_path)
    assert run is not None
    assert run.name == made
