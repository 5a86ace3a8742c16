"""A notebook as one HTML file that opens with no network.

Comes in: an executed notebook. Goes out: HTML with everything inside: no script, style, font or
picture is loaded from anywhere. ``run`` calls this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# nbconvert's page without what it loads from elsewhere (RequireJS, MathJax, mermaid, widgets), all
# of it unneeded here.
_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block data_png scoped -%}
{%- set width = output | get_metadata('width', 'image/png') -%}
{%- set alt = output | get_metadata('alt', 'image/png') or 'figure' -%}
<div class="jp-RenderedImage jp-OutputArea-output"><img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ alt | escape_html }}"{% if width %} width="{{ width }}"{% endif %}></div>
{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 68rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
body.jp-Notebook { --jp-content-font-size1: 16px; --jp-code-font-size: 14px; }
.jp-RenderedHTMLCommon p, .jp-RenderedHTMLCommon li { line-height: 1.55; max-width: 52rem; }
.jp-RenderedHTMLCommon table { font-size: 14px; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-OutputArea-output { overflow-x: auto; }
</style>
{%- endblock -%}
"""

# Pictures before widgets and scripts: a bundle of both shows its static twin.
_KINDS = ["image/png", "image/svg+xml", "image/jpeg", "text/html", "text/markdown", "text/plain"]

_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|track)\b[^>]*?\bsrc\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*?\bhref\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|<object\b[^>]*?\bdata\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|url\(\s*["']?\s*(?:https?:)?//[^)]+\)|@import\s+(?:url\()?["']?\s*(?:https?:)?//[^"';)]+"""
    r"""|\b(?:import|from)\s*\(?\s*["']https?://[^"']+|\.src\s*=\s*["']?(?:https?:)?//[^"';]+""",
    re.IGNORECASE,
)


def offline_html(notebook: Mapping[str, Any]) -> str:
    """The notebook's prose and results as HTML; its code stays in the notebook."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config({"NbConvertBase": {"display_data_priority": _KINDS}})
    exporter = HTMLExporter(config=config, raw_template=_TEMPLATE, embed_images=True)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.exclude_anchor_links = True
    body, _ = exporter.from_notebook_node(notebook)
    return body


def external_loads(html: str) -> list[str]:
    """What a page would fetch from elsewhere when opened; links to click are not loads."""
    return [match[0][:200] for match in _LOADS.finditer(html)]
