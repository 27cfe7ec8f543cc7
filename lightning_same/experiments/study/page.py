"""Markdown as one page of HTML that needs no other file."""

import base64
import html
import re
from collections.abc import Mapping

from markdown_it import MarkdownIt

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 68rem; margin: 0 auto; padding: 1rem; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }}
p, li {{ max-width: 46rem; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }}
th {{ border-bottom: 2px solid #999; text-align: left; }}
td:first-child, th:first-child {{ position: sticky; left: 0; background: #fff; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem;
  max-width: none; }}
.pictures img {{ width: 100%; max-width: 34rem; height: auto; }}
code {{ background: #f3f3f3; padding: 0 .2em; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(text: str, title: str, images: Mapping[str, bytes]) -> str:
    """A page with everything in it, for wide and for narrow screens.

    Args:
        text: Markdown.
        title: of the window.
        images: the SVG pictures that the text refers to, by their addresses there.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for name, svg in images.items():
        body = body.replace(f'src="{name}"', f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"')
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<p>(?=<img)", '<p class="pictures">', body)
    return PAGE.format(title=html.escape(title), body=body)
