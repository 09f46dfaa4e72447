"""The result of a check."""

import math
from collections.abc import Iterable
from typing import NamedTuple

SEVERITIES = ("error", "warning")


class Finding(NamedTuple):
    """A problem that a check has found."""

    severity: str  # "error": training fails or success is not measured; "warning": training is worse than it could be
    check: str  # name of the check, as in docs/troubleshooting.md
    symptom: str  # one sentence
    metric: str  # what was measured
    cure: str  # one sentence that names an option and a value


def error(check: str, symptom: str, metric: str, cure: str) -> Finding:
    """
    :param check: name of the check
    :param symptom: one sentence
    :param metric: what was measured
    :param cure: one sentence that names an option and a value
    :return: a finding of severity "error"
    """
    return Finding("error", check, symptom, metric, cure)


def warning(check: str, symptom: str, metric: str, cure: str) -> Finding:
    """As :func:`error`, with severity "warning"."""
    return Finding("warning", check, symptom, metric, cure)


def has_error(findings: Iterable[Finding]) -> bool:
    """
    :param findings: results of some checks
    :return: whether any of them is an error
    """
    return any(finding.severity == "error" for finding in findings)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """
    :param findings: results of some checks
    :return: errors first, otherwise in the same order
    """
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def rounded(value: float) -> float:
    """
    :param value: a number to recommend
    :return: the number, rounded to two significant digits
    """
    return value if value == 0.0 or not math.isfinite(value) else round(value, 1 - math.floor(math.log10(abs(value))))
