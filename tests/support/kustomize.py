"""What `kubectl kustomize` makes of an overlay, as far as infra/k8s uses it, for machines without kubectl."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
LOCAL = "config.kubernetes.io/local-config"  # annotation: for the composition alone
_STEP = re.compile(r"\[[^]]*]|[^.\[]+")  # `spec.[name=a].b` -> spec, [name=a], b


def compose(folder: Path) -> list[Resource]:
    """The resources of an overlay's folder."""
    return [each for each in _composed(folder, []) if (each["metadata"].get("annotations") or {}).get(LOCAL) != "true"]


def _composed(folder: Path, given: list[Resource]) -> list[Resource]:
    """`given`, and what a folder's kustomization.yaml adds, changed as it says; those given are a component's alone."""
    text = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "components", "patches", "namespace", "images", "replacements"}
    assert set(text) <= known, f"{folder}: {set(text) - known} is not understood here"
    resources = list(given)
    for name in text.get("resources", ()):
        path = folder / name
        resources += _composed(path, []) if path.is_dir() else [each for each in yaml.safe_load_all(path.read_text())]
    for name in text.get("components", ()):
        resources = _composed(folder / name, resources)
    for patch in text.get("patches", ()):
        content = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
        for each in _selected(resources, patch["target"]):
            _patch(each, content)
    for each in resources if "namespace" in text else ():
        if each["kind"] != "Namespace":
            each["metadata"]["namespace"] = text["namespace"]
    for image in text.get("images", ()):
        _name_image(resources, image)
    for replacement in text.get("replacements", ()):
        _replace(resources, replacement)
    return resources


def _selected(resources: Sequence[Resource], select: dict[str, str]) -> list[Resource]:
    return [
        each
        for each in resources
        if each["kind"] == select["kind"] and select.get("name") in (None, each["metadata"]["name"])
    ]


def _patch(resource: Resource, content: Any) -> None:
    """RFC 6902's operations, or a resource that is merged over this one."""
    if isinstance(content, dict):
        _merge(resource, {name: value for name, value in content.items() if name != "metadata"})
        return
    for step in content:
        value = copy.deepcopy(_found(resource, _pointer(step["from"])) if step["op"] == "copy" else step["value"])
        *parents, last = _pointer(step["path"])
        place = _found(resource, parents)
        if isinstance(place, list):
            if last == "-":
                place.append(value)
            else:
                assert step["op"] == "replace"
                place[int(last)] = value
        else:
            assert step["op"] != "replace" or last in place, f"{step['path']} is not there to be replaced"
            place[last] = value


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def _pointer(text: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _found(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def _name_image(value: Any, image: dict[str, str]) -> None:
    """In every container below `value`."""
    if isinstance(value, dict):
        for container in value.get("containers", ()):
            if container.get("image") == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _name_image(inner, image)


def _replace(resources: Sequence[Resource], replacement: dict[str, Any]) -> None:
    source = replacement["source"]
    [found] = _selected(resources, source)
    value = _found(found, source["fieldPath"].split("."))
    for target in replacement["targets"]:
        for each in _selected(resources, target["select"]):
            for path in target["fieldPaths"]:
                *parents, last = _STEP.findall(path)
                for place in _places(each, parents):
                    assert last in place or (target.get("options") or {}).get("create"), f"{path} is not there"
                    place[last] = copy.deepcopy(value)


def _places(value: Any, steps: Sequence[str]) -> Iterator[Any]:
    """All that a path leads to: `*` is each element of a list, `[name=a]` those of that name."""
    if not steps:
        yield value
    elif steps[0].startswith("["):
        name, _, wanted = steps[0][1:-1].partition("=")
        for each in value:
            if each[name] == wanted:
                yield from _places(each, steps[1:])
    elif steps[0] == "*":
        for each in value:
            yield from _places(each, steps[1:])
    else:
        yield from _places(_found(value, steps[:1]), steps[1:])
