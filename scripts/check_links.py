"""Check links and pictures of the built site: each must lead to a file of it, or a place in one.

Links to other sites are not followed, but a page that loads anything from one is refused.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from urllib.parse import urlsplit

LOADS = {"script", "img", "source", "video", "iframe"}
LOADED_LINKS = {"stylesheet", "preload", "preconnect", "dns-prefetch", "icon"}


class Page(HTMLParser):
    """Collect where a page links to, what it loads, and the places that one can link to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.places = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.places.update(filter(None, [attrs.get("id"), attrs.get("name")]))
        loads = tag in LOADS or bool(LOADED_LINKS & set((attrs.get("rel") or "").split()))
        target = attrs.get("src") or attrs.get("href")
        if target:
            (self.loads if loads else self.links).append(target)


def faults(site: Path) -> list[str]:
    """Return a sentence for each link that leads nowhere and each load from another site."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"There is no page in {site}: run `make docs`."]
    for path, page in pages.items():
        for target in page.links + page.loads:
            url, name = urlsplit(target), path.relative_to(site)
            if url.scheme or url.netloc:
                if target in page.loads and url.scheme != "data":
                    found.append(f"{name} loads {target}: serve it with the site.")
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not file.is_file():
                found.append(f"{name} links to {target}: there is no such file.")
            elif file in pages and unquote(url.fragment) not in pages[file].places:
                found.append(f"{name} links to {target}: there is no such place on that page.")
    return found


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    found = faults(site)
    print("\n".join(found), end="\n" * bool(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
