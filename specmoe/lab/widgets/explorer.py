"""What every widget shares: controls above, a figure of fixed height below, and the figure as a
still for pages without widgets.

Comes in: ipywidgets controls by name, and a function of their values that draws. Goes out: an
``Explorer`` to display.
"""

from __future__ import annotations

import base64
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ipywidgets
import numpy as np
from IPython import get_ipython

from .base import still

WIDE = ipywidgets.Layout(width="min(100%, 46rem)")
NAMED = {"description_width": "9.5rem"}


class Explorer(ipywidgets.VBox):
    """Controls and the figure they move. ``controls[name].value = ...`` does from code what a hand
    does.

    ``png`` holds the figure as last drawn. Displayed, it is one bundle of the live widget and that
    picture (or, until a control is moved, of the picture for the values ``twin``): a front end
    with widgets shows the first, GitHub, nbconvert and a report the second. An
    error in drawing shows in the output below the controls (and ``report.run`` counts it as a
    failure).
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        draw: Callable,
        about: str,
        height: int,
        twin: Mapping | None = None,
    ):
        """``draw(**values)`` returns ``Axes``; ``about``: the figure in words; ``height``: of the
        figure in CSS pixels; ``twin``: values of controls for the picture of a page without
        widgets, where they are not those that the widget opens with."""
        self.controls = dict(controls)
        self.draw = draw
        self.about = about
        self.png = b""
        self.output = ipywidgets.Output(
            layout=ipywidgets.Layout(height=f"{height}px", overflow="auto")
        )
        for control in self.controls.values():
            control.observe(self._redraw, "value")
        self._redraw()
        if twin and self.png:
            self.png = self._drawn(**twin)
        super().__init__([*self.controls.values(), self.output])

    def _drawn(self, **values) -> bytes:
        """The figure for the controls' present values, but ``values``."""
        present = {name: control.value for name, control in self.controls.items()}
        return still(np.atleast_1d(self.draw(**{**present, **values})).flat[0].figure)

    def _redraw(self, change=None) -> None:
        """Draw for the controls' present values, into the output below them.

        The output is set, not captured (``with self.output``): nbclient, under papermill, sends
        captured output back to the kernel, and when the cell's answer arrives during that send it
        goes unseen and the notebook waits for ever.
        """
        with _no_collection():
            try:
                self.png = self._drawn()
                shown = _picture(self.png, self.about)
            except Exception as failure:
                if get_ipython() is None:  # nobody looks at the output: let the caller see it
                    raise
                shown = _error(failure)
            self.output.outputs = (shown,)

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if not data:
            return bundle
        said = f"Widget: {self.about}" if self.png else f"Widget without a figure: {self.about}"
        data = {"text/plain": said} | {
            kind: value for kind, value in data.items() if kind != "text/plain"
        }
        # drawing failed: the error is in the output below the controls, and no twin claims
        # otherwise
        if not self.png:
            return data, metadata
        picture = _picture(self.png, self.about)
        return picture["data"] | data, metadata | picture["metadata"]


def _picture(png: bytes, about: str) -> dict:
    """An output of a notebook that shows ``png``; ``about`` is read aloud to those who do not see
    it."""
    data = {"image/png": base64.b64encode(png).decode()}
    return {"output_type": "display_data", "data": data, "metadata": {"image/png": {"alt": about}}}


def _error(failure: Exception) -> dict:
    """An output of a notebook that shows what was raised."""
    lines = "".join(traceback.format_exception(failure)).splitlines()
    return {
        "output_type": "error",
        "ename": type(failure).__name__,
        "evalue": str(failure),
        "traceback": lines,
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected after the picture has been sent: with a model in memory a collection
    takes 0.3 s."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def steps(name: str, options, value=None) -> ipywidgets.SelectionSlider:
    """One of ``options`` in their order, on a slider."""
    options = list(options)
    chosen = {} if value is None else {"value": value}
    look = {"style": NAMED, "layout": WIDE, "continuous_update": False}
    return ipywidgets.SelectionSlider(options=options, description=name, **look, **chosen)


def span(name: str, least: int, most: int) -> ipywidgets.IntRangeSlider:
    """A range of whole numbers, all of it at first."""
    look = {"style": NAMED, "layout": WIDE, "continuous_update": False}
    return ipywidgets.IntRangeSlider(
        value=(least, most), min=least, max=most, description=name, **look
    )
