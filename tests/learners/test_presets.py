"""Presets: what the papers say and what their released code did, option by option (arXiv 2507.19849, 2603.03078)."""

from __future__ import annotations

from typing import Any

import pytest

from learners.aepo import AEPOConfig
from learners.arpo import ARPOConfig
from learners.rapo import RAPOConfig
from learners.run.command import parse
from learners.run.config import RunConfig

COMMON = {"kl_coefficient": 0.0, "schedule": "constant", "group_size": 16}

STATED: list[tuple[type[RunConfig], str, dict[str, Any]]] = [
    (
        ARPOConfig,
        "paper",  # section 3 and appendix C.2; the clip is not stated: PPO's 0.2
        COMMON
        | {"initial_rollouts": 8, "branch_rule": "threshold", "alpha": 0.5, "beta": 0.2, "tau": 0.5, "advantage": "soft"}
        | {"entropy_of": "after", "entropy_norm": "vocab", "average": "sequence-mean", "surrogate": "clip", "clip_low": 0.2}
        | {"clip_high": 0.2, "entropy": "full"},
    ),
    (
        ARPOConfig,
        "released",
        COMMON
        | {"initial_rollouts": 8, "branch_rule": "coin", "alpha": 0.5, "beta": 0.2, "advantage": "soft", "branches": 1}
        | {"entropy_of": "before", "entropy_norm": "log-vocab", "average": "token-mean", "surrogate": "dual-clip"}
        | {"entropy_tokens": 20, "clip_low": 0.2, "clip_high": 0.2, "entropy": "top-k-sum", "entropy_top": 10},
    ),
    (
        AEPOConfig,
        "released",  # ARPO's rollouts with the four changes of AEPO; alpha, beta and the clip are ARPO's
        COMMON
        | {"pre_monitoring": True, "monitoring_weight": 0.5, "branch_penalty": 0.05, "entropy_advantage": 0.2}
        | {"branch_rule": "coin", "alpha": 0.5, "beta": 0.2, "entropy_of": "before", "entropy_norm": "log-vocab"}
        | {"entropy": "top-k-sum", "entropy_top": 10, "surrogate": "preserve-high", "average": "token-mean"},
    ),
    (
        RAPOConfig,
        "paper",  # section 4 and appendix C.3.2
        COMMON
        | {"hybrid_rollouts": 8, "retrieve_probability": 0.5, "retrieved": "best-match", "shaping": 0.05}
        | {"retrieve_level": "step", "noise": 0.0, "retrieve_hint": "none", "step_entropy": "mean"}
        | {"retrieval_weight": 0.2, "fret_length": "trace", "sequence_length": "all", "average": "sequence-mean"}
        | {"surrogate": "clip", "clip_low": 0.28, "clip_high": 0.28, "exclude_task": False, "exclude_final": False},
    ),
    (
        RAPOConfig,
        "released",
        COMMON
        | {"hybrid_rollouts": 7, "retrieve_probability": 0.5, "retrieved": "best-reward", "shaping": 0.05}
        | {"retrieve_level": "step", "noise": 0.0, "retrieve_hint": "inline", "step_entropy": "first"}
        | {"step_entropy_tokens": 20, "entropy": "top-k-sum", "entropy_top": 10}
        | {"retrieval_weight": 0.2, "fret_length": "block", "sequence_length": "response", "average": "token-mean"}
        | {"surrogate": "dual-clip", "clip_low": 0.2, "clip_high": 0.28, "exclude_task": False, "exclude_final": False},
    ),
]


@pytest.mark.parametrize(("config_class", "name", "stated"), STATED, ids=lambda value: getattr(value, "__name__", None))
def test_a_preset_is_what_was_stated(config_class: type[RunConfig], name: str, stated: dict[str, Any]) -> None:
    config = parse(config_class, ["--preset", name], "")
    assert {option: getattr(config, option) for option in stated} == stated
    assert config.preset == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("config_class", [ARPOConfig, RAPOConfig])
def test_what_is_written_out_goes_before_the_preset(config_class: type[RunConfig]) -> None:
    config = parse(config_class, ["--clip-high", "0.5", "--preset=released", "--group-size", "8"], "")
    assert (config.clip_high, config.group_size, config.surrogate) == (0.5, 8, "dual-clip")  # type: ignore[attr-defined]


@pytest.mark.parametrize("config_class", [AEPOConfig, ARPOConfig, RAPOConfig])
def test_without_a_preset_the_options_are_ours(config_class: type[RunConfig]) -> None:
    assert parse(config_class, [], "") == config_class()


def test_an_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(RAPOConfig, ["--preset", "theirs"], "")
    assert exit.value.code == 2
    assert "theirs" in capsys.readouterr().err
