"""For mkdocs: the pages that are made when the site is built: home (the README), commands, and public names."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not committed."""
    sys.path.insert(0, str(CHECKOUT))  # mkdocs imports this file by its path, without the folder above it
    from docs import write_api, write_cli

    pages = {
        "index.md": home_page(README.read_text(encoding="utf-8")),
        "cli.md": write_cli.page(),
        "api.md": write_api.page(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def home_page(readme: str) -> str:
    """The README with links relative to docs/."""
    return re.sub(r"\]\(docs/", "](", readme)
