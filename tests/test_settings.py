"""Settings that are wrong are refused in one sentence: values, files and options."""

from typing import Literal

import pytest
from pydantic import PositiveInt

from promptswitch_nb.settings import ConfigError
from promptswitch_nb.settings import Settings
from promptswitch_nb.settings import read_arguments
from promptswitch_nb.settings import required
from promptswitch_nb.settings import settings


@settings
class Walk(Settings):
    """Say how to walk."""

    pace: Literal["slow", "fast"] = "slow"  # how fast
    steps: PositiveInt = 10  # how many
    left: bool = True  # which foot goes first
    where: str = required()  # a place
    shoes: str | dict[str, str] = "boots"  # one word, or {side: WORD}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=True), "steps is True: input should not be true or false."),
        (dict(left="perhaps"), "left is 'perhaps': input should be a valid boolean"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(ConfigError) as error:
        Walk(where="a", **change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", "is no list of settings"),
        ("- pace: fast", "is no list of settings"),
        ("# nothing yet", "is empty: write one `name: value` a line."),
        ("pace: fast\n\twhere: park", "cannot be read (line 2, column 1: "),
        ("pace: {a: [}", "cannot be read (line 1, column 12: "),
        ("pace: fast\nsteps: 3\npace: slow", "cannot be read (pace stands twice)"),
        ("shoes: {left: clog, left: boot}", "cannot be read (left stands twice)"),
        ("where: 2024-13-45", "walk.yaml cannot be read ("),
        ("where: \x07", "walk.yaml cannot be read ("),
    ],
)
def test_a_wrong_file_is_named_with_its_place(text, message, tmp_path):
    file = tmp_path / "walk.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        Walk.from_yaml(file)
    assert message in str(error.value)


def test_a_file_is_there_and_in_utf8(tmp_path):
    file = tmp_path / "walk.yaml"
    with pytest.raises(ConfigError, match="walk.yaml cannot be read"):
        Walk.from_yaml(file)
    file.write_bytes("where: café".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not in UTF-8: save it as UTF-8."):
        Walk.from_yaml(file)
    file.write_bytes("where: café".encode("utf-8-sig"))  # Windows' editors put a mark first
    assert Walk.from_yaml(file).where == "café"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["park", "garden", "--steps", "3", "zoo"], "unrecognized arguments: garden zoo"),
        (["park", "-x"], "unrecognized arguments: -x"),
        (["park", "--", "zoo"], "unrecognized arguments: zoo"),
        (["park", "--shoes", "{a: [}"], "'{a: [}' is no YAML (line 1, column 6: "),
        (["--shoes", "{left: clog, left: boot}"], "(left stands twice)"),
    ],
)
def test_options_that_the_parser_refuses(options, message, capsys):
    with pytest.raises(SystemExit):
        read_arguments(Walk, options, prog="walk", positional="where")
    assert message in capsys.readouterr().err
