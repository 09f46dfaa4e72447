"""Arguments that are refused."""

import pytest

from sb3_hrl.common.checks import check_keys, require


def test_require_names_the_parameter_its_rule_and_its_value():
    require(True, "n_steps", "at least 1 (steps)", 1)
    with pytest.raises(ValueError, match=r"^`mode` must be \"fast\" or \"slow\", not 'fats'\.$"):
        require(False, "mode", '"fast" or "slow"', "fats")


def test_unknown_keys_are_named_with_the_nearest_known_one():
    check_keys("options", ["noise"], {"noise", "steps"})
    with pytest.raises(
        ValueError, match=r"^`options` has unknown keys: `nois` \(did you mean `noise`\?\), `zzz`\. It may have "
    ):
        check_keys("options", ["nois", "zzz", "steps"], {"noise", "steps"})
