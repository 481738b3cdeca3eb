"""The command line of cisfs-runtime: what is taken out of it, and what is understood of it."""

from __future__ import annotations

import pytest

from cisfs.runtime.oci import line


def test_all_words_but_our_own_options_are_for_runc() -> None:
    given = [
        "--root",
        "/r",
        "--runtime-binary",
        "/usr/bin/crun",
        "--store=/s",
        "--policy=/p",
        "--log",
        "l",
        "--debug",
        "state",
        "--x",
        "id",
    ]
    parsed = line.parse(given)
    assert parsed.words == ["--root", "/r", "--log", "l", "--debug", "state", "--x", "id"]
    assert parsed.own == {"runtime-binary": "/usr/bin/crun", "store": "/s", "policy": "/p"}
    assert (parsed.command, parsed.container) == ("state", "id")


@pytest.mark.parametrize("written", ["--bundle /b", "--bundle=/b", "-b /b", "-b=/b", "-bundle /b"])
def test_a_bundle_is_found_however_go_lets_it_be_written(written: str) -> None:
    parsed = line.parse(["create", *written.split(), "--pid-file", "p", "id"])
    assert (parsed.bundle, parsed.container) == ("/b", "id")
    assert parsed.options["pid-file"] == "p"


def test_what_is_missing_has_a_default_or_is_empty() -> None:
    parsed = line.parse(["create", "id"])
    assert (parsed.bundle, parsed.root) == (".", "/run/runc")
    assert line.parse([]).command == line.parse(["--version"]).command == ""
    assert line.parse(["create"]).container == ""


def test_a_value_that_looks_like_a_command_is_none() -> None:
    assert line.parse(["--root", "create", "delete", "-f", "id"]).command == "delete"
    assert line.parse(["--log-format", "json", "kill", "id", "KILL"]).arguments == ["id", "KILL"]


def test_words_of_a_command_are_never_taken_out() -> None:
    given = ["exec", "--store", "id", "sh", "-c", "--runtime-binary x"]
    assert line.parse(given).words == given
    assert line.parse(given).own == {}


def test_an_option_without_its_value_is_left_for_runc_to_judge() -> None:
    assert line.parse(["--root"]).words == ["--root"]
    assert line.parse(["create", "--bundle"]).words == ["create", "--bundle"]


def test_the_container_of_a_checkpoint_is_found_behind_its_options() -> None:
    parsed = line.parse(["checkpoint", "--image-path", "/x", "--leave-running", "id"])
    assert parsed.container == "id"


def test_a_container_is_found_after_the_end_of_options() -> None:
    assert line.parse(["exec", "-t", "--", "id", "sh"]).container == "id"
    assert line.parse(["exec", "--"]).container == ""


@pytest.mark.parametrize("written", ["--process /p", "--process=/p", "-p /p"])
def test_what_to_execute_is_found_and_can_be_replaced(written: str) -> None:
    parsed = line.parse(["exec", "--cwd", "/", "-e", "A=1", *written.split(), "id", "-p", "no"])
    assert (parsed.container, parsed.process) == ("id", "/p")
    parsed.add_option("process", "/other")
    assert parsed.words[-5:] == ["--process", "/other", "id", "-p", "no"]


def test_an_option_is_added_before_the_end_of_options() -> None:
    parsed = line.parse(["exec", "-p", "/p", "--", "id"])
    parsed.add_option("process", "/other")
    assert parsed.words == ["exec", "-p", "/p", "--process", "/other", "--", "id"]


@pytest.mark.parametrize(
    "written",
    ["id --bundle /b --pid-file p", "--pid-file p id -b=/b", "--bundle /b --pid-file=p -- id"],
)
def test_options_are_found_wherever_runc_takes_them(written: str) -> None:
    """Missed, the bundle would be another, and the container would start without its layers."""
    given = ["create", *written.split()]
    parsed = line.parse(given)
    assert (parsed.bundle, parsed.arguments) == ("/b", ["id"])
    assert parsed.options["pid-file"] == "p"
    assert parsed.words == given


def test_what_follows_two_dashes_is_no_option() -> None:
    parsed = line.parse(["run", "--bundle", "/b", "id", "--", "--bundle", "/c"])
    assert (parsed.bundle, parsed.arguments) == ("/b", ["id", "--bundle", "/c"])


@pytest.mark.parametrize("written", ["--config c", "-f c", "--config=c"])
def test_cruns_option_for_another_configuration_is_found(written: str) -> None:
    parsed = line.parse(["run", *written.split(), "id"])
    assert (parsed.config, parsed.container) == ("c", "id")


def test_the_level_of_cruns_log_is_no_command() -> None:
    assert line.parse(["--log-level", "debug", "create", "id"]).command == "create"
