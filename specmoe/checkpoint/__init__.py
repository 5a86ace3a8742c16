"""From a Hugging Face checkpoint to a model without experts and a folder with one record per
expert.

Comes in: a shipped name, a folder or a hub id. Goes out: ``build_model`` gives the transformers
model with its expert parameters still on ``meta``; ``pack`` gives ``PackedExperts``, which
``offload.store`` reads next. In this order: ``files`` and ``header`` open a checkpoint, ``recipes``
says which of its tensors make which of the model, ``model`` loads what is no expert, ``plan`` finds
the experts, and ``packing`` writes them in the ``layout`` of a record, with the ``rest`` beside
them where a packed folder is to be loaded by itself. ``open_experts`` packs only where records
cannot be read ``in_place``.
"""

from .cache import cache_folder, lock, write_whole
from .files import resolve
from .identity import TICK_NS, unchanged
from .in_place import InPlaceExperts
from .layout import ExpertLayout
from .model import build_model, expert_modules
from .opening import open_experts
from .packed import PackedExperts, open_packed
from .packing import pack
from .sums import KeptSums
