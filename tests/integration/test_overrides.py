"""Which key of a study ``--set`` changes."""

import pytest

from experiments.config.overrides import override
from experiments.errors import UserError


def tree():
    return {
        "arms": [{"name": name} for name in ("L2", "decay 0.3", "it's", "a=b", 'say "x.y"')],
        "train": {"epochs": 1},
    }


@pytest.mark.parametrize(
    ("text", "arm", "found"),
    [
        ("arms.L2.train.epochs=2", 0, {"train": {"epochs": 2}}),
        ("arms . L2 . x = [1,\n2]", 0, {"x": [1, 2]}),
        ("arms.'decay 0.3'.train.epochs=2", 1, {"train": {"epochs": 2}}),
        ('arms."decay 0.3".x = "a.b=c"', 1, {"x": "a.b=c"}),
        ("arms.it's.x=c=d", 2, {"x": "c=d"}),
        ("arms.'a=b'.x=true", 3, {"x": True}),
        ("""arms.'say "x.y"'.x=1""", 4, {"x": 1}),
        ("""arms.L2.'a.b'.c=1""", 0, {"a.b": {"c": 1}}),
    ],
)
def test_an_arm_is_set_by_its_name_whatever_it_is(text, arm, found):
    changed, expected = tree(), tree()
    override(changed, text)
    expected["arms"][arm] |= found
    assert changed == expected


@pytest.mark.parametrize(
    "text", ["", "train", "=1", ".train=1", "train.=1", "train..epochs=1", "'train.epochs'", " =1"]
)
def test_what_names_no_key_is_told(text):
    changed = tree()
    with pytest.raises(UserError, match=r"^--set: must be key=value, got "):
        override(changed, text)
    assert changed == tree()


def test_a_name_that_must_be_quoted_is_told():
    with pytest.raises(UserError, match=r"^--set arms\.decay 0\.3\.x: no table in arms has the name 'decay 0':"):
        override(tree(), "arms.decay 0.3.x=1")
    with pytest.raises(UserError, match=r"; quote one with a dot, as in arms\.'decay 0\.3'\.KEY$"):
        override(tree(), "arms.L9.x=1")
    with pytest.raises(UserError, match=r"its names are 'L1'$"):
        override({"arms": [{"name": "L1"}]}, "arms.L9.x=1")
