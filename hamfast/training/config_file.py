"""YAML and TOML files as mappings, with errors in one sentence that name the line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from hamfast.data.h5 import read_text
from hamfast.errors import HamfastError

SUFFIXES = (".yaml", ".yml", ".toml")


class _Loader(yaml.SafeLoader):
    """YAML as people write it.

    A key that is given twice is an error. 1e-3 is a number; in YAML 1.1 it would need a dot.
    """

    def construct_mapping(self, node, deep=False):
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                name = self.construct_object(key)
                if name in lines:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` is given twice, first in line {lines[name]}", key.start_mark
                    )
                lines[name] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_mapping(path: Path) -> dict:
    """The content of a configuration file.

    Raises:
        HamfastError: the file is missing, a folder, of another type or encoding, or badly written;
            or a key is given twice.
    """
    text = read_text(path)
    if path.suffix not in SUFFIXES:
        raise HamfastError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, found {path.suffix or 'no ending'!r}"
        )
    language = "TOML" if path.suffix == ".toml" else "YAML"
    try:
        content = tomllib.loads(text) if language == "TOML" else yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise HamfastError(
            f"{path}{where}: not readable as YAML: {_one_line(error.problem or error.context)}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise HamfastError(f"{path}: not readable as TOML: {_one_line(error)}{_toml_line(text, error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # also an impossible date or number
        raise HamfastError(f"{path}: not readable as {language}: {_one_line(error)}") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise HamfastError(f"{path}: expected sections like data: and training:, found {found}")
    return content


def yaml_text(value: Any) -> str:
    """A plain value as it stands after ``key:`` in YAML, quoted where it must be."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = text.strip().removesuffix("...").strip()
    # What PyYAML takes for text, as 1e3, is a number here.
    return text if yaml.load(text, _Loader) == value else json.dumps(value)


def _one_line(problem) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _toml_line(text: str, error: tomllib.TOMLDecodeError) -> str:
    """The line itself: tomllib's message for a key that is given twice does not name it."""
    match = re.search(r"at line (\d+)", str(error))
    if match is None:
        return ""
    line = text.splitlines()[int(match[1]) - 1 : int(match[1])]
    return f": `{_one_line(line[0])}`" if line and line[0].strip() else ""
