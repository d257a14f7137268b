"""What every notebook owes its reader."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    path
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not re.search(r"/[._]", f"/{path.relative_to(ROOT)}")
)
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|Users|work|opt|usr)/|[A-Z]:\\Users")


def cells(path: Path, kind: str) -> list[dict]:
    """Return a notebook's cells of one kind."""
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def prose(cell: dict) -> str:
    """Return the source of a Markdown cell without its code."""
    text = re.sub(r"^(```|~~~).*?^\1", "", "".join(cell["source"]), flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.S)


def exported(path: Path) -> list[str]:
    """Return the sources of a notebook's exported cells."""
    sources = ["".join(cell["source"]) for cell in cells(path, "code")]
    return [source for source in sources if re.search(r"^#\|\s*export\b", source, re.M)]


@pytest.mark.parametrize("path", sorted((ROOT / "promptswitch_nb").rglob("[!_]*.py")), ids=str)
def test_a_module_is_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_small(self, path):
        assert path.stat().st_size < 300_000

    def test_has_at_most_90_cells(self, path):
        assert len(cells(path, "code")) + len(cells(path, "markdown")) <= 90

    def test_exports_cells_of_at_most_60_lines(self, path):
        for source in exported(path):
            assert len(source.splitlines()) <= 60, source.splitlines()[1]

    def test_names_its_module_in_the_first_code_cell(self, path):
        sources = ["".join(cell["source"]) for cell in cells(path, "code")]
        if exported(path):
            assert re.fullmatch(r"#\| default_exp [\w.]+", sources[0])
        assert not any("default_exp" in source for source in sources[1:])

    def test_writes_tensor(self, path):
        assert not any("torch.Tensor" in "".join(cell["source"]) for cell in cells(path, "code"))

    def test_opens_with_title_and_one_sentence(self, path):
        first = "".join(cells(path, "markdown")[0]["source"])
        assert re.match(r"# .+\n\n> .+", first), (
            "the first cell is `# Title`, an empty line, `> one sentence`"
        )

    def test_holds_outputs(self, path):
        assert not cells(path, "code") or any(cell["outputs"] for cell in cells(path, "code")), (
            "run the notebook and save it"
        )

    def test_outputs_name_no_machine(self, path):
        for cell in cells(path, "code"):
            for output in cell["outputs"]:
                assert output["output_type"] != "error", output.get("evalue")
                assert output.get("name") != "stderr", "".join(output["text"])
                texts = [
                    output.get("text", ""),
                    *(
                        text
                        for mime, text in output.get("data", {}).items()
                        if mime.startswith("text")
                    ),
                ]
                text = "".join("".join(text) for text in texts)
                assert not MACHINE_PATH.search(text), text

    def test_shows_on_github_what_it_shows_here(self, path):
        assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
        for cell in cells(path, "code"):
            for output in cell["outputs"]:
                kinds = set(output.get("data", {}))
                assert kinds <= {"image/png", "image/jpeg", "text/markdown", "text/plain"}, kinds
        for cell in cells(path, "markdown"):
            tags = re.findall(r"</?[a-zA-Z][^>]*>", prose(cell))
            assert not tags, f"GitHub strips much HTML: say {tags} in Markdown"

    def test_links_lead_somewhere(self, path):
        text = "\n".join(prose(cell) for cell in cells(path, "markdown"))
        targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
        broken = [
            target
            for target in targets
            if not re.match(r"https?:", target) and not (path.parent / target).exists()
        ]
        assert not broken


def test_index_links_every_notebook():
    text = "".join(
        "".join(cell["source"]) for cell in cells(ROOT / "nbs" / "index.ipynb", "markdown")
    )
    names = {path.relative_to(ROOT / "nbs").as_posix() for path in NOTEBOOKS} - {"index.ipynb"}
    missing = sorted(name for name in names if f"]({name})" not in text)
    assert not missing, f"the table in nbs/index.ipynb lacks {missing}"


def test_findings_name_sections_that_exist():
    found = cells(ROOT / "nbs" / "14_findings.ipynb", "markdown")
    text = "\n".join("".join(cell["source"]) for cell in found)
    shown = [line for line in text.splitlines() if line.startswith("Shown in ")]
    assert len(shown) == text.count("\n## ")
    for line in shown:
        for target, sections in re.findall(r"\]\((\S+\.ipynb)\)((?:(?:, | and )\*[^*]+\*)*)", line):
            other = cells(ROOT / "nbs" / target, "markdown")
            headings = re.findall(
                r"^#+ (.+)$", "\n".join("".join(cell["source"]) for cell in other), re.M
            )
            for section in re.findall(r"\*([^*]+)\*", sections):
                assert section in headings, (target, section)


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    broken = [
        target
        for target in targets
        if not re.match(r"https?:|#", target) and not (ROOT / target).exists()
    ]
    assert not broken
