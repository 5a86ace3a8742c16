"""Small experiments that the notebooks run: one call each, so that a notebook holds calls and no
logic of its own. (One builds the method in its cells, and proves it equal: ``scratch`` has its
checks.) Nothing else in the package stands on them.
"""

from .checkpoints import ARCHITECTURES, random_checkpoint
from .drafting import draft_foresight, profile_draft_step
from .planning import draw_plans, plan_on
from .sampling import NoResidual, chi_square_p, draw_samples, sample_first
