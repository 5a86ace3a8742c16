"""How a command of the lab (``python -m specmoe.lab.bench.run``) ends.

Comes in: its ``main``. Goes out: the exit code of the process, and one line on stderr where the
package refused something.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from ..errors import SpecMoEError


def leave(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit: 2 for bad input and failed files, as the command line does. What is a
    mistake of ours keeps its traceback."""
    try:
        code = main()
    except SpecMoEError as failure:
        print(f"error: {failure}", file=sys.stderr)
        code = 2
    sys.exit(code)
