"""What the checks hand back."""

import math
from collections.abc import Iterable
from typing import NamedTuple

SEVERITIES = ("error", "warning")


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: str  # "error": training fails or is blind; "warning": it is worse than it could be
    check: str  # name of the check, as in docs/troubleshooting.md
    symptom: str  # a sentence
    metric: str  # what was measured
    cure: str  # a sentence that names an option and a value


def error(check: str, symptom: str, metric: str, cure: str) -> Finding:
    """
    :param check: name of the check
    :param symptom: a sentence
    :param metric: what was measured
    :param cure: a sentence that names an option and a value
    :return: a finding of severity "error"
    """
    return Finding("error", check, symptom, metric, cure)


def warning(check: str, symptom: str, metric: str, cure: str) -> Finding:
    """As :func:`error`, of severity "warning"."""
    return Finding("warning", check, symptom, metric, cure)


def has_error(findings: Iterable[Finding]) -> bool:
    """
    :param findings: of some checks
    :return: whether one of them is severe
    """
    return any(finding.severity == "error" for finding in findings)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """
    :param findings: of some checks
    :return: errors first, else in the order they came in
    """
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def rounded(value: float) -> float:
    """
    :param value: a number to recommend
    :return: the same with two digits
    """
    return value if value == 0.0 or not math.isfinite(value) else round(value, 1 - math.floor(math.log10(abs(value))))
