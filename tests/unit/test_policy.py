"""The trust policy: what its language means, and that nothing in it is passed over."""

from __future__ import annotations

import pytest

from cisfs.errors import UntrustedError
from cisfs.layer.policy import Policy, parse
from cisfs.layer.reference import canonical_reference, is_below, prefix

KEYS = {name: bytes([at]) * 32 for at, name in enumerate(["a", "b", "c"])}
STORE = "/var/lib/cisfs/layers/"


def policy(text: str) -> Policy:
    return parse(text.encode(), KEYS.__getitem__)


def rules(patterns: str) -> Policy:
    return policy(f'[[rule]]\nlayers = {patterns}\nsigners = ["a"]\n')


def is_about(pattern: str, path: str) -> bool:
    name = path.removeprefix(STORE) if path.startswith(STORE) else ""
    return bool(rules(f'["{pattern}"]').demands(path, name))


# -- which rules hold ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("payroll", f"{STORE}payroll.cis"),
        ("payroll.cis", f"{STORE}payroll.cis"),
        ("payroll*", f"{STORE}payroll-2.cis"),
        ("payroll", f"{STORE}payroll"),
        ("pay?oll", f"{STORE}payroll.cis"),
        ("[p-q]ayroll", f"{STORE}payroll.cis"),
        (f"{STORE}*", f"{STORE}payroll.cis"),
        ("/srv/layers/*.cis", "/srv/layers/a.cis"),
        ("/srv/layers/*.cis", "/srv/layers/.cis"),
        ("/srv/*/a.cis", "/srv/layers/a.cis"),
        ("/srv/**", "/srv/layers/deep/a.cis"),
        ("/srv/**", "/srv"),
        ("/**/a.cis", "/a.cis"),
        ("/**/a.cis", "/srv/layers/a.cis"),
        ("/srv/**/x/**/a.cis", "/srv/1/x/2/3/a.cis"),
        ("/**", "/anything/at/all"),
    ],
)
def test_a_rule_is_about(pattern: str, path: str) -> None:
    assert is_about(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("payroll", f"{STORE}payroll-2.cis"),
        ("payroll", "/srv/payroll.cis"),
        ("*", "/srv/payroll.cis"),
        ("Payroll", f"{STORE}payroll.cis"),
        ("/srv/layers/*.cis", "/srv/layers/deep/a.cis"),
        ("/srv/layers/*.cis", "/srv/layers/a.cis/b"),
        ("/srv/layers/*.cis", "/srv/layers/a.cis.sig"),
        ("/srv/**/a.cis", "/srv/a.cisx"),
        ("/srv/layers", "/srv/layers/a.cis"),
        ("/srv/*", "/srv"),
    ],
)
def test_a_rule_is_not_about(pattern: str, path: str) -> None:
    assert not is_about(pattern, path)


def test_all_rules_about_a_layer_hold_and_the_default_only_where_there_is_none() -> None:
    found = policy(
        '[default]\nallow = false\n[[rule]]\nlayers = ["/srv/**"]\nsigners = ["a", "b"]\n'
        '[[rule]]\nlayers = ["/srv/x/*"]\nsigners = ["c", "a"]\nthreshold = 1\n'
    )
    both = found.demands("/srv/x/y.cis", "")
    assert [(each.where, each.threshold) for each in both] == [("rule 1", 2), ("rule 2", 1)]
    assert [each.label for each in both[1].signers] == ["c", "a"]
    assert [each.key for each in both[1].signers] == [KEYS["c"], KEYS["a"]]
    assert [each.where for each in found.demands("/srv/y.cis", "")] == ["rule 1"]
    assert [(each.where, each.forbids) for each in found.demands("/y.cis", "")] == [
        ("[default]", True)
    ]


def test_without_a_default_anything_else_may_be_used() -> None:
    assert rules('["/srv/*"]').demands("/x.cis", "") == []
    assert policy("").demands("/x.cis", "x.cis") == []


def test_what_is_allowed_asks_nobody() -> None:
    (demand,) = policy('[[rule]]\nlayers = ["/*"]\nallow = true\n').demands("/x", "")
    assert (demand.forbids, demand.threshold, demand.signers) == (False, 0, ())


# -- registries ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "reference"),
    [
        ("registry.example/team/", "registry.example/team/app:1"),
        ("registry.example/team", "registry.example/team/app@sha256:00"),
        ("registry.example/team", "registry.example/team/a/b:1@sha256:00"),
        ("registry.example/team/app", "registry.example/team/app:1"),
        ("registry.example/team/app", "registry.example/team/app"),
        ("registry.example", "registry.example/x"),
        ("registry.example:5000/team/", "registry.example:5000/team/app:1"),
        ("Registry.Example/team", "registry.example/team/app"),
        ("registry.example/team", "REGISTRY.example/team/app:Latest"),
        ("registry.example/team", "registry.example:443/team/app"),
        ("registry.example:443/team", "registry.example./team/app"),
        ("registry.example/team", "registry.example:0443/team/app"),
        ("registry.example:5000", "registry.example:05000/team/app"),
        ("[::1]:5000", "[::1]:05000/team/app"),
        ("registry.example:5000/team", "registry.example.:5000/team/app"),
        ("docker.io/team", "index.docker.io/team/app:1"),
        ("registry-1.docker.io/team", "docker.io/team/app:1"),
    ],
)
def test_a_prefix_is_above(registry: str, reference: str) -> None:
    found = policy(f'[[rule]]\nregistries = ["{registry}"]\nsigners = ["a"]\n')
    assert [each.where for each in found.demands_of_reference(reference)] == ["rule 1"]


