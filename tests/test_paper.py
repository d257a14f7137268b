"""The paper's numbers: read a second time from its text, and checked against each other."""

import json
import os
import re
from pathlib import Path

import pytest

from promptswitch_nb.evaluate import COLUMNS
from promptswitch_nb.evaluate import PAPER

ROOT = Path(__file__).resolve().parent.parent
TABLES = json.loads((ROOT / "results" / "paper.json").read_text(encoding="utf-8"))["tables"]
TEST_DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
ROWS = [(table, row) for table, content in TABLES.items() for row in content["rows"]]


def ours(table: str, name: str = "ours (mean pool)") -> dict:
    """Return the numbers of a row."""
    [values] = [row["values"] for number, row in ROWS if number == table and row["row"] == name]
    return values


def test_all_six_tables_are_there():
    counts = {table: len(content["rows"]) for table, content in TABLES.items()}
    assert counts == {"1": 5, "2": 5, "3": 6, "4": 13, "5": 7, "6": 7}


@pytest.mark.parametrize("table, row", ROWS, ids=lambda part: str(part)[:40])
def test_a_meta_sum_is_the_sum_of_its_recalls(table, row):
    values = row["values"]
    recalls = [value for name, value in values.items() if "R@" in name]
    if values.get("Meta Sum") is not None:
        assert sum(recalls) == pytest.approx(values["Meta Sum"], abs=0.11)
    for side in ("t2v", "v2t"):
        rising = [values.get(f"{side}/R@{k}") for k in (1, 5, 10)]
        known = [value for value in rising if value is not None]
        assert known == sorted(known)


def test_the_tables_agree_where_they_repeat_a_row():
    final = ours("1", "+ Captioning Loss")
    assert final.items() <= ours("4").items()
    assert ours("1", "+ Temporal Transformer") == ours("2", "Temporal Transformer")
    assert ours("1", "+ Prompt Aggregation") == ours("2", "Prompt Switch & Aggregation")
    for name in ("ours (mean pool)", "ours (X-Pool)", "X-Pool", "TS2-Net*"):
        third, fourth = ours("3", name), ours("4", name)
        assert {k: v for k, v in third.items() if "R@" in k}.items() <= fourth.items()


def test_evaluation_sets_the_same_numbers_beside_its_own():
    for table, dataset in {"4": "msrvtt", "5": "msvd", "6": "lsmdc"}.items():
        for name, values in PAPER[dataset].items():
            row = {
                "Prompt Switch": "ours (mean pool)",
                "TS2-Net (mean pool)": "TS2-Net* (mean pool)",
            }
            assert tuple(ours(table, row.get(name, name))[c] for c in COLUMNS) == values, name


@pytest.mark.skipif(not TEST_DATA, reason="needs the paper's text")
def test_a_second_reading_gives_the_same_numbers():
    texts = [path.read_text(encoding="utf-8") for path in Path(TEST_DATA, "paper").glob("*.txt")]
    [text] = [text for text in texts if "Table 6:" in text]
    checked = 0
    for table, content in TABLES.items():
        end = text.index(f"Table {table}:")
        block = text[text.rindex("\nMethod", 0, end) : end]
        read = []
        for line in block.splitlines():
            name, *cells = [cell.strip() for cell in line.split("\t")]
            numbers = [numbers_of(cell) for cell in cells if cell]
            if numbers and all(number is not None for number in numbers):
                read.append((plain(name), sum(numbers, [])))
        if table == "3":  # text to video, then video to text, each with the costs
            half = len(read) // 2
            assert [name for name, _ in read[:half]] == [name for name, _ in read[half:]]
            pairs = zip(read[:half], read[half:])
            read = [(name, one[:3] + two[:3] + one[3:]) for (name, one), (_, two) in pairs]
        expected = [(row["row"], [*row["values"].values()]) for row in content["rows"]]
        assert read == expected, f"Table {table}"
        checked += sum(len(values) for _, values in read)
    assert checked == sum(len(row["values"]) for _, row in ROWS)


def plain(name: str) -> str:
    """Take references and daggers out of the name of a row."""
    name = re.sub(r"\[\d+\]|\[†\]|†", "", name)
    return re.sub(r"\s+", " ", name).replace(" )", ")").strip()


def numbers_of(cell: str) -> list | None:
    """Read a cell: a number, a dash, a number with its gain, or memory and time."""
    if cell == "-":
        return [None]
    cost = re.fullmatch(r"([\d.]+)([GM]) / ([\d.]+)(m?s)", cell)
    if cost:
        factors = dict(G=1000, M=1, s=1000, ms=1)
        return [float(cost[1]) * factors[cost[2]], float(cost[3]) * factors[cost[4]]]
    number = re.fullmatch(r"([\d.]+)(?: \(\+[\d.]+\))?", cell)
    return [float(number[1])] if number else None
