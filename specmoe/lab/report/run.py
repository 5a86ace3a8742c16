"""Run a report: papermill executes the notebook, ``page`` makes its HTML.

Comes in: a report's name and values for its parameters. Goes out: the path of the HTML, beside it
the executed notebook and what it wrote. ``cli`` and ``make report`` call ``run_report``.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import OptionError, SpecMoEError, door, path_of
from ...options import spin_setting
from ..writing import check_folder
from .page import offline_html
from .parameters import OUT_DIR, Report, first_line, literal, need, one_line


def run_report(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Run the notebook ``name`` into ``out_dir`` (default ``reports/<name>-<time>``) and return the
    path of its HTML.

    Beside the HTML lie the executed notebook and what it wrote (``metrics.json``). Nothing is
    written before all parameters are found good. When a cell fails the notebook is kept as
    ``<name>.failed.ipynb``, and there is no HTML. ``progress``: a bar over the cells; None: on a
    terminal only.
    """
    report = Report.find(name)
    values = report.typed(parameters or {})
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    folder = path_of(
        Path("reports") / f"{name}-{stamp}" if out_dir is None else out_dir, "a folder"
    )
    done, page, failed = (
        folder / f"{name}{suffix}" for suffix in (".ipynb", ".html", ".failed.ipynb")
    )
    _check_free(folder, [done, page, folder / "metrics.json"], overwrite)
    check_folder(folder)
    if report.takes_out_dir:
        values[OUT_DIR] = str(folder.resolve())
    notebook = _execute(
        report.path, failed, values, sys.stderr.isatty() if progress is None else progress
    )
    with door(
        f"the report could not be written (its notebook is kept as {failed})",
        "free some space",
        SpecMoEError,
    ):
        page.write_text(offline_html(notebook), encoding="utf-8")
        failed.replace(done)
    return page


def _check_free(folder: Path, outputs: list[Path], overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file: name a folder for the report")
    taken = [path for path in outputs if path.exists()]
    if taken and not overwrite:
        raise OptionError(
            f"{taken[0]} exists already: choose another folder, or say that it may be overwritten"
        )
    for path in taken:
        with door(f"{path} could not be replaced", "name another folder", OptionError):
            path.unlink()


def _execute(source: Path, target: Path, values: dict[str, Any], progress: bool) -> dict[str, Any]:
    """Execute ``source`` into ``target``; raises ``SpecMoEError`` naming the cell that failed."""
    papermill = need("papermill")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with _patient_threads():
            notebook = papermill.execute_notebook(
                literal(source),
                literal(target),
                parameters=values,
                progress_bar=progress,
                kernel_name="python3",
                # the kernel's own remarks are nothing to the reader
                extra_arguments=["--log-level=ERROR"],
            )
    except papermill.exceptions.PapermillExecutionError as failure:
        reason = (
            f"{failure.ename}: {first_line(failure.evalue)}{_hint(failure.ename, failure.evalue)}"
        )
        raise SpecMoEError(
            _failure(source, failure.exec_count, failure.source, reason, target)
        ) from None
    # no kernel, a kernel that died, a full disk: many libraries, many kinds
    except Exception as failure:
        raise SpecMoEError(f"{source.name} could not be run: {one_line(failure)}") from failure
    for reason in widget_errors(notebook):
        raise SpecMoEError(f"{source.name} failed inside a widget: {reason} (kept as {target})")
    return notebook


@contextmanager
def _patient_threads() -> Iterator[None]:
    """Kernels started here let torch's threads sleep soon when they wait for each other, unless the
    user said otherwise."""
    ours = spin_setting()
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _failure(source: Path, number: int, code: str, reason: str, target: Path) -> str:
    lines = [
        line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return (
        f"{source.name} failed in cell [{number}] `{lines[0] if lines else ''}`: {reason} "
        "(kept "
        f"as {target})"
    )


def _hint(kind: str, message: str) -> str:
    """A kernel named python3 may belong to another Python than the one that runs this."""
    if kind != "ModuleNotFoundError" or "'specmoe'" not in message:
        return ""
    return (
        f" (the kernel 'python3' is another Python: {sys.executable} -m ipykernel install "
        "--sys-prefix)"
    )


def widget_errors(notebook: Mapping[str, Any]) -> list[str]:
    """Exceptions raised in widget callbacks: papermill takes them for success, they only show in
    the widgets' state."""
    widgets = (
        notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    )
    models = [
        model
        for model in widgets.get("state", {}).values()
        if model.get("model_name") == "OutputModel"
    ]
    outputs = [output for model in models for output in model.get("state", {}).get("outputs", [])]
    errors = [output for output in outputs if output.get("output_type") == "error"]
    return [f"{error.get('ename')}: {first_line(error.get('evalue', ''))}" for error in errors]
