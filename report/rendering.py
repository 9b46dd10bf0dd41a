"""From values to HTML: the templates, with everything escaped that is not ours."""

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """Fill a template of `report/templates`.

    The page's content security policy allows its one script by digest, and nothing else to run or to load.
    """
    loader = PackageLoader("demkd.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = loader.get_source(environment, "sort.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        values,
        script=Markup(script),  # noqa: S704 - a file of ours
        script_digest=f"sha256-{digest}",
    )
