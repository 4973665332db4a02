"""The sweep file: which configurations are trained with which seeds, and how each is measured.

    title: DMD and DP-DMD on the small world
    config: scripts/configs/tiny.yaml   # --config of every training (default: the package's defaults)
    flags: {max_steps: 1800}            # flags of every training, on top of it
    launcher: python                    # starts a training, before `-m dpdmd.train`; on GPUs
                                        # python -m accelerate.commands.launch --config_file FILE
    seeds: [0, 1, 2]
    baseline: dmd                       # optional: the row that the others are tested against
    configurations:
      teacher: {model: weights/tiny/sd35}  # measured without training
      dmd: {flags: {method: dmd}}
      dpdmd: {paper: {entropy: 0.8}}       # the paper's number of a column
      dmd_gan: {flags: {method: dmd_gan}, launcher: python}  # launcher of this row
      ema: {flags: {ema_decay: 0.95}, average: true}         # measures the student's moving average
    measure:                            # in this order, after each training
      oracle:
        command: python -m dpdmd.shapes.measure --model {model} --out {out}/figures.json
        result: figures.json            # relative to {out}; test_diversity.py and similar programs write summary.json
        metrics: [accuracy, entropy]    # or column: name in the result, ...
    picture:                            # optional: picture.png, rows with the same start noises
      prompts: [a red circle]
      rows: [teacher, dmd, dpdmd]
    plane: {x: entropy, y: accuracy}    # optional: plane.png, all rows in the plane of two columns; with size: calls,
                                        # a marker's area is the cost of the row's training in network calls

`python` is the interpreter that runs the sweep. {model} is the run folder or the configuration's `model`. {out} is the
folder of this measure; other measures of the same run are beside it, such as {out}/../oracle. `python -m
dpdmd.shapes.measure` gives accuracy, unrecognised, entropy, coverage and spread, and the accuracy of each category of
prompts, such as accuracy/colour_shape.
"""

import difflib
import os.path
import re
import shlex
from pathlib import Path
from typing import Any

from dpdmd.compare.sweep import (
    CALLS,
    OUTPUT_FLAGS,
    OWN_FLAGS,
    PLACEHOLDER,
    Configuration,
    Measure,
    Plane,
    SampleGrid,
    Sweep,
    options_of,
)
from dpdmd.config import expand_paths, from_dict, on_defaults_of_the_model, validate
from dpdmd.utils import strict_yaml
from dpdmd.utils.json_values import is_finite_number
from dpdmd.utils.paths import expanded
from dpdmd.utils.text_files import check_prompt

_NAME = re.compile(r"\w[\w.=+-]*")  # also the name of a folder
_MAX_NAME = 200  # bytes; file systems allow 255 with the endings of files and temporary files
_MAX_COLUMNS = 256  # of the picture: 65,536 pixels
_SWEEP_KEYS = {
    "title": str,
    "config": str,
    "flags": dict,
    "launcher": str,
    "seeds": list,
    "baseline": str,
    "configurations": dict,
    "measure": dict,
    "picture": dict,
    "plane": dict,
}
_KINDS = {
    str: "a string",
    dict: "a mapping",
    list: "a list",
    int: "an integer",
    bool: "true or false",
    list | dict: "a list, or column: name in the result",
}
_RESERVED = ("train", "run")  # names of the training's files, beside the folders of the measures


