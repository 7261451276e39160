"""The parameters cell of a notebook: which names it defines, and whether the values in force fit the presets.

The names are found in IPython's history, so that the same check works under papermill, nbclient and
JupyterLab from any folder: the latest executed cell that assigns ``preset`` and ``seed`` is the parameters
cell, and a later cell that begins with the line ``# Parameters`` is the one papermill injected.
"""

import ast
import difflib
import io
import math
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vinb.tables import Table

PRESETS = ("smoke", "cpu", "paper")
_PLAIN = (bool, int, float, str, list, tuple)
_NOUNS = {bool: "true or false", int: "integer", float: "number", str: "text"}
_PLURALS = {bool: "true or false values", int: "integers", float: "numbers", str: "texts"}


class ParameterError(ValueError):
    """A parameter the notebook does not define, or a value that does not fit; the message says what does."""

    def _render_traceback_(self) -> list[str]:  # IPython: the message says it all, a traceback would bury it
        return [f"ParameterError: {self}"]


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: its default (``...`` where it is not a literal) and its comment."""

    default: Any
    comment: str


def assigned(source: str) -> dict[str, Parameter]:
    """Names assigned at the top level of a cell, in order; empty for a cell that is not plain Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # magics, shell commands
        return {}
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            default = ...
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = Parameter(default, comments.get(node.end_lineno, ""))
    return found


def is_injected(source: str) -> bool:
    """Whether a cell's source is that of the cell papermill puts after the parameters cell."""
    return source.lstrip().split("\n", 1)[0].strip() == "# Parameters"


def find(cells: Sequence[str]) -> tuple[dict[str, Parameter], list[str]]:
    """Parameters of the latest parameters cell among executed `cells`, and the names papermill injected.

    Raises:
        ParameterError: if no cell assigns both ``preset`` and ``seed``.
    """
    i = latest(cells)
    if i is None:
        raise ParameterError(
            "No executed cell assigns both `preset` and `seed`: run the parameters cell (tagged 'parameters', "
            "its first line not '# Parameters') before experiment.begin(globals())."
        )
    injected = [cell for cell in cells[i + 1 :] if is_injected(cell)]
    return assigned(cells[i]), list(assigned(injected[-1])) if injected else []


def latest(cells: Sequence[str]) -> int | None:
    """Index of the latest parameters cell among executed `cells`, None if there is none."""
    for i in reversed(range(len(cells))):
        if not is_injected(cells[i]) and {"preset", "seed"} <= assigned(cells[i]).keys():
            return i
    return None


def check_names(names: Iterable[str]) -> None:
    """Refuses parameters that `Settings` could not show by attribute because it uses the name itself."""
    if odd := [n for n in names if n.startswith("_") or n == "overrides" or hasattr(Settings, n)]:
        raise ParameterError(
            f"parameters cell: {_join(odd)} cannot be a parameter, settings use the name themselves; rename it."
        )


def check_presets(presets: Mapping[str, Mapping[str, Any]], names: Iterable[str] | None) -> None:
    """Refuses presets that are not the three, that differ in their keys, or that set what is no parameter."""
    if set(presets) != set(PRESETS):
        raise ValueError(
            f"presets: needs exactly the keys {', '.join(PRESETS)}; got {', '.join(map(str, presets))}."
        )
    for preset in PRESETS[1:]:
        if odd := set(presets[preset]) ^ set(presets["smoke"]):
            raise ValueError(
                f"presets: {preset!r} and 'smoke' must set the same names; these differ: {_join(odd)}."
            )
    if odd := {"preset", "seed"} & set(presets["smoke"]):
        raise ValueError(f"presets: must not set {_join(odd)}; whoever runs the notebook does.")
    for key in presets["smoke"]:
        if names is not None and key not in names:
            raise ValueError(
                f"presets: sets {key!r}, which the parameters cell does not assign; add `{key} = None` there."
            )
        for preset in PRESETS:
            if not _is_plain(presets[preset][key]):
                raise TypeError(
                    f"presets[{preset!r}][{key!r}] is a {type(presets[preset][key]).__name__}; "
                    "use true/false, numbers, text, or lists of these."
                )
            if not _is_finite(presets[preset][key]):
                raise ValueError(
                    f"presets[{preset!r}][{key!r}] is {presets[preset][key]!r}; a record holds finite numbers only."
                )


