"""Saves an agent without the state that only training needs, and sets either all parameters of an agent, or none."""

import copy
import io
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TensorDict

FRESH_OPTIMIZERS = (
    "This agent comes from a file without optimizer states and target networks, like those in `trained_agents`: training "
    "continues with fresh optimizers and with copies of the networks, and the agent may get worse at first."
)


def drop_training_state(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """
    Write a smaller, compressed file of a saved :class:`~sb3_hrl.HierarchicalDDPG`, without the optimizer states and target
    networks that only training needs. ``load`` works as usual. Further training starts with fresh optimizers, and with copies
    of the networks as target networks. The function runs no code from the file.

    :param source: zip-file written by ``save``
    :param target: zip-file to write; it can be the same file
    """
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith("optimizer.pth")}
    weights = th.load(io.BytesIO(entries["policy.pth"]), map_location="cpu", weights_only=True)
    kept, policy = {name: value for name, value in weights.items() if _network_of(name) not in weights}, io.BytesIO()
    th.save(kept, policy)
    entries["policy.pth"] = policy.getvalue()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries.items():
            # Without the current date, the same agent always gives the same file
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def with_fresh_training_state(model: BaseAlgorithm, params: TensorDict) -> dict[str, Any]:
    """
    :param model: model whose parameters will be set
    :param params: parameters of a file written by :func:`drop_training_state`
    :return: these parameters with fresh optimizers, and with copies of the networks as target networks
    """
    own, weights = model.get_parameters(), dict(params.get("policy", {}))
    targets = {name: weights[_network_of(name)] for name in own["policy"] if _network_of(name) in weights}
    optimizers = {name: {**own[name], "state": {}} for name in own if name.endswith("optimizer")}
    return {**params, "policy": targets | weights, **optimizers}


def _network_of(parameter: str) -> str | None:
    """:return: the name of the same parameter in the network that a target network follows; None for other parameters"""
    return parameter.replace("_target.", ".") if "_target." in parameter else None


def set_all_or_none(set_parameters: Callable[[Any], None], model: BaseAlgorithm, params: TensorDict) -> None:
    """
    :param set_parameters: function that sets parameters; it may fail after some of them are set
    :param model: the model
    :param params: the new parameters
    :raises RuntimeError: if the parameters do not fit; the model is then unchanged
    """
    own = copy.deepcopy(model.get_parameters())
    try:
        set_parameters(params)
        _check_optimizers(model)
    except Exception as error:
        # torch copies the parameters that fit before it raises an error about the others
        set_parameters(own)
        # Not a ValueError: SB3's `load` would mistake it for that of an old DQN model
        raise RuntimeError(
            "The parameters do not fit this model, which keeps its own: create it with the spaces, `policy_kwargs`, `planner` "
            "and `net_arch` of the model that they come from, as `HierarchicalDDPG.load` does unless other ones are passed. "
            f"{error}"
        ) from error


def _check_optimizers(model: BaseAlgorithm) -> None:
    """Check the states of the optimizers, which torch does not check."""
    state_dicts = model.get_parameters()
    for name, optimizer in ((name, _attribute(model, name)) for name in state_dicts if name.endswith("optimizer")):
        for parameter, state in optimizer.state.items():
            if any(th.is_tensor(value) and value.shape not in ((), parameter.shape) for value in state.values()):
                raise ValueError(f"The state of `{name}` has another shape than the parameters.")


def _attribute(model: BaseAlgorithm, dotted: str) -> Any:
    value: Any = model
    for name in dotted.split("."):
        value = getattr(value, name)
    return value