def read_sweep(path: Path) -> Sweep:
    """Read a sweep from YAML and check every configuration as `dpdmd.train` checks its flags.

    Raises:
        ValueError: one line that names the file and the place in it.
    """
    required = ("title", "configurations", "measure")
    values = _checked(strict_yaml.read(path, str(path)), _SWEEP_KEYS, str(path), required)
    measures = {name: _measure(name, given, f"{path}: measure {name}") for name, given in values["measure"].items()}
    columns = [column for measure in measures.values() for column in measure.metrics]
    for column in columns:
        if columns.count(column) > 1:
            raise ValueError(f"{path}: two columns are called {column!r}; write metrics as column: name in the result")
    configurations = {
        name: _configuration(name, given, values, columns, f"{path}: configuration {name}")
        for name, given in values["configurations"].items()
    }
    sweep = Sweep(
        path=path,
        title=values["title"],
        config=values.get("config"),
        on_cores=all("launcher" not in part for part in (values, *filter(None, values["configurations"].values()))),
        seeds=_seeds(values.get("seeds", []), configurations, f"{path}: seeds"),
        baseline=values.get("baseline"),
        configurations=configurations,
        measures=measures,
        sample_grid=_sample_grid(values["picture"], f"{path}: picture") if "picture" in values else None,
        plane=_plane(values["plane"], columns, f"{path}: plane") if "plane" in values else None,
    )
    named = [("baseline", sweep.baseline)] if sweep.baseline else []
    named += [("picture", row) for row in sweep.sample_grid.rows] if sweep.sample_grid else []
    for place, name in named:
        if name not in configurations:
            raise ValueError(f"{path}: {place}: no configuration is called {name!r}")
    return sweep


