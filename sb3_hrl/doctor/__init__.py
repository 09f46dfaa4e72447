"""Finds what is wrong with an environment or a run: symptom, metric and cure, as listed in docs/troubleshooting.md."""

from sb3_hrl.doctor.environment import diagnose_env
from sb3_hrl.doctor.findings import Finding
from sb3_hrl.doctor.log import diagnose_log, diagnose_run

__all__ = ["Finding", "diagnose_env", "diagnose_log", "diagnose_run"]
