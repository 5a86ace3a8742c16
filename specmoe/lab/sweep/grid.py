"""A grid of settings, and every setting in it.

Comes in: option -> list of values, as a dict or a YAML file. Goes out: settings, one dict for each
run, each with its key; all of them checked before anything runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...errors import OptionError, door, nearest, path_of
from ...options import GenerateOptions, LoadOptions, from_kwargs
from ...registry import plug_in

MOST = 500  # runs, unless the caller says yes
# What is no plain value, or is a matter of jobs, is not swept over.
NOT_SWEPT = {"logits_processor", "stopping_criteria", "settings", "own", "streamer", "progress"}
NOT_SWEPT |= {"first_prompt", "num_return_sequences"}
LOAD = tuple(field.name for field in fields(LoadOptions) if field.name != "token")
GENERATE = tuple(field.name for field in fields(GenerateOptions) if field.name not in NOT_SWEPT)
COUNTS = ("num_prompts", "repeats")
# ``plugin``: a file that names parts of your own, which every worker runs (``registry.plug_in``)
OPTIONS = ("model", "plugin", *LOAD, *GENERATE, *COUNTS)
# Options that only some methods read: for the others they are left out, and equal runs run once.
READ_BY = {
    "gamma": ("specmoe",),
    "planner": ("specmoe", "auto"),
    "draft_set": ("specmoe", "auto"),
    "substitute": ("specmoe", "auto"),
    "draft_top_k": ("specmoe", "auto"),
    "eviction": ("cached",),
}


def read_grid(file: str | os.PathLike) -> dict[str, Any]:
    """The grid in a YAML file (JSON is YAML): ``model: [tiny-skewed]``, ``gamma: [2, 4]``, ..."""
    return read_names(file, "grid", "gamma: [2, 4, 8]")


def read_names(file: str | os.PathLike, what: str, example: str) -> dict[str, Any]:
    """Values by name in a YAML file; ``OptionError`` where it is no ``what``."""
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise OptionError(f"{file} is no {what}: write lines such as `{example}`")
    return found


def read_yaml(file: str | os.PathLike) -> Any:
    """What a YAML file says; 1e6 is a number in it, as in YAML 1.2, and no name stands twice."""
    import yaml

    path = path_of(file)

    class Loader(yaml.SafeLoader):
        """PyYAML's own, with numbers such as 2.5e8, which YAML 1.1 takes for texts; of a name that
        stands twice PyYAML would keep the last."""

        def construct_mapping(self, node, deep=False):
            names = [str(name.value) for name, _ in node.value]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise OptionError(f"{path} has {twice!r:.80} twice: write it once")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
    if not path.exists():
        raise OptionError(f"there is no file {path}: name one that holds YAML")
    with door(f"{path} cannot be read as YAML", "correct the file", OptionError):
        return yaml.load(path.read_text(encoding="utf-8"), Loader)


def settings_of(grid: Mapping[str, Any], yes: bool = False, known: Sequence[str] | None = OPTIONS):
    """Every combination of the grid's values, in its order, by key. ``OptionError`` where the grid
    is empty, names an option that is not ``known`` (None: any), or has more than ``MOST`` runs
    without ``yes``."""
    values = _values(grid, known)
    count = 1
    for each in values.values():
        count *= len(each)
    if count > MOST and not yes:
        raise OptionError(
            f"the grid has {count} runs, more than {MOST}: give fewer values, or say yes (--yes)"
        )
    found = {}
    for chosen in itertools.product(*values.values()):
        settings = dict(zip(values, chosen))
        if known is not None:
            settings = _needed(settings)
            check(settings)
        found.setdefault(key_of(settings), settings)
    return found


def key_of(settings: Mapping[str, Any]) -> str:
    """16 digits for the settings, whatever their order."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _values(grid: Any, known: Sequence[str] | None) -> dict[str, list]:
    if not isinstance(grid, Mapping):
        raise OptionError(f"grid={grid!r:.80} is no dict of lists: write {{'gamma': [2, 4], ...}}")
    if not grid:
        raise OptionError("the grid is empty: give at least a model, such as model: [tiny-skewed]")
    values = {}
    for name, given in grid.items():
        if name == "token" and known is not None:
            raise OptionError("rows would show a token: set HF_TOKEN where the runs are made")
        if known is not None and name not in known:
            raise OptionError(f"the grid names an unknown option {name!r}: {nearest(name, known)}")
        values[name] = list(given) if isinstance(given, list | tuple) else [given]
        if not values[name]:
            raise OptionError(f"the grid has no value for {name}: give one, or leave it out")
        for value in values[name]:
            if not isinstance(value, str | int | float | None):
                raise OptionError(f"{name}={value!r:.80} in the grid is no text, number or flag")
    if known is not None and "model" not in values:
        raise OptionError("the grid names no model: add one, such as model: [tiny-skewed]")
    return values


def _needed(settings: dict[str, Any]) -> dict[str, Any]:
    """Without options that this method does not read."""
    method = settings.get("method", GenerateOptions.method)
    return {
        name: value
        for name, value in settings.items()
        if name not in READ_BY or method in READ_BY[name]
    }


def check(settings: Mapping[str, Any]) -> None:
    """``OptionError`` where a value is out of range: asked for every run before the first."""
    if not isinstance(settings["model"], str) or not settings["model"]:
        raise OptionError(f"model={settings['model']!r} in the grid is no name")
    plug_in([settings["plugin"]] if settings.get("plugin") else [])
    for cls, names in ((LoadOptions, LOAD), (GenerateOptions, GENERATE)):
        from_kwargs(cls, {name: settings[name] for name in names if name in settings})
    for name in COUNTS:
        if name in settings and (type(settings[name]) is not int or settings[name] < 1):
            raise OptionError(f"{name}={settings[name]!r} must be a whole number of at least 1")
