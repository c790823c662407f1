"""The look of the page: "basalt and ember", a quiet grey stone with one warm colour for what is alive.

Colours and sizes that Gradio's components read are here, those of our own HTML in css/, and the page's scripts in js/.
The fonts are shipped with Gradio, so the page loads nothing from other hosts. Most of the fonts in 6.31 are subsets
without Latin letters (Lexend, Source Sans 3, IBM Plex Sans at weight 600, ...); those used here are complete.
"""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from llava_demo.ui.panels import MARK

STYLES = (  # later ones win
    *("page", "masthead", "empty", "conversation", "answers", "turns", "box"),
    *("pictures", "lightbox", "panel", "code", "drawer", "phone"),
)
_FOLDER = Path(__file__).parent

# Not in `STYLES`: Gradio 6.31 restricts rules in @media to elements within its container.
_STILL = """<style>@media (prefers-reduced-motion: reduce) { *, ::before, ::after {
animation-duration: 0.01s !important; animation-iteration-count: 1 !important; transition-duration: 0.01s !important;
scroll-behavior: auto !important } }</style>"""

EMBER = gr.themes.Color(
    name="ember",
    c50="#fff4ef",
    c100="#ffe4d8",
    c200="#ffc7ae",
    c300="#ffa07a",
    c400="#f97548",
    c500="#e9501f",
    c600="#cb3c10",
    c700="#a5300e",
    c800="#7f2810",
    c900="#5a1f10",
    c950="#301008",
)
BASALT = gr.themes.Color(
    name="basalt",
    c50="#f6f6f4",
    c100="#eeeeeb",
    c200="#e1e1dc",
    c300="#c8c8c2",
    c400="#9a9a94",
    c500="#6f6f6a",
    c600="#545450",
    c700="#3a3b39",
    c800="#282928",
    c900="#1c1d1d",
    c950="#131414",
)
RADII = gr.themes.Size(name="radius_basalt", xxs="3px", xs="4px", sm="6px", md="9px", lg="12px", xl="16px", xxl="22px")
TEXT = gr.themes.Size(name="text_basalt", xxs="11px", xs="12px", sm="13px", md="15px", lg="16px", xl="21px", xxl="30px")


class BasaltAndEmber(gr.themes.Base):
    """Light and dark are both designed: stone grey paper by day, black rock by night."""

    def __init__(self) -> None:
        super().__init__(
            primary_hue=EMBER,
            secondary_hue=EMBER,
            neutral_hue=BASALT,
            radius_size=RADII,
            text_size=TEXT,
            font=(_shipped("Source Sans Pro"), "ui-sans-serif", "system-ui", "sans-serif"),
            font_mono=(_shipped("IBM Plex Mono"), "ui-monospace", "Consolas", "monospace"),
        )
        self.name = "basalt_and_ember"
        self.custom_css = _shipped("Montserrat").stylesheet()["css"]  # the headings' font, see css/page.css
        self.set(**_SURFACES, **_TEXT_COLOURS, **_CONTROLS)


def _shipped(name: str) -> gr.themes.LocalFont:
    return gr.themes.LocalFont(name, weights=(400, 700))


_SURFACES = {
    "body_background_fill": "#fdfdfc",
    "body_background_fill_dark": "*neutral_950",
    "background_fill_primary": "#fdfdfc",
    "background_fill_primary_dark": "*neutral_950",
    "background_fill_secondary": "*neutral_50",
    "background_fill_secondary_dark": "#191a1a",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_radius": "*radius_lg",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "#2c2d2c",
    "border_color_accent": "*primary_500",
    "border_color_accent_dark": "*primary_400",
    "border_color_accent_subdued": "transparent",
    "border_color_accent_subdued_dark": "transparent",
    "color_accent": "*primary_500",
    "color_accent_soft": "*neutral_100",
    "color_accent_soft_dark": "*neutral_800",
    "panel_background_fill": "transparent",
    "panel_background_fill_dark": "transparent",
    "shadow_drop": "none",
    "layout_gap": "18px",
}
_TEXT_COLOURS = {
    "body_text_color": "*neutral_900",
    "body_text_color_dark": "#ececea",
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "#a0a09b",
    "block_info_text_color": "*neutral_500",
    "block_info_text_color_dark": "#a0a09b",
    "block_info_text_size": "*text_sm",
    "block_title_text_color": "*neutral_900",
    "block_title_text_color_dark": "#ececea",
    "block_title_text_weight": "600",
    "block_title_text_size": "*text_md",
    "link_text_color": "*primary_600",
    "link_text_color_dark": "*primary_300",
    "link_text_color_hover": "*primary_700",
    "link_text_color_hover_dark": "*primary_200",
    "chatbot_text_size": "17px",
    "prose_text_size": "*text_md",
}
_CONTROLS = {
    "slider_color": "*neutral_800",
    "slider_color_dark": "*neutral_200",
    "input_background_fill": "#ffffff",
    "input_background_fill_dark": "#1f2020",
    "input_background_fill_focus": "#ffffff",
    "input_background_fill_focus_dark": "#1f2020",
    "input_border_color": "*neutral_200",
    "input_border_color_dark": "#343534",
    "input_border_color_focus": "*primary_500",
    "input_border_color_focus_dark": "*primary_400",
    "input_border_width": "1px",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "#8f8f8a",
    "input_radius": "*radius_sm",
    "input_text_size": "*text_md",
    "button_primary_background_fill": "*neutral_900",
    "button_primary_background_fill_dark": "*neutral_100",
    "button_primary_background_fill_hover": "*primary_600",
    "button_primary_background_fill_hover_dark": "*primary_300",
    "button_primary_text_color": "#ffffff",
    "button_primary_text_color_dark": "*neutral_950",
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_dark": "transparent",
    "button_secondary_background_fill_hover": "*neutral_100",
    "button_secondary_background_fill_hover_dark": "*neutral_800",
    "button_secondary_border_color": "*neutral_200",
    "button_secondary_border_color_dark": "*neutral_700",
    "loader_color": "*primary_500",
    "error_border_color": "*primary_600",
    "error_text_color": "*primary_700",
}


def look() -> dict[str, Any]:
    """The options of `gr.Blocks.launch` for our theme, styles, scripts and icon.

    Its `js` is not used: it runs after the page is visible, and a click before that would be lost.
    """
    icon = f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(_icon())}">'
    address = f".{_scripts_path()}"
    preloads = "".join(
        f'<link rel="modulepreload" href="{address}/{path.relative_to(_FOLDER / "js").as_posix()}">'
        for path in _modules()
    )
    return {
        "theme": BasaltAndEmber(),
        "css_paths": [_FOLDER / "css" / f"{name}.css" for name in STYLES],
        "head": f'{icon}{_STILL}{preloads}<script type="module" src="{address}/main.js"></script>',
    }


def scripts() -> Mount:
    """The route of the page's JavaScript modules."""
    return Mount(_scripts_path(), StaticFiles(directory=_FOLDER / "js"))


def _scripts_path() -> str:
    """A path with the hash of all modules, so that no browser mixes old and new ones."""
    return f"/scripts/{hashlib.sha256(b''.join(path.read_bytes() for path in _modules())).hexdigest()[:12]}"


def _modules() -> list[Path]:
    return sorted((_FOLDER / "js").rglob("*.*js"))


def _icon() -> str:
    mark = MARK.replace("currentColor", EMBER.c500)
    return mark.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
