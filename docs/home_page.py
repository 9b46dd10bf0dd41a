"""For mkdocs: the README is the site's home, with its links as they are from docs/."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

README = Path(__file__).parents[1] / "README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page."""
    files.append(File.generated(config, "index.md", content=home_page(README.read_text(encoding="utf-8"))))
    return files


def home_page(readme: str) -> str:
    """The README's text, seen from docs/."""
    return re.sub(r"\]\(docs/", "](", readme)
