"""What every widget shares: a browser module with its data, and a picture for pages that run no
script.

Comes in: the name of a module of ``specmoe.lab.live``, its data, and a function that draws the
picture. Goes out: a ``Live`` to display.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import anywidget
import matplotlib.pyplot as plt
import numpy as np
import traitlets

from .. import live


class Live(anywidget.AnyWidget):
    """A module at work in the page, where it needs no kernel: what it shows is all in ``data``.

    Displayed, it is one bundle of the living module and its still ``png``: a front end with
    widgets shows the first, GitHub the second. ``kind`` names the module, ``about`` says in words
    what it shows.
    """

    kind = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    about = traitlets.Unicode().tag(sync=True)

    def __init__(self, kind: str, data: dict, about: str, draw: Callable):
        """``draw()`` returns the ``Axes`` of the still picture."""
        self._esm, self._css = live.module(kind), live.style()
        super().__init__(kind=kind, data=data, about=about)
        self.png = still(np.atleast_1d(draw()).flat[0].figure)

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = {"image/png": base64.b64encode(self.png).decode()}
        said = {"text/plain": f"Widget: {self.about}"}
        return picture | data | said, metadata | {"image/png": {"alt": self.about}}


def still(figure) -> bytes:
    """The figure as a small PNG at screen resolution, as large as its words need; closes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image as Picture

    # A canvas of its own: JupyterLab may have the figure's closed from another thread meanwhile.
    canvas, drawn, packed = FigureCanvasAgg(figure), io.BytesIO(), io.BytesIO()
    canvas.print_figure(drawn, format="png", bbox_inches="tight", dpi=figure.dpi)
    plt.close(figure)
    picture = Picture.open(drawn).convert("RGB").quantize(128, dither=Picture.Dither.NONE)
    picture.save(packed, format="png")
    return packed.getvalue()