def _checked(values: Any, keys: dict[str, Any], place: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check that `values` has only `keys`, each of its type, and all `required` keys; return `values`."""
    if not isinstance(values, dict):
        raise ValueError(f"{place}: must be a mapping of keys to values")
    for key, value in values.items():
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            raise ValueError(f"{place}: unknown key {key!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        if not isinstance(value, keys[key]) or (isinstance(value, bool) and keys[key] is not bool):
            raise ValueError(f"{place}: {key} must be {_KINDS[keys[key]]}, not {value!r}")
        if (isinstance(value, str) and not value.strip()) or (value in ([], {}) and key in required):
            raise ValueError(f"{place}: {key} is empty")
    for key in required:
        if key not in values:
            raise ValueError(f"{place}: {key} is missing")
    return values


def _words(command: str, place: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ValueError(f"{place}: {command!r} cannot be split into words ({error})") from None
    if not words:
        raise ValueError(f"{place}: is empty")
    return words


def _check_name(name: Any, place: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{place}: YAML reads this name as {type(name).__name__}; put it in quotes")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{place}: names are letters, digits and _ . = + -")
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(f"{place}: a name has at most {_MAX_NAME} letters")
    return name


def _seeds(seeds: list[Any], configurations: dict[str, Configuration], place: str) -> tuple[int, ...]:
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"{place}: must be different integers of at least 0, not {seeds}")
    if not seeds and any(configuration.model is None for configuration in configurations.values()):
        raise ValueError(f"{place}: give at least one seed to train with")
    return tuple(seeds)


def _measure(name: Any, values: Any, place: str) -> Measure:
    if _check_name(name, place) in _RESERVED:
        raise ValueError(f"{place}: that name is reserved for the training; choose another")
    if name.endswith((".json", ".log")):
        raise ValueError(f"{place}: a name may not end as the files of the measures do, in .json or .log")
    keys = {"command": str, "result": str, "metrics": list | dict}
    values = _checked(values, keys, place, required=tuple(keys))
    command = _words(values["command"], f"{place}: command")
    placeholders = {name for word in command for name in PLACEHOLDER.findall(word)}
    for unknown in placeholders - {"model", "out"}:
        raise ValueError(f"{place}: command: unknown placeholder {{{unknown}}}; there are {{model}} and {{out}}")
    if "out" not in placeholders:
        raise ValueError(f"{place}: command: must write into {{out}}, the folder of this measure")
    result = os.path.normpath(values["result"])
    if os.path.isabs(result) or result.split(os.sep)[0] in (os.curdir, os.pardir):
        raise ValueError(f"{place}: result: must be a file in {{out}}, relative to it, not {values['result']}")
    given = values["metrics"]
    pairs = list(given.items()) if isinstance(given, dict) else [(column, column) for column in given]
    if not all(isinstance(text, str) for pair in pairs for text in pair) or len(dict(pairs)) < len(pairs):
        raise ValueError(f"{place}: metrics must be different names, not {given}")
    return Measure(name, command, values["result"], dict(pairs))


def _configuration(name: Any, values: Any, sweep: dict[str, Any], columns: list[str], place: str) -> Configuration:
    _check_name(name, place)
    keys = {"model": str, "launcher": str, "flags": dict, "paper": dict, "average": bool}
    values = _checked({} if values is None else values, keys, place)
    paper = values.get("paper", {})
    for column, number in paper.items():
        if column not in columns:
            raise ValueError(f"{place}: paper: no column is called {column!r}; there are {', '.join(columns)}")
        if not is_finite_number(number):
            raise ValueError(f"{place}: paper: {column} must be a finite number, not {number!r}")
    if "model" in values:
        for key in ("flags", "launcher", "average"):
            if key in values:
                raise ValueError(f"{place}: has model, so nothing is trained; remove {key}")
        return Configuration(name, _model(values["model"], place), (), {}, {}, paper)
    launcher = _words(values.get("launcher", sweep.get("launcher", "python")), f"{place}: launcher")
    flags = {**sweep.get("flags", {}), **values.get("flags", {})}
    resolved, average = _resolve(sweep.get("config"), flags, place), values.get("average", False)
    if average and resolved["ema_decay"] is None:
        raise ValueError(f"{place}: average: nothing is averaged; give ema_decay in flags, or remove it")
    return Configuration(name, None, launcher, flags, resolved, paper, average)


def _model(text: str, place: str) -> str:
    try:
        return expanded(text)
    except ValueError as error:
        raise ValueError(f"{place}: model {error}") from None


def _resolve(config: str | None, flags: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the options of `dpdmd.train --config CONFIG` with these flags.

    Raises:
        ValueError: a flag is wrong; the message begins with the name of the configuration.
    """
    for flag, value in flags.items():
        if flag in (*OWN_FLAGS, *OUTPUT_FLAGS):
            raise ValueError(f"{place}: {flag} is set by the sweep; remove it")
        if value is None or isinstance(value, (list, dict)):
            raise ValueError(f"{place}: {flag} must be a number, a string, true or false, not {value!r}")
    try:
        given = {name: str(value) for name, value in flags.items()}
        base = on_defaults_of_the_model(None, [config] if config else [], given)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    scattered = [flag for flag in OUTPUT_FLAGS if getattr(base.run, flag) is not None]
    if scattered:
        raise ValueError(
            f"{place}: {config} sets {scattered[0]}, but the sweep gives every run its own folder; remove it"
        )
    resolved = from_dict({**options_of(base), **flags}, place)
    if resolved.run.push_to_hub:
        raise ValueError(
            f"{place}: push_to_hub: each run would replace the last one's upload; remove it, and upload the student of "
            "your choice with python -m dpdmd.export --push_to_hub"
        )
    try:
        expand_paths(resolved)
        validate(resolved)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return options_of(resolved)


def _sample_grid(values: Any, place: str) -> SampleGrid:
    keys = {"prompts": list, "rows": list, "num_images": int}
    values = _checked(values, keys, place, required=("prompts", "rows"))
    if not all(isinstance(text, str) and text.strip() for text in [*values["prompts"], *values["rows"]]):
        raise ValueError(f"{place}: prompts and rows must be strings")
    grid = SampleGrid(tuple(values["prompts"]), tuple(values["rows"]), values.get("num_images", 9))
    if not 1 <= grid.num_images <= _MAX_COLUMNS:
        raise ValueError(f"{place}: num_images must be 1 to {_MAX_COLUMNS}, not {grid.num_images}")
    for prompt in grid.prompts:
        check_prompt(prompt, f"{place}: prompt")
    return grid


def _plane(values: Any, columns: list[str], place: str) -> Plane:
    plane = Plane(**_checked(values, {"x": str, "y": str, "size": str}, place, required=("x", "y")))
    for column in (plane.x, plane.y):
        if column not in columns:
            raise ValueError(f"{place}: no column is called {column!r}; there are {', '.join(columns)}")
    if plane.size not in (None, CALLS):
        raise ValueError(f"{place}: size must be {CALLS}, not {plane.size!r}")
    return plane
