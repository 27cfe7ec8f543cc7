"""What mkdocs asks while it builds the site: the pages made from the code, and links that leave docs/."""

import posixpath
import re
from pathlib import Path
from typing import Any

import api_pages
import rule_pages
import rule_pictures
import study_tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    rules = [{title: [f"rules/{kind.__name__}.md" for kind in kinds]} for title, kinds in rule_pages.families().items()]
    studies = [f"studies/{path.parent.name}/report.md" for path in sorted(ROOT.glob("docs/studies/*/report.md"))]
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    rest = [path.name for path in sorted(ROOT.glob("docs/*.md")) if path.name not in named]
    places = {"rules/": rules, "studies/": studies, "api/": [f"api/{slug}.md" for slug in api_pages.GROUPS]}
    places["others/"] = rest
    config.nav = _filled(config.nav, places)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures."""
    made: dict[str, str] = {"changelog.md": (ROOT / "CHANGELOG.md").read_text()}
    for kinds in rule_pages.families().values():
        for kind in kinds:
            made[f"rules/{kind.__name__}.md"] = rule_pages.page(kind)
            for theme in rule_pictures.THEMES:
                made[f"rules/pictures/{kind.__name__}-{theme}.svg"] = rule_pictures.svg(kind(), theme)
    made |= {f"api/{slug}.md": api_pages.page(slug) for slug in api_pages.GROUPS}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables; let links to files of the repository that are no pages lead to the repository."""
    for mark, table in {"the table of rules": rule_pages.table, "the best radii": study_tables.best}.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", table())
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri == "changelog.md":
        here = ".."

    def outward(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", here, match[2]))
        file = files.get_file_from_path(posixpath.relpath(target, "docs"))
        shown = file is not None and not file.inclusion.is_excluded()
        if ":" in match[2] or shown or not (ROOT / target).exists():
            return match[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{match[1]}{config.extra['source']}/{kind}/main/{target}{match[3] or ''}{match[4]}"

    return LINK.sub(outward, markdown)


def _filled(nav: Any, places: dict[str, list[Any]]) -> Any:
    """The navigation with the lists in their places."""
    if isinstance(nav, str):
        return places.get(nav, nav)
    if isinstance(nav, dict):
        return {title: _filled(item, places) for title, item in nav.items()}
    filled = [_filled(item, places) for item in nav]
    return [page for item in filled for page in (item if isinstance(item, list) else [item])]
