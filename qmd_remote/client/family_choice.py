"""Which family of clients a file is judged for, and that judgement. Pure."""

from __future__ import annotations

from dataclasses import replace

from qmd_remote.client import families
from qmd_remote.client.config_check import Checked, Facts, check_file, project_findings
from qmd_remote.client.families import DEFAULT, FAMILIES, Family
from qmd_remote.client.family_check import Entries, check_family, entries, families_of, others_there, unreadable
from qmd_remote.client.yaml_document import Refused


def check_for(facts: Facts, wanted: Family | None) -> Checked:
    """Judge a file for the family that is wanted, else for the one whose keys it has: the default one comes first."""
    as_json = facts.path.suffix.lower() == ".json"
    fallback = wanted or _usual(as_json=as_json)
    if facts.text is None or facts.unreadable:
        return replace(check_file(facts), client=fallback.name)
    try:
        found = entries(facts.text, facts.path.name, as_json=as_json)
    except Refused as refused:
        return check_file(facts) if fallback.name == DEFAULT else unreadable(facts, fallback.name, refused)
    family = wanted or next(iter(families_of(found, as_json=as_json)), fallback)
    return _judged(facts, family, found).with_findings(others_there(found, family.name, as_json=as_json))


def _judged(facts: Facts, family: Family, found: Entries) -> Checked:
    if family.name == DEFAULT:
        return check_file(facts)
    return check_family(facts, family, found).with_findings(project_findings(facts))


def _usual(*, as_json: bool) -> Family:
    """The family that a file is for when it has the keys of none."""
    return next(one for one in FAMILIES if one.file == "json") if as_json else families.find(DEFAULT)
