"""The checks of ``notebooks/01_specmoe_from_scratch``: what a reader built, beside the engine.

``checks`` has one for each step of the notebook, ``compare`` the sentences that say what differs.
"""

from ..guesses import beside
from .checks import (
    check_decoder,
    check_draft,
    check_on_demand,
    check_pool,
    check_rounds,
    check_specmoe,
    check_verification,
    load,
    prompts,
)

__all__ = [
    "beside",
    "check_decoder",
    "check_draft",
    "check_on_demand",
    "check_pool",
    "check_rounds",
    "check_specmoe",
    "check_verification",
    "load",
    "prompts",
]
