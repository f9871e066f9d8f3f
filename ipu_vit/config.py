"""Reading settings: a preset file, the presets it builds on, and `section.key=value` overrides.

Each layer is read into a flat table of dotted names, so that building on another preset is a plain
update of one table by the next, and an unknown name is found, and refused, where it was written.
Nothing heavy is imported: this module also serves commands that never load torch.
"""

from __future__ import annotations

import os
import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import yaml
from pydantic import ValidationError

from ipu_vit.errors import UserError
from ipu_vit.secrets import without_secrets
from ipu_vit.settings import Section, Settings, accepted_values
from ipu_vit.shrink import shrunk

COMMAND_LINE = "on the command line"
SHORTHANDS = {"data": "data.source"}
PATHS = ("data.root", "output", "weights", "pipeline.executable_cache", "evaluation.real_labels")
# Two ways to say one thing: whoever says it the one way takes back what a base had said the other way.
ALTERNATIVES = {"pipeline.ipus": "pipeline.layers_per_ipu", "pipeline.layers_per_ipu": "pipeline.ipus"}


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    value: Any
    where: str


Table = Dict[str, Given]


def load_settings(preset: str, overrides: Sequence[str]) -> Settings:
    """The settings of a preset, by name or by path of its file, changed by `section.key=value` overrides.

    With `shrink` they are those of a small run; what stands beside it, or on the command line, stays as it is.
    """
    path = _find_preset(preset, folders=[Path(), presets_folder()], where=COMMAND_LINE)
    return _build_or_shrink(_join(_read_preset(path, readers=[]), _read_overrides(overrides)), path.stem)


def settings_from(tree: Dict[str, Any], source: str, overrides: Sequence[str], needed: Sequence[str] = ()) -> Settings:
    """Settings that something other than a preset tells, changed by overrides.

    Raises UserError, besides those of presets, for a name in `needed` that neither of them gives.
    """
    where = f"in {source}"
    own = {name: Given(value, where) for name, value in _flatten(tree, where)}
    table = _join(own, _read_overrides(overrides))
    missing = [name for name in needed if name not in table]
    if missing:
        raise UserError(f"{source} does not tell {' and '.join(missing)}: give {' '.join(f'{n}=…' for n in missing)}")
    return _build_or_shrink(table, Path(source).name)


def save_settings(settings: Settings, path: Path) -> None:
    """Write all settings but secrets to a file that `load_settings` reads back.

    A crash leaves the old file or the new one.
    """
    text = yaml.dump(
        without_secrets(settings.model_dump(mode="json")), Dumper=_Dumper, sort_keys=False, default_flow_style=None
    )
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def list_presets() -> List[Tuple[str, str]]:
    """Every preset's name and description, which is the first line of its file."""
    found = []
    for path in sorted(presets_folder().glob("*.yml")):
        with path.open(encoding="utf-8") as file:
            found.append((path.stem, file.readline().lstrip("# ").rstrip()))
    return found


def nearest_presets(unknown: str) -> List[str]:
    """The three presets whose names are most like a name that is none."""
    names = [name for name, _ in list_presets()]
    return sorted(names, key=lambda name: -SequenceMatcher(None, unknown, name).ratio())[:3]


def presets_folder() -> Path:
    """The folder of presets: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "share" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def is_preset(name: str) -> bool:
    """Whether there is such a preset, by name or by path of its file."""
    return _preset_file(name, folders=[Path(), presets_folder()]) is not None


# --- files ---------------------------------------------------------------------------------------


def _preset_file(preset: str, folders: Sequence[Path]) -> Optional[Path]:
    name = preset if preset.endswith((".yml", ".yaml")) else preset + ".yml"
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _find_preset(preset: str, folders: Sequence[Path], where: str) -> Path:
    """The file of a preset given by path or by name, with or without `.yml`."""
    path = _preset_file(preset, folders)
    if path is not None:
        return path
    raise UserError(f"there is no preset {preset!r} ({where}); the nearest are {', '.join(nearest_presets(preset))}")


def _read_preset(path: Path, readers: Sequence[Path]) -> Table:
    """A preset's own settings on top of those of its `base`; `readers` are the presets that build on it."""
    where = f"in {path}"
    if path.resolve() in readers:
        raise UserError(f"{path} builds on itself by way of base, which leads nowhere")
    tree = _parse_file(path)
    base = tree.pop("base", None)
    table: Table = {}
    if base is not None:
        base_path = _find_preset(str(base), folders=[path.parent, presets_folder()], where=f"base {where}")
        table = _read_preset(base_path, [*readers, path.resolve()])
    own = {name: Given(value, where) for name, value in _flatten(tree, where)}
    if "weights" in own:
        own["weights"] = Given(_beside(path, own["weights"].value), where)
    return _join(table, own)


def _join(older: Table, newer: Table) -> Table:
    """A table with another one on top of it."""
    outdated = {ALTERNATIVES.get(name) for name in newer}
    return {**{name: given for name, given in older.items() if name not in outdated}, **newer}