@pytest.mark.parametrize(
    ("registry", "reference"),
    [
        ("registry.example/team/", "registry.example/teamwork/app"),
        ("registry.example/team/", "registry.example/other/team/app"),
        ("registry.example", "registry.example.evil/app"),
        ("registry.example", "registry.example:5000/app"),
        ("registry.example:5000", "registry.example/app"),
        ("registry.example/team/app", "registry.example/team/app2:1"),
    ],
)
def test_a_prefix_is_not_above(registry: str, reference: str) -> None:
    assert not is_below(canonical_reference(reference), prefix(registry))


def test_rules_of_paths_are_not_about_references() -> None:
    found = policy('[default]\nsigners = ["b"]\n[[rule]]\nlayers = ["/**"]\nsigners = ["a"]\n')
    assert [each.where for each in found.demands_of_reference("h/x")] == ["[default]"]


# -- refusals ------------------------------------------------------------------------------

RULE = '[[rule]]\nlayers = ["x"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "it is not valid TOML"),
        ("[default]\nallow = true\n[default]\nallow = true\n", "it is not valid TOML"),
        ("signers = []", "unknown key 'signers'"),
        ("[defaults]\nallow = true", "unknown key 'defaults'"),
        ("[[rules]]\nallow = true", "unknown key 'rules'"),
        ("default = 1", "[default]: it is not a table"),
        ("[default]", "[default]: it takes either signers or allow"),
        ('[default]\nlayers = ["x"]\nallow = true', "[default]: unknown key 'layers'"),
        ("[rule]\nallow = true", "rule: write [[rule]]"),
        ("rule = [1]", "rule 1: it is not a table"),
        ("[[rule]]\nallow = true", "rule 1: it names neither layers nor registries"),
        (RULE, "rule 1: it takes either signers or allow"),
        (f'{RULE}allow = true\nsigners = ["a"]', "rule 1: it takes either signers or allow"),
        (f"{RULE}allow = 1", "rule 1: allow is true or false"),
        (f"{RULE}allow = true\nthreshold = 1", "rule 1: allow is true or false, and has no"),
        (f'{RULE}signer = ["a"]', "rule 1: unknown key 'signer'"),
        (f"{RULE}signers = []", "rule 1: signers is not a list of texts"),
        (f'{RULE}signers = "a"', "rule 1: signers is not a list of texts"),
        (f"{RULE}signers = [1]", "rule 1: signers is not a list of texts"),
        (f'{RULE}signers = [""]', "rule 1: signers is not a list of texts"),
        (f'{RULE}signers = ["a", "a"]', "rule 1: two of the signers have the same key"),
        (f'{RULE}signers = ["a"]\nthreshold = 0', "rule 1: threshold is not a number from 1 to 1"),
        (f'{RULE}signers = ["a"]\nthreshold = 2', "rule 1: threshold is not a number from 1 to 1"),
        (f'{RULE}signers = ["a"]\nthreshold = true', "rule 1: threshold is not a number"),
        (f'{RULE}signers = ["a"]\nthreshold = 1.0', "rule 1: threshold is not a number"),
        ('[[rule]]\nlayers = ["a/b"]\nallow = true', "rule 1: layers: 'a/b' is neither"),
        ('[[rule]]\nlayers = ["/a/../b"]\nallow = true', "rule 1: layers: '/a/../b' is neither"),
        ('[[rule]]\nlayers = ["/a//b"]\nallow = true', "rule 1: layers: '/a//b' is neither"),
        ('[[rule]]\nlayers = ["/a/"]\nallow = true', "rule 1: layers: '/a/' is neither"),
        ("[[rule]]\nlayers = []\nallow = true", "rule 1: layers is not a list of texts"),
        ('[[rule]]\nregistries = ["/x"]\nallow = true', "rule 1: registries: '/x' is not HOST"),
        ('[[rule]]\nregistries = ["h//x"]\nallow = true', "rule 1: registries: 'h//x' is not"),
        ('[[rule]]\nregistries = ["docker://h"]\nallow = true', "rule 1: registries: "),
        ('[[rule]]\nregistries = ["h/x:1"]\nallow = true', "'h/x:1' names a tag"),
        (f"{RULE}allow = true\n{RULE}allow = 2", "rule 2: allow is true or false"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(UntrustedError) as caught:
        policy(text)
    assert str(caught.value).startswith(words) or words in str(caught.value)


def test_a_policy_is_utf_8() -> None:
    with pytest.raises(UntrustedError, match="not valid TOML"):
        parse(b"\xff", KEYS.__getitem__)
