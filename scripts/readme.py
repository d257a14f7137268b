"""Make README.md from nbs/index.ipynb; with --check, only tell whether it is up to date."""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
HEADER = "<!-- Made from nbs/index.ipynb by `make prepare`: edit the notebook. -->\n\n"


def visible(cell) -> bool:
    """Tell whether a reader of the README should see `cell`."""
    return cell.source.strip() != "" and re.search(r"^#\|\s*hide\b", cell.source, re.M) is None


def relative_to_root(match: re.Match) -> str:
    """Rewrite a Markdown link that is relative to nbs/ as one that is relative to the root."""
    target = match[1]
    if re.match(r"[a-z]+:|#|/", target):
        return match[0]
    return f"]({posixpath.normpath(posixpath.join('nbs', target))})"


def make_readme() -> str:
    """Return the text of README.md."""
    nb = nbformat.read(INDEX, as_version=4)
    nb.metadata["language_info"] = {"name": "python"}  # so that the fences say `python`
    nb.cells = [cell for cell in nb.cells if visible(cell)]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([^)\s]+)\)", relative_to_root, cell.source)
        else:
            shown = (
                re.search(r"^#\|\s*echo:\s*false", cell.source, re.M) is None
            )  # otherwise its output alone
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M) if shown else ""
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"```python\s*```\n", "", text)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return HEADER + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> None:
    text = make_readme()
    if "--check" not in sys.argv:
        README.write_text(text, encoding="utf-8")
    elif not README.exists() or README.read_text(encoding="utf-8") != text:
        sys.exit("README.md differs from nbs/index.ipynb: run `make prepare`.")


if __name__ == "__main__":
    main()
