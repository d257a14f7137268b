"""How Sphinx makes the site from the notebooks: `make docs`.

The notebooks are shown as they are committed, never run. What they do not say for themselves
is added here: the contents by chapter, and links from a notebook's name.
"""

import configparser
import json
import re
from collections import Counter
from pathlib import Path

import jupyter_server_mathjax

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
settings = configparser.ConfigParser()
settings.read(ROOT / "settings.ini", encoding="utf-8")
REPOSITORY = settings["DEFAULT"]["git_url"]

project = settings["DEFAULT"]["title"]
copyright = settings["DEFAULT"]["copyright"]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables in outputs, which plain CommonMark lacks
nb_ipywidgets_js = {}  # no scripts from other sites
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as on GitHub: 06_model.ipynb#save-load-build

# MathJax 2.7, served with the site, without the parts that no page loads.
MATHJAX = [str(Path(jupyter_server_mathjax.__file__).parent / "static")]
exclude_patterns += ["jax/output/SVG", "extensions/a11y"]
myst_update_mathjax = False
mathjax_path = "MathJax.js"
mathjax2_config = {
    "config": ["TeX-AMS-MML_HTMLorMML-full.js", "Safe.js"],
    "messageStyle": "none",
    "showMathMenu": False,
    "tex2jax": {"ignoreClass": "article-container|sidebar", "processClass": "math"},
    "HTML-CSS": {"availableFonts": [], "imageFont": None, "webFont": "STIX-Web"},
}

html_theme = "furo"
html_title = project
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_static_path = ["site.css", *MATHJAX]
html_css_files = ["site.css"]
html_use_index = html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "top_of_page_buttons": ["view"],
    "source_repository": REPOSITORY,
    "source_branch": settings["DEFAULT"]["branch"],
    "source_directory": "nbs/",
}

# The list of notebooks is long: show the part of it where the reader is.
SCROLL = """addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector(".sidebar-scroll");
  const here = list?.querySelector(".current-page");
  if (here) list.scrollTop = here.offsetTop - list.clientHeight / 2;
});"""

# A chapter goes from the notebook named here to the next one named.
CHAPTERS = {
    "00_captions": "The method",
    "05b_frames": "Video and data",
    "05g_released": "The model",
    "06a_formats": "Datasets and metrics",
    "06e_config": "Training",
    "08_evaluate": "Evaluation",
    "08ba_windows": "Search",
    "10_efficiency": "Measured",
    "baselines/00_shared": "Baselines",
}


def title(path: Path) -> str:
    """Return the number of a notebook and its first heading."""
    heading = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return f"{path.stem.split('_')[0]} {heading.splitlines()[0].lstrip('# ')}"


paths = sorted(path for path in NBS.glob("*.ipynb") if path.stem != "index")
paths += sorted(NBS.glob("baselines/*.ipynb"))
NOTEBOOKS = {path.relative_to(NBS).with_suffix("").as_posix(): path for path in paths}
NAMES = {path.stem: name for name, path in NOTEBOOKS.items()}
NUMBERS = Counter(stem.split("_")[0] for stem in NAMES)
NAMES |= {stem.split("_")[0]: NAMES[stem] for stem in NAMES if NUMBERS[stem.split("_")[0]] == 1}


def contents() -> str:
    """Return the table of contents, a tree for each chapter."""
    text = ""
    for name, path in NOTEBOOKS.items():
        if name in CHAPTERS:
            text += "```\n" * bool(text)
            text += f"```{{toctree}}\n:hidden:\n:caption: {CHAPTERS[name]}\n\n"
        text += f"{title(path)} <{name}>\n"
    return text + "```\n"


def linked(match: re.Match) -> str:
    """Return a name in backticks as a link, if a notebook has that name or that number alone."""
    return f"[{match[0]}](/{NAMES[match[1]]}.ipynb)" if match[1] in NAMES else match[0]


def with_links(text: str) -> str:
    """Link the names of notebooks to them, and files outside nbs/ to the repository."""
    text = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({REPOSITORY}/blob/main/\1)", text)
    pattern = re.compile(r"(?<![`\[])`(?:baselines/)?(\w+)`(?![`\]])")
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)  # every second one is code
    parts[::2] = [pattern.sub(linked, part) for part in parts[::2]]
    return "".join(parts)


def prepare(app, name: str, source: list) -> None:
    """Change what is read of a notebook: links, hidden cells, and the contents in the index."""
    nb = json.loads(source[0])
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = with_links(text)
        elif re.search(r"^#\|\s*hide\b", text, re.M):
            cell["metadata"]["tags"] = ["remove-cell"]
        elif re.search(r"^#\|\s*echo:\s*false", text, re.M):
            cell["metadata"]["tags"] = ["remove-input"]
    if name == "index":
        cell = {"cell_type": "markdown", "id": "contents", "metadata": {}, "source": contents()}
        nb["cells"].append(cell)
    source[0] = json.dumps(nb)


def setup(app) -> None:
    app.connect("source-read", prepare)
    app.add_js_file(None, body=SCROLL)
