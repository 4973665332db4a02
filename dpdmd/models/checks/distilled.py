"""Signs in the small files of a teacher's folder that the teacher is itself a few-step student."""

import re
from pathlib import Path

from dpdmd.config.variants import find_variant
from dpdmd.models.registry import LAYOUTS, sampling_defaults
from dpdmd.utils.text_files import read_json

_NAMES = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|schnell|distilled)(?![a-z])", re.IGNORECASE)
_SWITCHES = ("is_distilled", "guidance_embeds")


def why_distilled(family: str, folder: Path, recorded: str | None = None) -> str | None:
    """Return the reason to think that the model of a checked pipeline folder is distilled; None without a sign.

    The signs: an entry of a configuration, the name of the model that a file or the folder has, a scheduler that only
    the distilled model has, or the dpdmd.json of a student with a grid of its own.

    Args:
        recorded: what files record in place of the folder, such as the id of the Hub.
    """
    network = LAYOUTS[family].network
    files = {name: read_json(folder / name) for name in ("model_index.json", f"{network}/config.json")}
    for name, values in files.items():
        if found := [entry for entry in _SWITCHES if values.get(entry) is True]:
            return f"its {name} sets {found[0]}"
    if (variant := find_variant(family, folder)) and variant.distilled:
        return f"its {variant.file} is that of {variant.name}"
    for name, values in files.items():
        if _NAMES.search(origin := str(values.get("_name_or_path", "")).rpartition("/")[2]):
            return f"its {name} says that it is {origin}"
    if (defaults := sampling_defaults(folder)).sigmas:
        return f"its dpdmd.json is that of a student of {defaults.steps} steps"
    if match := _NAMES.search(Path(recorded).name if recorded else folder.resolve().name):
        return f"its name has the word {match.group()}"
    return None
