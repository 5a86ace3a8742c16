"""Reports: notebooks run with your parameters, as HTML that opens with no network.

Comes in: the name of a notebook in ``notebooks/`` with a cell tagged ``parameters``, and values for
them. Goes out: a folder with the executed notebook, its HTML and the ``metrics.json`` it wrote.
``cli`` and ``make report`` call this.
"""

from __future__ import annotations

from ...shipped import notebooks_dir
from ..writing import save_metrics
from .against import changes, check_against, count_changes, say_change
from .choosing import best_of, hot_by_prompt, hot_experts, say_best, to_widen
from .page import external_loads, offline_html
from .parameters import list_reports, report_parameters, typed_parameters
from .progress import teller
from .run import run_report, widget_errors
from .runs import index, run_many, runs_in, swept
from .sentences import (
    number_table,
    say_growth,
    say_oracle,
    say_same_tokens,
    say_speed,
    say_time,
    say_use,
)
from .setup import as_markdown, say_setup
from .summary import say_memory, say_summary
