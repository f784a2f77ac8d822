"""Decentralized training rules, one paper per file."""

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.cdmsgd import CDMSGD
from flower_dhb.algorithms.centralized import Centralized
from flower_dhb.algorithms.decentlam import DecentLaM
from flower_dhb.algorithms.diloco import DiLoCo
from flower_dhb.algorithms.dsgd import DSGD
from flower_dhb.algorithms.exact_diffusion import ExactDiffusion
from flower_dhb.algorithms.gasloc import GASLoC
from flower_dhb.algorithms.global_update_tracking import GlobalUpdateTracking
from flower_dhb.algorithms.gradient_tracking import GradientTracking
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.algorithms.momentum_tracking import MomentumTracking
from flower_dhb.algorithms.motef import MoTEF
from flower_dhb.algorithms.noloco import NoLoCo
from flower_dhb.algorithms.push_sum import PushSum
from flower_dhb.algorithms.quasi_global import QuasiGlobal
from flower_dhb.algorithms.registry import (
    ALGORITHMS,
    METHODS,
    algorithm_from_config,
    check_relayed,
    default_algorithm,
    known_names,
    method,
    method_config,
    register,
    relayed_methods,
    require_rule,
    rule_class,
    settings_of,
)
from flower_dhb.algorithms.safeguarded import SafeguardedHeavyBall

__all__ = [
    "ALGORITHMS",
    "CDMSGD",
    "DSGD",
    "METHODS",
    "Algorithm",
    "Centralized",
    "DecentLaM",
    "DiLoCo",
    "ExactDiffusion",
    "GASLoC",
    "GlobalUpdateTracking",
    "GradientTracking",
    "HeavyBall",
    "MoTEF",
    "MomentumTracking",
    "NoLoCo",
    "PushSum",
    "QuasiGlobal",
    "SafeguardedHeavyBall",
    "algorithm_from_config",
    "check_relayed",
    "default_algorithm",
    "known_names",
    "method",
    "method_config",
    "register",
    "relayed_methods",
    "require_rule",
    "rule_class",
    "settings_of",
]
