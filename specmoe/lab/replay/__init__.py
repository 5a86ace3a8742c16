"""What a run's trace says when it is played again: one layer's pool under other policies, who waits
for whom in a round, what a round drafted.

Comes in: a trace frame (``specmoe.trace`` describes it) or the blocks of a trace. Goes out: small
frames and tuples that ``figures`` draws and ``widgets`` moves through. Pure functions, no torch:
nothing is run and nothing is changed.
"""

from .clock import rounds_of, timeline
from .frames import as_frame, check_number
from .pool import (
    REPLAYED,
    Held,
    Request,
    decoding,
    layer_requests,
    layers_of,
    pool_table,
    replay_pool,
    replayed,
)
from .rounds import any_blocks, blocks_of, fetched_in, telling_round, token_kinds