def _parse_file(path: Path) -> Dict[Any, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{at} is not valid YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree or {}, dict):
        raise UserError(f"{path} must hold settings, one `key: value` per line")
    return tree or {}


def _beside(preset: Path, value: Any) -> Any:
    """Weights that come with a preset lie relative to the folder that holds `configs`, wherever a run is started."""
    if isinstance(value, str) and not Path(value).expanduser().exists():
        shipped = preset.resolve().parent.parent / value
        if shipped.exists():
            return str(shipped)
    return value


# --- overrides -----------------------------------------------------------------------------------


def _read_overrides(overrides: Sequence[str]) -> Table:
    return {name: given for override in overrides for name, given in _read_override(override).items()}


def _read_override(override: str) -> Table:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} {COMMAND_LINE} is not key=value, for example schedule.lr=0.01")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{override} {COMMAND_LINE} is not valid YAML: {problem}") from None
    tree: Any = value
    for key in reversed(name.strip().split(".")):
        tree = {key: tree}
    return {name: Given(value, COMMAND_LINE) for name, value in _flatten(tree, COMMAND_LINE)}


# --- names ---------------------------------------------------------------------------------------


def _flatten(
    tree: Dict[Any, Any], where: str, section: type[Section] = Settings, prefix: str = ""
) -> Iterator[Tuple[str, Any]]:
    """Dotted names and values of a tree of settings; refuses names that do not exist."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        field = section.model_fields.get(str(key))
        if field is None:
            raise UserError(f"unknown setting {name!r} {where}; did you mean {' or '.join(_nearest(name))}?")
        group = field.annotation
        if not (isinstance(group, type) and issubclass(group, Section)):
            yield name, value
        elif isinstance(value, dict):
            yield from _flatten(value, where, group, f"{name}.")
        elif name in SHORTHANDS and isinstance(value, str):
            yield SHORTHANDS[name], value
        elif value is not None:  # a section without any key is an empty one
            example = next(iter(group.model_fields))
            raise UserError(f"{name}={_spoken(value)} {where} is a group of settings; set for example {name}.{example}")


def _known_names(section: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _known_names(field.annotation, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _nearest(unknown: str) -> List[str]:
    """The known settings nearest to a name; the right word in the wrong section, or in none, counts as very near."""

    def likeness(known: str) -> float:
        whole = SequenceMatcher(None, unknown, known).ratio()
        return max(whole, SequenceMatcher(None, _last(unknown), _last(known)).ratio())

    known = list(_known_names())
    best = max(map(likeness, known))
    return [name for name in known if likeness(name) == best][:3]


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


# --- building ------------------------------------------------------------------------------------


def _build_or_shrink(table: Table, name: str) -> Settings:
    settings = _build(table, name)
    if not settings.shrink:
        return settings
    stays = {COMMAND_LINE, table["shrink"].where}
    small = shrunk(settings, kept={key for key, given in table.items() if given.where in stays})
    return _build({**table, **{key: Given(value, "of a shrunk run") for key, value in small.items()}}, name)


def _build(table: Table, name: str) -> Settings:
    """Settings from a table of dotted names, or one sentence about the first thing that is wrong with it."""
    flat = {key: given.value for key, given in table.items()}
    for key in PATHS:
        if isinstance(flat.get(key), str):
            flat[key] = os.path.expanduser(flat[key])
    flat["name"] = flat.get("name", name)
    flat["output"] = flat.get("output") or f"runs/{flat['name']}"
    tree: Dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        group = tree
        for part in sections:
            group = group.setdefault(part, {})
        group[last] = value
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise UserError(_sentence(error, table)) from None


def _sentence(error: ValidationError, table: Table) -> str:
    """The first error, naming the setting, the value and what is accepted."""
    first, *others = error.errors(include_url=False)
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "value_error":  # a rule of ours, which speaks for itself
        return f"{first['ctx']['error']}{more}"
    section: type[Section] = Settings
    names: List[str] = []
    for part in first["loc"]:
        names.append(str(part))
        field = section.model_fields[str(part)]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        section = field.annotation
    given = table[".".join(names)]
    return f"{'.'.join(names)}={_spoken(given.value)} is not {accepted_values(field)} ({given.where}){more}"


def _spoken(value: Any) -> str:
    """A value as it is written in YAML."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000).replace("\n...", "").strip()


# --- YAML ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number, `none` is no value, 1:30 is text, no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is not a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} comes twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text."""


def _teach_numbers_and_none(kind: Any) -> None:
    unwanted = {"tag:yaml.org,2002:" + name for name in ("float", "int", "null", "timestamp", "merge", "value")}
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in unwanted]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    for name, pattern, first in (
        ("int", r"[-+]?(0|[1-9][\d_]*)", "-+0123456789"),
        ("float", r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
        ("null", r"~|null|Null|NULL|none|None|NONE|", ["~", "n", "N", ""]),
    ):
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), list(first))


for _kind in (_Loader, _Dumper):
    _teach_numbers_and_none(_kind)
