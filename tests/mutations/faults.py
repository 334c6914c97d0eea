"""Faults to inject: one wrong line each, and the tests that notice it."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One replacement in one file.

    Parameters
    ----------
    name : str
    file : str
        Below ``xaurora/``.
    old, new : str
        Code that occurs once in the file, and what replaces it.
    tests : tuple of str
        Files or tests below ``tests/``, of which at least one fails.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "the gradient of the CRPS forgets what lies below zero",
        "distributions/torch_csgd.py",
        "2.0 * (above_c - above_a) - squared,",
        "2.0 * (above_c - above_a),",
        ("distributions/test_torch_csgd.py::test_the_gradient_is_that_of_the_closed_form",),
    ),
    Fault(
        "processes wait in a collective operation",
        "training/parallel.py",
        "while not store.check([key]):",
        "while False:",
        (
            "training/test_parallel.py::test_torchrun_and_a_first_look_that_takes_longer_than_processes_wait",
        ),
    ),
    Fault(
        "a broken sample is used",
        "training/sound.py",
        "if not (bad := self._without_truth(sample)):",
        "if True:",
        ("training/test_sound.py::test_broken_samples_are_skipped_counted_and_named",),
    ),
    Fault(
        "a sum over time takes the wrong frame for a missing one",
        "utils/lazy.py",
        "for position, fill in ((MISSING, np.nan), (NOTHING, 0.0)):",
        "for position, fill in ((NOTHING, 0.0),):",
        ("utils/test_lazy.py::test_any_index_of_a_lazy_array_is_that_of_its_values",),
    ),
    Fault(
        "the first look takes the first frames",
        "training/scan.py",
        "chosen.append(group[places.astype(int)])",
        "chosen.append(group[:size])",
        ("training/test_scan.py::test_a_sample_is_even_over_hours_months_and_years",),
    ),
    Fault(
        "statistics of another region are taken",
        "training/known_statistics.py",
        "return max(gaps) <= max(_EDGE, edge / min(height, width))",
        "return True",
        ("training/test_known_statistics.py::test_other_statistics_are_refused_and_the_fix_works",),
    ),
    Fault(
        "two states that were read at once change places",
        "model/frames.py",
        "both[kind][name] = values",
        "both[kind][name] = values[::-1]",
        ("model/test_loader.py::test_history_is_read_at_once_and_not_copied",),
    ),
    Fault(
        "the hash of a file is taken for changed weights",
        "model/hashing.py",
        "if file is None or not alone or _fingerprint(holder) != loaded:",
        "if file is None or not alone:",
        ("model/test_hashing.py::test_what_has_changed_is_hashed_again",),
    ),
    Fault(
        "negative numbers are sorted the wrong way round",
        "evaluation/windows.py",
        "np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))",
        "np.uint32(0x80000000)",
        ("evaluation/test_windows.py::test_quantiles_are_xarrays",),
    ),
    Fault(
        "moments of eight bits are updated with the first learning rate",
        "training/optimisation.py",
        'group["lr"].fill_(rate * factor)',
        'group["lr"].fill_(rate)',
        ("training/test_eight_bit.py::test_it_learns_nearly_the_same_and_resumes_exactly",),
    ),
    # --- Aurora 1.5 ---
    Fault(
        "rain of an hour is summed with its negative floor",
        "forecasting/job.py",
        "hours.append(step.prediction.surf_vars[name].clamp(min=0.0))",
        "hours.append(step.prediction.surf_vars[name])",
        ("forecasting/test_job.py::test_known_rain_comes_out_as_known",),
    ),
    Fault(
        "noise depends on the hours that are computed",
        "model/noise.py",
        "while self._drawn < SUBSTEPS + hour - 1:",
        "while self._drawn < SUBSTEPS or len(self._last) < SUBSTEPS:",
        ("model/test_rollout.py::test_members_equal_upstreams_rollout_with_their_generator",),
    ),
    Fault(
        "a state is encoded with the lead time of another",
        "model/strips.py",
        "lead = own.lead_time_embed(expansion(lead_times, d).to(shared.dtype))",
        "lead = own.lead_time_embed(expansion(0 * lead_times + 6, d).to(shared.dtype))",
        ("model/test_rollout.py::test_hourly_forecasts_equal_upstreams_rollout",),
    ),
    Fault(
        "insolation is computed on placeholders",
        "model/placement.py",
        "sun.insolation(from_utc(t), grid.latitude, grid.true_longitude)",
        "sun.insolation(from_utc(t), grid.latitude, grid.placed_longitude)",
        ("model/test_rollout.py::test_insolation_of_a_region_is_that_of_the_globe",),
    ),
    Fault(
        "a missing frame is filled with zeros",
        "fields/derived.py",
        "if share > _FEW:",
        "if False:",
        ("fields/test_derived.py::test_a_missing_frame_is_not_filled",),
    ),
    Fault(
        "a pickle may call anything",
        "fields/static_file.py",
        "if (module, name) not in _ALLOWED:",
        "if False:",
        ("fields/test_derived.py::test_a_pickle_that_runs_code_is_refused",),
    ),
    # --- JAX and sensitivities ---
    Fault(
        "east and west are strangers after a shift, in JAX",
        "jax/backbone.py",
        "if axis == 2 and wraps:",
        "if axis == 2 and not wraps:",
        ("jax/test_aurora.py::test_forecasts_are_those_of_torch",),
    ),
    Fault(
        "an adapter acts at every step, in JAX",
        "jax/backbone.py",
        'if self.mode == "from_second":',
        'if self.mode == "never":',
        ("jax/test_aurora.py::test_adapters_depend_on_the_step_as_in_torch",),
    ),
    Fault(
        "samples that fill up a batch are trained on, in JAX",
        "training/jax_steps.py",
        "np.arange(self.module.padded_size(count)) < count, 1.0 / count, 0.0",
        "np.arange(self.module.padded_size(count)) < 99, 1.0 / count, 0.0",
        ("training/test_jax_steps.py::test_losses_and_gradients_are_those_of_torch",),
    ),
    Fault(
        "a sensitivity ignores the user's units",
        "forecasting/sensitivity.py",
        "scale = 1.0 / (own.scale * out_scale)",
        "scale = 1.0 / out_scale",
        ("forecasting/test_sensitivity.py::test_it_is_the_slope_of_the_forecast",),
    ),
    Fault(
        "a file that was rewritten is read on",
        "utils/unchanged.py",
        "if _stamp(path) != stamp:",
        "if False:",
        ("utils/test_unchanged.py",),
    ),
    # --- place and time ---
    Fault(
        "a region wraps round like a globe",
        "model/blocks.py",
        "wraps=self.wraps and warped,",
        "wraps=True,",
        ("model/test_aurora.py::test_a_region_does_not_leak_from_east_to_west",),
    ),
    Fault(
        "longitudes start again at Greenwich",
        "model/placement.py",
        "batch.metadata.lon = longitude.to(batch.metadata.lon)",
        "batch.metadata.lon = batch.metadata.lon",
        ("model/test_aurora.py::test_encodings_across_greenwich_are_the_global_ones_to_the_bit",),
    ),
    Fault(
        "cells of a globe end before the poles",
        "fields/grid/weights.py",
        "else (-90.0, 90.0)",
        "else (ascending[0], ascending[-1])",
        (
            "fields/grid/test_lattice.py"
            "::test_weights_of_a_globe_reach_the_poles_and_those_of_a_region_do_not",
        ),
    ),
    Fault(
        "weights are those of the sorted axis",
        "fields/grid/weights.py",
        "weights[np.argsort(np.argsort(lat))]",
        "weights",
        ("fields/grid/test_lattice.py",),
    ),
    Fault(
        "regridding forgets the convergence of meridians",
        "fields/grid/regridding.py",
        "return np.sin(np.deg2rad(low)), np.sin(np.deg2rad(high))",
        "return np.deg2rad(low), np.deg2rad(high)",
        (
            "sources/imerg/test_opening.py::test_conserves_on_random_globes",
            "fields/test_targets.py::test_a_truth_on_another_grid_is_regridded_conservatively",
        ),
    ),
    Fault(
        "a halo trims the wrong end of the rows",
        "fields/grid/patches.py",
        "rows = slice(top, grid.shape[0] - bottom)",
        "rows = slice(bottom, grid.shape[0] - top)",
        ("fields/grid/test_lattice.py::test_halo_leaves_poles_and_the_wrap_alone",),
    ),
    Fault(
        "local time is taken for UTC",
        "model/batch.py",
        "tz=UTC)",
        "tz=None).replace(tzinfo=UTC)",
        ("model/test_batch.py::test_times_are_utc_whatever_the_zone",),
    ),
    Fault(
        "aware times lose their offset",
        "model/batch.py",
        "time = time.astimezone(UTC).replace(tzinfo=None)",
        "time = time.replace(tzinfo=None)",
        ("model/test_batch.py::test_aware_times_become_utc",),
    ),
    Fault(
        "the history is in the wrong order",
        "model/batch.py",
        "histories = [[states[t - STEP], states[t]] for t in init_times]",
        "histories = [[states[t], states[t - STEP]] for t in init_times]",
        ("model/test_batch.py", "fields/test_conventions.py"),
    ),
    # --- rain and units ---
    Fault(
        "totals cover the hours after the time",
        "fields/precipitation.py",
        "self.index.locate(times - part) for part",
        "self.index.locate(times + part) for part",
        ("fields/test_precipitation.py::test_europe_equals_a_hand_made_sum",),
    ),
    Fault(
        "a gap within a total is bridged",
        "fields/precipitation.py",
        "whole &= index.has(times - span(part * period))",
        "whole |= index.has(times - span(part * period))",
        ("fields/test_precipitation.py::test_a_total_needs_all_its_hours",),
    ),
    Fault(
        "hectopascals are taken for pascals",
        "fields/unit_conversion.py",
        '"hPa": (100.0, 0.0),',
        '"hPa": _SAME,',
        ("fields/test_variables.py::test_conversions_by_hand",),
    ),
    Fault(
        "millimetres are taken for centimetres",
        "fields/unit_conversion.py",
        '"mm": (1e-3, 0.0),',
        '"mm": (1e-2, 0.0),',
        ("fields/test_variables.py::test_conversions_by_hand",),
    ),
    # --- samples and training ---
    Fault(
        "validation follows training without a gap",
        "training/samples.py",
        "train = times[times + window.after < validation[0] - window.before]",
        "train = times[times < validation[0]]",
        ("training/test_samples.py::test_no_window_crosses_the_default_split",),
    ),
    Fault(
        "a latent's digest leaves out the fields that change",
        "training/latent_store.py",
        "for part in (batch.surf_vars, batch.static_vars, batch.atmos_vars):",
        "for part in (batch.static_vars,):",
        ("training/test_latents.py::test_one_corrected_frame_is_noticed",),
    ),
    Fault(
        "temperature counts no more than other variables",
        "training/losses.py",
        '"2t": 3.0',
        '"2t": 1.0',
        ("training/test_finetune.py::test_base_loss_is_auroras_own",),
    ),
    Fault(
        "masked cells are trained on",
        "training/losses.py",
        "weight = (torch.isfinite(target) * domain.area)[..., rows, columns]",
        "weight = (torch.ones_like(target) * domain.area)[..., rows, columns]",
        ("training/test_finetune.py::test_points_without_truth_have_no_weight",),
    ),
    Fault(
        "validation scores are not weighted by area",
        "training/validation.py",
        "share = (torch.isfinite(target) * area)[..., rows, columns]",
        "share = (torch.isfinite(target) * torch.ones_like(area))[..., rows, columns]",
        ("training/test_finetune.py::test_validation_score_is_the_evaluated_one",),
    ),
    Fault(
        "the worst model is kept as the best",
        "training/loop.py",
        'scores["validation_skill_score"] > progress.best',
        'scores["validation_skill_score"] < progress.best or progress.waited < 0',
        ("training/test_finetune.py::test_best_last_and_log_are_kept",),
    ),
    Fault(
        "early stopping never stops",
        "training/loop.py",
        "progress.waited >= patience",
        "progress.waited > 1000 * patience",
        ("training/test_loop.py::test_early_stopping",),
    ),
    Fault(
        "resuming starts the optimiser afresh",
        "training/optimisation.py",
        'if name in state["optimizer"]:',
        'if name in state["optimizer"] and not self.adamw.state:',
        ("training/test_latents.py::test_resume_from_latents_is_exact",),
    ),
    Fault(
        "the moving average follows at once",
        "training/optimisation.py",
        "lerp_(p.detach(), 1.0 - decay)",
        "lerp_(p.detach(), decay)",
        ("training/test_loop.py::test_the_moving_average_is_what_is_kept",),
    ),
    Fault(
        "the learning rate is not warmed up",
        "training/optimisation.py",
        "return (step + 1) / (warmup + 1)",
        "return 1.0",
        ("training/test_loop.py::test_the_table_and_the_rates",),
    ),
    Fault(
        "accumulated gradients on latents are not averaged",
        "training/steps.py",
        "self.optimisation.backward(loss * weight)",
        "self.optimisation.backward(loss)",
        ("training/test_latents.py::test_accumulated_gradients_are_those_of_the_whole_batch",),
    ),
    Fault(
        "accumulated gradients are not averaged",
        "training/steps.py",
        "self.optimisation.backward(total * (weight / count))",
        "self.optimisation.backward(total / count)",
        ("training/test_loop.py::test_accumulated_gradients_are_those_of_the_whole_batch",),
    ),
    Fault(
        "a changed setting of an artefact is not noticed",
        "model/artefact.py",
        "(expected is not None and expected != _digest(value))",
        "False",
        ("model/test_tuned.py::test_damage_is_found",),
    ),
    Fault(
        "training uses the attention of cuDNN",
        "model/execution.py",
        "torch.backends.cuda.enable_cudnn_sdp(False)",
        "torch.backends.cuda.enable_cudnn_sdp(True)",
        ("training/test_loop.py::test_training_leaves_out_the_attention_of_cudnn",),
    ),
    Fault(
        "what cannot be read is a traceback",
        "utils/indexed.py",
        "except _FAILURES as error:",
        "except ZeroDivisionError as error:",
        ("bad_inputs/test_files.py",),
    ),
    # --- the model ---
    Fault(
        "gradients flow through earlier steps",
        "model/rollout.py",
        "following = detach(following)",
        "following = following",
        ("training/test_loop.py::test_push_forward_stops_gradients_between_steps",),
    ),
    Fault(
        "inputs are not clipped between steps",
        "model/rollout.py",
        "model.base.apply_rollout_input_clipping(prediction)",
        "prediction",
        ("forecasting/test_predict.py::test_equals_upstreams_rollout_to_the_bit",),
    ),
    Fault(
        "a merged LoRA is not scaled",
        "model/adapters.py",
        "linear.weight += lora.scaling * (lora.lora_B @ lora.lora_A)",
        "linear.weight += lora.lora_B @ lora.lora_A",
        ("training/test_loop.py::test_saved_loaded_and_merged",),
    ),
    # --- forecasts and members ---
    Fault(
        "a store has the rows of the model",
        "forecasting/writer.py",
        'np.argsort(self.grid.rows, kind="stable"),',
        "np.arange(len(self.grid.rows)),",
        ("forecasting/test_predict.py::test_the_users_own_form",),
    ),
    Fault(
        "members are not ranked like past fields",
        "forecasting/members.py",
        "np.take_along_axis(ordered, ranks.astype(np.int64), axis=0)",
        "ordered",
        ("forecasting/test_members.py::test_members_have_the_past_fields_rank_correlations",),
    ),
    Fault(
        "quantiles may cross",
        "model/heads/families.py",
        "xp.cumsum(steps, 1)",
        "steps",
        ("model/heads/test_families.py::test_quantiles_never_cross",),
    ),
    # --- scores ---
    Fault(
        "the fair CRPS is the plain one",
        "evaluation/statistics.py",
        "(count * (count - 1 if fair else count))",
        "(count * count)",
        ("evaluation/test_metrics.py::test_ensemble_scores_by_hand",),
    ),
    Fault(
        "SEEPS counts totals on the threshold as dry",
        "evaluation/statistics.py",
        "is_dry = x < dry if strict else x <= dry",
        "is_dry = x <= dry",
        (
            "evaluation/test_metrics.py::test_seeps_of_a_total_on_the_threshold",
            "evaluation/test_metrics.py::test_every_figure_of_the_oracle",
        ),
    ),
    Fault(
        "ACC is a covariance",
        "evaluation/formulas.py",
        'm["squared_forecast_anomaly"] * m["squared_truth_anomaly"]',
        'm["squared_forecast_anomaly"] * m["squared_forecast_anomaly"]',
        ("evaluation/test_metrics.py::test_every_figure_of_the_oracle",),
    ),
    Fault(
        "FSS is its own complement",
        "evaluation/formulas.py",
        'return 1.0 - m["fractions_error"]',
        'return m["fractions_error"]',
        ("evaluation/test_metrics.py::test_fss_by_hand",),
    ),
    Fault(
        "the correlation of init times is ignored",
        "evaluation/autocorrelation.py",
        "correlation = np.interp(found, medians, _CORRELATIONS)",
        "correlation = np.zeros_like(found)",
        ("evaluation/test_autocorrelation.py::test_false_positives_are_as_many_as_it_says",),
    ),
    Fault(
        "the window of a climatology is not circular",
        "evaluation/windows.py",
        "distance = np.minimum(distance, _DAYS - distance)",
        "distance = np.minimum(distance, _DAYS)",
        ("evaluation/test_compare.py::test_climatology_is_a_weighted_mean",),
    ),
    # --- files ---
    Fault(
        "a file is written in place",
        "utils/storage.py",
        "write(staged)\n            sync(staged)\n            os.replace(staged, path)",
        "write(path)",
        ("model/test_tuned.py::test_a_file_is_replaced_in_one_step",),
    ),
    Fault(
        "half hours are labelled with their end",
        "sources/imerg/files.py",
        "by_start.get(begin + i * each * MINUTE)",
        "by_start.get(begin + (i + 1) * each * MINUTE)",
        ("sources/imerg/test_opening.py",),
    ),
    Fault(
        "values are cut instead of rounded",
        "sources/preparing.py",
        "half = np.uint32((1 << (shift - 1)) - 1)",
        "half = np.uint32(0)",
        ("sources/test_preparing.py",),
    ),
    # --- memory ---
    Fault(
        "windows of one group get the mask of another",
        "model/windows.py",
        'order = np.argsort(of_window.ravel(), kind="stable")',
        "order = np.arange(len(of_window.ravel()))",
        ("model/test_blocks.py",),
    ),
    Fault(
        "gradients go back to the wrong tokens",
        "model/blocks.py",
        "return _take(given, inverse, empty_inverse), None, None, None, None, fill",
        "return _take(given, inverse.flip(0), empty_inverse), None, None, None, None, fill",
        ("model/test_blocks.py",),
    ),
    Fault(
        "padding of windows is zero after the projection",
        "model/blocks.py",
        "out[empty] = fill",
        "out[empty] = 0.0",
        ("model/test_blocks.py::test_a_block_is_upstreams",),
    ),
    Fault(
        "the bias learns nothing from padding",
        "model/blocks.py",
        "given.index_select(0, empty).sum(dim=0, keepdim=True) if ctx.fills else None",
        "given.new_zeros(1, given.shape[1]) if ctx.fills else None",
        ("model/test_blocks.py::test_a_block_is_upstreams",),
    ),
    Fault(
        "masks are strict whatever the scores",
        "model/blocks.py",
        "< -MASKED - _LOST",
        "< torch.inf",
        ("model/test_blocks.py",),
    ),
    Fault(
        "strips of the decoder swap their levels",
        "model/strips.py",
        "for first in range(0, len(levels), LEVELS):",
        "for first in reversed(range(0, len(levels), LEVELS)):",
        ("model/test_strips.py",),
    ),
    Fault(
        "offloaded inputs come back without their values",
        "model/offload.py",
        "kept.back.copy_(kept.host)\n",
        "kept.back.zero_()\n",
        ("model/test_offload.py",),
    ),
    Fault(
        "only the last batch of a step trains on the host",
        "training/host_optimisation.py",
        "weight.grad.add_(gradient)",
        "weight.grad.copy_(gradient)",
        ("training/test_host_optimisation.py",),
    ),
    Fault(
        "the way that fits is not taken",
        "training/fitting.py",
        "if tried[-1].estimate.memory <= budget and tried[-1].estimate.host <= host:",
        "if True:",
        ("training/test_fitting.py",),
    ),
    Fault(
        "hourly amounts below zero are summed",
        "model/heads/families.py",
        "return x.clamp(0.0, largest)",
        "return x.clamp(max=largest)",
        ("model/heads/test_families.py",),
    ),
    Fault(
        "the sixth hour of the model's own rain counts six times",
        "model/heads/trunk.py",
        "[latents[:, 1 - TIMESTEP_HOURS :], latents[:, :1]]",
        "[latents[:, :1]] * TIMESTEP_HOURS",
        ("model/heads/test_families.py",),
    ),
    Fault(
        "a chunk of a shard is looked for in the order of columns",
        "utils/local_chunks.py",
        "place = np.ravel_multi_index([i % n for i, n in pairs], layout.in_file)",
        'place = np.ravel_multi_index([i % n for i, n in pairs], layout.in_file, order="F")',
        ("utils/test_local_chunks.py",),
    ),
    Fault(
        "a damaged chunk of a local store is not noticed",
        "utils/local_chunks.py",
        'if google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM:].tobytes(), "little"):',
        "if False:",
        ("utils/test_local_chunks.py",),
    ),
    Fault(
        "a slice with a step begins anew in each chunk",
        "utils/local_chunks.py",
        "number, first = divmod(positions[done], length)",
        "number, first = positions[done] // length, 0 if done else positions[done] % length",
        ("utils/test_local_chunks.py",),
    ),
    Fault(
        "the noise of an hour is that of the last one asked for",
        "model/noise.py",
        "if self._drawn > SUBSTEPS + hour - 1:",
        "if False:",
        ("training/test_build.py",),
    ),
    Fault(
        "hidden values that something else reads are overwritten",
        "model/placement.py",
        "if known and not linear._forward_hooks:",
        "if known:",
        ("model/test_placement.py",),
    ),
    Fault(
        "a frozen decoder runs at once in training",
        "model/strips.py",
        "strips = list(_evenly(height, 2))",
        "pass",
        ("model/test_strips.py",),
    ),
)


def faulty(text: str, fault: Fault) -> str:
    """Return a file's text with the fault in it.

    Raises
    ------
    ValueError
        If the code that the fault replaces does not occur exactly once.
    """
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"'{fault.name}': {fault.old!r} occurs {count} times in {fault.file}")
    return text.replace(fault.old, fault.new)
