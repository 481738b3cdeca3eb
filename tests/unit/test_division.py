"""Dividing an image: the right layers, and a configuration that says nothing of the others."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest

from cisfs.errors import FormatError, UsageError
from cisfs.registry.documents import Json
from cisfs.registry.image import listed
from cisfs.runtime.images import division
from cisfs.runtime.images.division import Choice
from cisfs.runtime.images.suspects import find

IDS = [f"sha256:{digit * 64}" for digit in "1234"]
BLOBS = [f"sha256:{digit * 64}" for digit in "abcd"]
DOCUMENT: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-01T00:00:00Z",
    "container_config": {"Env": ["SECRET=x"], "Cmd": ["secret"]},
    "container": "f00",
    "moby.buildkit.buildinfo.v1": "eyJhdHRycyI6e319",
    "moby.buildkit.cache.v0": "eyJhdHRycyI6e319",
    "of somebody else": [1],
    "config": {"Env": ["PATH=/bin", "DB_PASSWORD=x"], "Labels": {"token": "y", "a": "b"}},
    "rootfs": {"type": "layers", "diff_ids": IDS},
    "history": [
        {"created_by": "ADD base"},
        {"created_by": "ENV A=b", "empty_layer": True},
        {"created_by": "RUN packages", "author": "me"},
        {"created_by": "ENV TOKEN=abc", "empty_layer": True},
        {"created_by": "COPY secret-plans /app"},
        {"created_by": "RUN make"},
        {"created_by": 'CMD ["x"]', "empty_layer": True},
    ],
}


def kept(**choice: Any) -> int:
    return Choice(**choice).kept(IDS, BLOBS)


def test_layers_are_chosen_by_number_digest_or_base() -> None:
    assert [kept(top=n) for n in (1, 2, 4)] == [3, 2, 0]
    assert kept(from_layer=IDS[2]) == kept(from_layer=BLOBS[2]) == kept(from_layer=IDS[2][:14]) == 2
    assert kept(base=tuple(IDS[:1])) == 1
    assert kept(base=()) == 0
    assert Choice(from_layer=IDS[0]).kept([IDS[1], IDS[0], IDS[0]], BLOBS[:3]) == 1


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"top": 5}, "--top 5: the image has 4 layers"),
        ({"top": 0}, "--top 0: the image has 4 layers"),
        ({"from_layer": f"sha256:{'9' * 64}"}, "the image has no such layer"),
        ({"from_layer": "sha256:11"}, "the image has no such layer"),
        ({"from_layer": ""}, "the image has no such layer"),
        ({"base": tuple(IDS[1:2])}, "was not built on that one"),
        ({"base": (*IDS, IDS[0])}, "was not built on that one"),
        ({"base": tuple(IDS)}, "so none to seal"),
    ],
)
def test_what_cannot_be_chosen_is_refused(choice: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        kept(**choice)


def test_a_layer_that_is_public_too_is_not_sealed() -> None:
    division.check_apart(IDS[:2], IDS[2:])
    division.check_apart([division.EMPTY_DIFF_ID], [division.EMPTY_DIFF_ID])
    with pytest.raises(UsageError, match="occurs twice, below and above the division"):
        division.check_apart([IDS[0], IDS[1]], [IDS[2], IDS[0]])


def test_the_public_configuration_is_that_of_the_layers_that_stay() -> None:
    before = copy.deepcopy(DOCUMENT)
    made = division.public(DOCUMENT, 2)
    assert before == DOCUMENT
    assert made["rootfs"] == {"type": "layers", "diff_ids": IDS[:2]}
    assert made["history"] == DOCUMENT["history"][:3]
    assert not made.keys() & {"container", "container_config"}
    assert "eyJhdHRycyI6e319" not in str(made)
    for key in ("architecture", "os", "created", "config", "of somebody else"):
        assert made[key] == DOCUMENT[key]
    assert division.public(DOCUMENT, 1)["history"] == DOCUMENT["history"][:1]
    assert "history" not in division.public({"rootfs": DOCUMENT["rootfs"]}, 2)


def test_an_image_of_nothing_has_an_empty_layer() -> None:
    made = division.public(DOCUMENT, 0)
    digest = hashlib.sha256(division.EMPTY_LAYER).hexdigest()
    assert made["rootfs"]["diff_ids"] == [division.EMPTY_DIFF_ID] == [f"sha256:{digest}"]
    assert len(made["history"]) == 1
    assert "secret" not in str(made["history"])


def test_what_looks_secret_is_taken_out_and_kept() -> None:
    made, taken = division.scrubbed(DOCUMENT, find(DOCUMENT))
    assert made["config"] == {"Env": ["PATH=/bin"], "Labels": {"a": "b"}}
    assert taken == {"env": ["DB_PASSWORD=x"], "labels": {"token": "y"}}
    assert made["history"][3] == {
        "created_by": "removed by cisfs seal --scrub",
        "empty_layer": True,
    }
    assert [each for each in find(made) if division.can_be_scrubbed(each)] == []
    assert division.scrubbed({}, []) == ({}, {"env": [], "labels": {}})
    assert division.scrubbed({"config": None}, [])[0] == {"config": None}


LICENSE = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def scrubbed(config: dict[str, Any], *history: str) -> tuple[dict[str, Any], list[str]]:
    """What becomes of a configuration, and the names of what is said to stay."""
    document = {"config": config, "history": [{"created_by": each} for each in history]}
    made, taken = division.scrubbed(document, find(document))
    return made, [str(each) for each in find(made, division.values_of(taken))]


def test_the_history_does_not_repeat_what_was_taken_out() -> None:
    """A random text is known by its variable only: in a command it has no name to judge it by."""
    config = {"Env": [f"LICENSE={LICENSE}"], "Labels": {"note": 'say "Xy12-zw34_Ab56+Cd78/" twice'}}
    made, said = scrubbed(
        config,
        f"ENV LICENSE={LICENSE}",
        r'LABEL note="say \"Xy12-zw34_Ab56+Cd78/\" twice"',
        "COPY app /app",
    )
    assert LICENSE not in str(made)
    assert "Xy12" not in str(made)
    assert made["history"][2] == {"created_by": "COPY app /app"}
    assert said == []


def test_variables_and_labels_that_repeat_what_was_taken_out_go_too() -> None:
    made, said = scrubbed(
        {
            "Env": ["PATH=/opt/app:/bin", "DB_PASSWORD=hunter2", "COPY=hunter2", "USED=a:hunter2"],
            "Labels": {"plain": "it is hunter2", "other": "b"},
        }
    )
    assert made["config"] == {"Env": ["PATH=/opt/app:/bin"], "Labels": {"other": "b"}}
    assert said == []


def test_commands_that_repeat_what_was_taken_out_are_named() -> None:
    """Nothing could put them back, so they stay; and so does a path with a short word in it."""
    config = {
        "Env": ["PATH=/opt/app/bin", "APPNAME=apps", "LICENSE=" + LICENSE, "DB_PASSWORD=app"],
        "Entrypoint": ["serve", LICENSE],
        "Cmd": ["-p", "app"],
        "Healthcheck": {"Test": ["CMD", "check", LICENSE]},
    }
    made, said = scrubbed(config, "RUN make app", "RUN make apps")
    assert made["config"]["Env"] == ["PATH=/opt/app/bin", "APPNAME=apps"]
    assert [each["created_by"] for each in made["history"]] == [
        "removed by cisfs seal --scrub",
        "RUN make apps",
    ]
    why = "looks like a value that was taken out elsewhere"
    assert said == [f"{each}: {why}" for each in ("Env PATH", "Entrypoint", "Cmd", "Healthcheck")]


def test_what_is_taken_out_is_not_without_end() -> None:
    document = {"config": {"Env": [f"TOKEN{n}_KEY_TOKEN=x{n}" for n in range(1001)]}}
    with pytest.raises(FormatError, match="more than 1000 variables and labels"):
        division.scrubbed(document, find(document))


@pytest.mark.parametrize(
    "document",
    [
        {"config": "x"},
        {"config": {"Env": 5}},
        {"config": {"Env": [1]}},
        {"config": {"Env": {"A": "b"}}},
        {"config": {"Labels": [{}]}},
        {"history": 5},
    ],
)
def test_configurations_that_are_none(document: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="its configuration has"):
        division.scrubbed(document, find(document))


@pytest.mark.parametrize(
    "rootfs",
    [None, [], {}, {"diff_ids": 1}, {"diff_ids": ["sha256:1"]}, {"diff_ids": [1]},
     {"diff_ids": IDS * 300}],
)  # fmt: skip
def test_layers_that_are_not_well_listed_are_refused(rootfs: Json) -> None:
    with pytest.raises(FormatError, match="the image's configuration"):
        listed({"rootfs": rootfs})
