"""The site, made by `make docs-site`: README and docs/ as they stand: their links work on a code host and here."""

import shutil
from pathlib import Path
from typing import Any

project = "celery-kit"
extensions = ["myst_parser"]
#: README is the first page; the sources are the whole repository's, so that no link has to be rewritten.
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "app", "bench", "deploy", "reports", "requirements", "site", "tests"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "celery-kit"
html_copy_source = html_show_sourcelink = False
html_show_copyright = html_use_index = False

#: The pages, in the order of the sidebar. One that is missing here is an error: Sphinx warns of pages in no table of contents.
PAGES = {
    "Choose": ["docs/brokers", "docs/clusters", "docs/pools", "docs/matrix", "docs/benchmark", "The soak <docs/reports/soak>"],
    "Use": [
        *("docs/adopt", "docs/your-codebase", "docs/tasks", "docs/settings", "docs/apps", "docs/migration"),
        *("docs/packages", "docs/once", "docs/spool"),
    ],
    "Run": [
        *("docs/delivery", "docs/change-broker", "docs/growing", "docs/groups", "docs/scaling", "docs/json"),
        *("docs/versions", "docs/swarm", "docs/kubernetes"),
        *("docs/monitoring", "docs/shutdown", "docs/failures", "docs/security", "docs/supply"),
        *("docs/reports/faults", "docs/reports/crash", "docs/reports/migrate", "docs/reports/probe", "docs/reports/layers"),
        *("docs/reports/beats", "docs/reports/clusters", "docs/reports/checks", "docs/reports/fuzz", "docs/reports/hostile"),
        *("docs/delivery", "docs/growing", "docs/groups", "docs/scaling", "docs/versions"),
        *("docs/delivery", "docs/capacity", "docs/growing", "docs/groups", "docs/scaling", "docs/versions"),
        *("docs/swarm", "docs/kubernetes"),
        *("docs/monitoring", "docs/shutdown", "docs/failures", "docs/backup", "docs/security", "docs/supply"),
        *("docs/reports/faults", "docs/reports/crash", "docs/reports/probe", "docs/reports/layers", "docs/reports/plan"),
        *("docs/reports/checks", "docs/reports/fuzz", "docs/reports/hostile"),
    ],
    "The kit": [
        *("docs/architecture", "docs/new-broker", "docs/fixes", "docs/reports/upstream"),
        *("CONTRIBUTING", "CHANGELOG", "中文 <README.zh-CN>"),
    ],
}


def _contents(_: Any, page: str, source: list[str]) -> None:
    """README gets the table of contents, which would show as code on a code host."""
    if page == root_doc:
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{chr(10).join(pages)}\n```\n" for caption, pages in PAGES.items()
        )


def _shown(_: Any, tree: Any, page: str) -> None:
    """A page of HTML that is linked as a file is shown, not saved."""
    from docutils import nodes  # of the site's own environment
    from sphinx import addnodes

    for link in list(tree.findall(addnodes.download_reference)):
        if link.get("filename", "").endswith(".html"):
            up = "../" * page.count("/")
            link.replace_self(nodes.reference("", "", *link.children, refuri=f"{up}_downloads/{link['filename']}"))


def _first_page(app: Any, error: Exception | None) -> None:
    if not error:
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Any) -> None:
    app.connect("source-read", _contents)
    app.connect("doctree-resolved", _shown)
    app.connect("build-finished", _first_page)
