"""Which key of a study ``--set`` changes."""

import pytest

from experiments.config.overrides import override
from experiments.errors import UserError


def tree():
    return {
        "arms": [{"name": name} for name in ("L2", "decay 0.3", "it's", "a=b", 'say "x.y"', """a.\\b's "c\"""")],
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
        (r"""arms."a.\\b's \"c\"".x=1""", 5, {"x": 1}),
        (r"""arms."decay\u00200\u002e3".x=1""", 1, {"x": 1}),
        ("arms.L2.x = a word ", 0, {"x": "a word"}),
        ("arms.L2.x=it's", 0, {"x": "it's"}),
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


@pytest.mark.parametrize(
    "text", ['arms."L2.x=1', "arms.'L2.x=1", 'arms."L2"x.y=1', r'arms."\q".x=1', r'arms."\ud800".x=1', "''a.b=1"]
)
def test_quotes_in_a_key_that_do_not_match_are_told(text):
    with pytest.raises(UserError, match=r"^--set: the quotes in the key do not match, got "):
        override(tree(), text)


@pytest.mark.parametrize("value", ['"x', "'x", '"x"y', r'"\ud800"', "'"])
def test_quotes_around_a_value_that_do_not_match_are_told(value):
    with pytest.raises(
        UserError, match=r"^--set train\.x: the quotes around the value must match, as in TOML, got ['\"]"
    ):
        override(tree(), f"train.x={value}")


def test_arms_whose_names_are_no_text_have_no_key():
    with pytest.raises(UserError, match=r"has the name 'L2': its names are 'L1'$"):
        override({"arms": [{"name": [1]}, {"name": "L1"}]}, "arms.L2.x=1")


@pytest.mark.parametrize("name", ["a.b", "a.'b", """a.'b\"""", r"a.\b", 'a."b"', "a.\nb", " a"])
def test_the_name_in_the_hint_is_one_that_works(name):
    with pytest.raises(UserError, match="quote one") as error:
        override({"arms": [{"name": name}]}, "arms.L9.x=1")
    tree = {"arms": [{"name": name}]}
    override(tree, f"{str(error.value).split('as in ')[1].removesuffix('KEY')}x=1")
    assert tree == {"arms": [{"name": name, "x": 1}]}


def test_a_name_that_must_be_quoted_is_told():
    with pytest.raises(UserError, match=r"^--set arms\.decay 0\.3\.x: no table in arms has the name 'decay 0':"):
        override(tree(), "arms.decay 0.3.x=1")
    with pytest.raises(UserError, match=r"; quote one with a dot, as in arms\.'decay 0\.3'\.KEY$"):
        override(tree(), "arms.L9.x=1")
    with pytest.raises(UserError, match=r"its names are 'L1'$"):
        override({"arms": [{"name": "L1"}]}, "arms.L9.x=1")