def unknown(notebook: str, names: Iterable[str], parameters: Mapping[str, Parameter], examples=None) -> None:
    """Raises `ParameterError` if `names` has one that `parameters` lacks; suggests the nearest, lists all."""
    wrong = [name for name in names if name not in parameters]
    if wrong:
        hints = []
        for name in wrong:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
            hints.append(
                f"{notebook} has no parameter {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        raise ParameterError("\n".join(hints) + "\n" + listing(parameters, examples))


def listing(parameters: Mapping[str, Parameter], examples: Mapping[str, Sequence[Any]] | None = None) -> str:
    """One line per parameter: name, type, default and comment. `examples`: values in the presets, where known."""
    rows = []
    for name, parameter in parameters.items():
        values = [*(examples or {}).get(name, ()), parameter.default]
        known = [v for v in values if v is not None and v is not ...]
        default = "an expression" if parameter.default is ... else repr(parameter.default)
        kind = describe(known[0]) if known else "any"
        if examples is None and parameter.default is None:  # only the running notebook knows its presets
            kind, default = "", "the preset's value"
        rows.append([name, kind, default, parameter.comment])
    return str(Table(["parameter", "type", "default", "meaning"], rows, caption="Valid parameters:"))


def resolve(
    notebook: str,
    given: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Parameter],
) -> "Settings":
    """Values in force: `given` where not None, else the preset's; types are those of presets and defaults.

    Raises:
        ParameterError: for an unknown preset, a seed that is no non-negative integer, or a value that is ill-typed or
            not finite.
    """
    preset = given["preset"]
    if preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ParameterError(f"preset: {preset!r} is not one of {', '.join(PRESETS)}.{hint}")
    check_seed(seed := given["seed"])
    values, overrides = {}, []
    for name in [n for n in parameters if n not in ("preset", "seed")]:
        value = given[name]
        default = parameters[name].default
        examples = [presets[p][name] for p in (preset, *PRESETS) if name in presets[p]] or [default]
        examples = [e for e in examples if e is not None and e is not ...]
        usual = presets[preset].get(name, None if default is ... else default)
        if value is None:
            value = usual
        elif examples:
            value = _fit(notebook, name, value, examples)
        elif not _is_plain(value):
            raise ParameterError(
                f"{name}: needs plain data (numbers, text, lists); got a {type(value).__name__}."
            )
        if not _is_finite(value):
            raise ParameterError(f"{name}: needs finite numbers, which a record can hold; got {value!r}.")
        values[name] = value
        if value != usual:
            overrides.append(name)
    return Settings(preset, seed, values, tuple(overrides), presets)


def check_seed(seed: Any) -> None:
    """Refuses what is no non-negative integer of 32 bits."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ParameterError(f"seed: needs an integer from 0 to 2**32 - 1; got {seed!r}.")


def describe(example: Any) -> str:
    """The type of a value in words: ``integer``, ``list of integers``."""
    if isinstance(example, list | tuple):
        kinds = {type(item) for item in example}
        kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
        return f"list of {_PLURALS.get(kind, 'lists' if kind in (list, tuple) else 'values')}"
    return _NOUNS[type(example)]


def _fit(notebook: str, name: str, value: Any, examples: Sequence[Any]) -> Any:
    for example in examples:
        fitted = _coerce(value, example)
        if fitted is not _MISFIT:
            return fitted
    wanted = describe(examples[0])
    hint = ""
    if isinstance(value, str) and isinstance(examples[0], list | tuple):
        hint = (
            f" Lists are given to papermill by -y '{name}: {list(examples[0])!r}' and to "
            f"vinb run by -p '{name}={list(examples[0])!r}'."
        )
    raise ParameterError(
        f"{name}: {notebook} needs {'an' if wanted[0] in 'aei' else 'a'} {wanted}, such as {examples[0]!r}; "
        f"got {value!r} ({type(value).__name__}).{hint}"
    )


_MISFIT = object()


def _coerce(value: Any, example: Any) -> Any:
    """`value` in the type of `example` (an integer may stand for a float), or `_MISFIT`."""
    if isinstance(example, list | tuple):
        if not isinstance(value, list | tuple):
            return _MISFIT
        items = []
        for item in value:
            fits = (f for f in (_coerce(item, e) for e in example) if f is not _MISFIT)
            fitted = next(fits, _MISFIT) if example else item
            if fitted is _MISFIT:
                return _MISFIT
            items.append(fitted)
        return type(example)(items)
    if type(example) is float and type(value) is int:
        return float(value)
    return value if type(value) is type(example) else _MISFIT


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in _PLAIN


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))


class Settings:
    """The values in force, by attribute: ``settings.latent_dims``. Shows itself as a table of the presets.

    Attributes:
        preset: the preset in force.
        seed: the seed.
        overrides: names of the parameters that differ from the preset.

    Every other parameter is an attribute as well.
    """

    def __init__(self, preset: str, seed: int, values: dict[str, Any], overrides: tuple[str, ...], presets):
        self.__dict__.update(values)
        self.__dict__.update(preset=preset, seed=seed, overrides=overrides, _values=values, _presets=presets)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        near = difflib.get_close_matches(name, self._values, n=1)
        raise AttributeError(f"no parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"settings cannot be changed here; set {name} in the parameters cell and run from there"
        )

    def as_dict(self) -> dict[str, Any]:
        """Name -> value in force, without preset and seed."""
        return dict(self._values)

    def table(self) -> Table:
        """One row per parameter: its value in each preset and in this run, overrides marked."""

        def text(value: Any) -> str:
            return "–" if value is None else value if isinstance(value, str) else repr(value)

        rows, emphasis = [], {}
        for i, (name, value) in enumerate(self._values.items()):
            changed = name in self.overrides
            per_preset = [text(self._presets[p][name]) if name in self._presets[p] else "" for p in PRESETS]
            rows.append([name, *per_preset, text(value) + (" (override)" if changed else "")])
            if changed:
                emphasis[i, 4] = "font-style: italic"
        columns = ["parameter", *(f"{p} (active)" if p == self.preset else p for p in PRESETS), "this run"]
        active = 1 + PRESETS.index(self.preset)
        return Table(
            columns,
            rows,
            right=frozenset({1, 2, 3, 4}),
            caption=f"preset {self.preset}, seed {self.seed}",
            emphasis=emphasis,
            strong=frozenset({active, 4}),
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        return str(self.table())
