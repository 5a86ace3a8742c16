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
from .about import add_to_metrics, facts_of, recorded, settings_of, shown
from .against import check_against
from .page import offline_html
from .parameters import AGAINST, OUT_DIR, Report, first_line, literal, need, one_line
from .progress import Told

# what the notebook is called while it runs, and once it has failed
RUNNING, FAILED = ".running.ipynb", ".failed.ipynb"


def run_report(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    against: str | Path | None = None,
) -> Path:
    """Run the notebook ``name`` into ``out_dir`` (default ``reports/<name>-<time>``) and return the
    path of its HTML.

    Beside the HTML lie the executed notebook, what it wrote (``metrics.json``) and how it was made
    (``env.json``, which has the error where it failed). Nothing is
    written before all parameters are found good. While it runs the notebook is called
    ``<name>.running.ipynb``; when a cell fails it is kept as ``<name>.failed.ipynb``, and there is
    no HTML. ``progress``: say on stderr how far it is. ``against``: the folder of an earlier run of
    the same report and settings, to be compared with.
    """
    report = Report.find(name)
    values = _compared(report, report.typed(parameters or {}), against)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    folder = path_of(
        Path("reports") / f"{name}-{stamp}" if out_dir is None else out_dir, "a folder"
    )
    done, page, running = (folder / f"{name}{suffix}" for suffix in (".ipynb", ".html", RUNNING))
    _check_free(folder, [done, page, folder / "metrics.json", running], overwrite)
    check_folder(folder)
    facts = facts_of(report, values)
    if report.takes_out_dir:
        values[OUT_DIR] = str(folder.resolve())
    with (
        recorded(folder, facts),
        _kept_when_it_fails(running) as kept,
        Told(name, progress) as told,
    ):
        notebook = _execute(report.path, running, values, told)
        html = _html(notebook, facts, kept)
        with door(
            f"the report could not be written (its notebook is kept as {kept})",
            "free some space",
            SpecMoEError,
        ):
            add_to_metrics(folder / "metrics.json", facts)
            page.write_text(html, encoding="utf-8")
            running.replace(done)
    return page


def _compared(report: Report, values: dict[str, Any], against: Any) -> dict[str, Any]:
    """``values`` with the folder of the earlier run, once it is known to be one."""
    folder = values.get(AGAINST) if against is None else path_of(against, "a folder")
    if folder is None:
        return values
    if AGAINST not in report.parameters:
        raise OptionError(
            f"report {report.name!r} cannot be compared with an earlier one: --against is for those "
            f"with a parameter {AGAINST!r}, as `report` has"
        )
    check_against(folder, report.name, settings_of(report, values))
    # the kernel runs elsewhere
    return values | {AGAINST: str(Path(folder).resolve())}


def _html(notebook: Mapping[str, Any], facts: Mapping[str, Any], kept: Path) -> str:
    with door(
        f"the notebook could not be made into a page (it is kept as {kept})",
        "read it instead, and install nbconvert and what it needs again, for this Python",
        SpecMoEError,
    ):
        return offline_html(notebook, shown(facts))


@contextmanager
def _kept_when_it_fails(running: Path) -> Iterator[Path]:
    """Only what has failed, or was interrupted, is called so."""
    failed = _failed_name(running)
    failed.unlink(missing_ok=True)
    try:
        yield failed
    except BaseException:
        if running.exists():
            running.replace(failed)
        raise


def _check_free(folder: Path, outputs: list[Path], overwrite: bool) -> None:
    taken = [path for path in outputs if path.exists()]
    for path in taken if not overwrite else []:
        if path.name.endswith(RUNNING):
            raise OptionError(
                f"{path} is a report that still runs, or was killed: choose another folder, or say "
                "that it may be overwritten"
            )
    if taken and not overwrite:
        raise OptionError(
            f"{taken[0]} exists already: choose another folder, or say that it may be overwritten"
        )
    for path in taken:
        with door(f"{path} could not be replaced", "name another folder", OptionError):
            path.unlink()


def _execute(source: Path, target: Path, values: dict[str, Any], told: Told) -> dict[str, Any]:
    """Execute ``source`` into ``target``; raises ``SpecMoEError`` naming the cell that failed."""
    papermill = need("papermill")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.engines.papermill_engines.register("specmoe", _engine_that_tells(told))
    kept = _failed_name(target)
    try:
        with _patient_threads():
            notebook = papermill.execute_notebook(
                literal(source),
                literal(target),
                engine_name="specmoe",
                parameters=values,
                progress_bar=False,
                kernel_name="python3",
                # the kernel's own remarks are nothing to the reader
                extra_arguments=["--log-level=ERROR"],
            )
    except papermill.exceptions.PapermillExecutionError as failure:
        raise SpecMoEError(_failure(source, failure, kept)) from None
    # no kernel, a kernel that died, a full disk: many libraries, many kinds
    except Exception as failure:
        raise SpecMoEError(f"{source.name} could not be run: {one_line(failure)}") from failure
    for reason in widget_errors(notebook):
        raise SpecMoEError(f"{source.name} failed inside a widget: {reason} (kept as {kept})")
    return notebook


def _failed_name(running: Path) -> Path:
    return running.with_name(running.name.removesuffix(RUNNING) + FAILED)


def _engine_that_tells(told: Told):
    """papermill's own engine, which says which cell begins."""
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            start, total = nb_man.cell_start, len(nb_man.nb.cells)

            def cell_start(cell, cell_index=None, **more):
                if cell["cell_type"] == "code":
                    told.cell(cell_index + 1, total)
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            super().execute_managed_notebook(nb_man, kernel_name, **options)

    return Engine


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


def _failure(source: Path, failure: Any, kept: Path) -> str:
    lines = [
        line
        for line in failure.source.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    reason = f"{failure.ename}: {first_line(failure.evalue)}{_hint(failure.ename, failure.evalue)}"
    return (
        f"{source.name} failed in cell [{failure.exec_count}] `{lines[0] if lines else ''}`: "
        f"{reason} (kept as {kept})"
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
