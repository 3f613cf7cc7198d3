"""The public surface of the attacks: what scripts may rely on, each with a docstring."""

from __future__ import annotations

import inspect

from dpaudit import attacks

NAMES = """
CalibratedAttack Canary CanarySet CandidateSecrets Committed Extraction GradientCanaries GradientNormAttack Holdout
LiraAttack LossAttack MinKAttack NeighbourhoodAttack ProjectionAttack QuantileAttack RmiaAttack ScalarCanaries Secret
ShadowSignals TokenStatistics ZlibAttack canary_losses candidate_losses choose_offline_a commit dirac_canaries
draw_candidates draw_nonce flip_coins gradient_norm_scores gradient_norms guess_candidates high_temperature_canaries
hold_out holdout_ids inserted interference_factor label_flip_canaries lira_offline_scores lira_online_scores
logit_confidence loss_drop_scores loss_scores min_k_plus_plus_scores min_k_scores neighbour_texts neighbourhood_scores
new_token_canaries prefix_suffix_canaries projection_scores random_direction_canaries random_token_canaries read_holdout
read_open read_secret recommended_canaries recommended_canaries_zeroth_order residual_scores rmia_scores scalar_canaries
score_model sequence_losses shadow_memberships signal_strength template_canaries token_statistics train_shadows
unique_records write_holdout write_secret zlib_scores
""".split()


def test_nothing_public_was_renamed() -> None:
    assert not [name for name in NAMES if not hasattr(attacks, name)]


def test_every_public_name_has_a_docstring() -> None:
    bare = [
        name
        for name, value in vars(attacks).items()
        if not name.startswith("_") and not inspect.ismodule(value) and not (inspect.getdoc(value) or "").strip()
    ]
    assert not bare
