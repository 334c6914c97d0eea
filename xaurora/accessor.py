"""``ds.aurora``: every method a few lines that delegate."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from aurora import Batch

    from xaurora.fields.checking import Report
    from xaurora.model.tuned import TunedAurora
    from xaurora.training.estimate import Estimate


@xr.register_dataset_accessor("aurora")
class AuroraAccessor:
    """Aurora for a Dataset: of fields, of a forecast, or of scores.

    The accessor keeps nothing: it would be lost by ``sel`` and travel with every pickle.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        from xaurora.fields.summary import describe

        return describe(self._ds)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    # --- fields ---

    def check(self, target: str | Sequence[str] | None = None, model: Any = "small") -> Report:
        """Every problem at once, each with the line that mends it. Reads a few frames (all of a
        small Dataset in memory).

        Parameters
        ----------
        target : str or sequence of str, optional
            Also look at these variables as something to learn, for example ``"tp"``.
        model : str or model
            For which model the data are meant.

        Returns
        -------
        Report
            ``.ok``, ``.problems`` (code, message, fix), ``.notes``; ``str()`` is readable.
        """
        from xaurora.fields import checking, requirements

        if isinstance(model, str) and model in requirements.MODELS:  # needs no torch
            return checking.check(
                self._ds, target, lambda fields: requirements.needs_of(model, fields)
            )
        from xaurora.model import bridge

        return checking.check(self._ds, target, bridge.needs_for(model))

    def to_batch(self, time: Any = None, *, model: Any = "small") -> Batch:
        """An :class:`aurora.Batch` of one or several init times. Reads their frames.

        Parameters
        ----------
        time : optional
            A time, or several; by default the latest that has a frame six hours before it.
        model : str or model
            Which variables, levels and patches it is made for; ``"tiny"`` takes what is there.

        Returns
        -------
        aurora.Batch
            ``surf_vars`` ``(b, 2, h, w)``, ``static_vars`` ``(h, w)``, ``atmos_vars`` ``(b, 2, c,
            h, w)``, SI units, float32, times in UTC. Rows and columns that patches do not reach are
            left out, and said in the log.

        Raises
        ------
        XauroraError
            What :meth:`check` would list; a time without its history; NaN in a field.
        """
        from xaurora.model import bridge

        return bridge.to_batch(self._ds, time, model)

    def from_batch(self, batch: Batch) -> xr.Dataset:
        """A Batch in this Dataset's own names, units, order, dtype and attributes.

        Parameters
        ----------
        batch : aurora.Batch
            Made by :meth:`to_batch`, or what a model made of it.

        Returns
        -------
        Dataset
            One entry along time for every distinct time in the Batch, history included.

        Raises
        ------
        GridError
            The Batch has another grid.
        """
        from xaurora.model import bridge

        return bridge.from_batch(self._ds, batch)

    def accumulate(self, name: str = "tp", period: str = "6h") -> xr.DataArray:
        """Totals over a period that ends at each time, or of a forecast at each lead time; NaN
        where a part is missing. Lazy.

        Parameters
        ----------
        name : str
            The variable.
        period : str
            Such as ``"6h"`` or ``"24h"``.

        Raises
        ------
        AccumulationError
            Nothing says what the values sum up, or the period cannot be made of them.
        """
        from xaurora.fields import precipitation

        return precipitation.accumulate_in(self._ds, name, period)

    def deaccumulate(self, name: str = "tp", *, every: str = "24h", start: int = 0) -> xr.DataArray:
        """Totals since a base time (ERA5-Land, MARS forecasts) → the total of each step. Lazy, but
        for a look at the first two days.

        Parameters
        ----------
        name : str
            The variable. Of a forecast, totals since the init time become totals between lead
            times.
        every : str
            How often totals start again: ``"24h"`` for ERA5-Land.
        start : int
            First hour UTC at which they do.

        Raises
        ------
        AccumulationError
            The totals fall at other times than these.
        """
        from xaurora.fields import precipitation

        return precipitation.deaccumulate_in(self._ds, name, every, start)

    def statistics(
        self,
        names: Sequence[str] | str | None = None,
        *,
        time: Any = None,
        weights: str | None = "cosine",
        quantiles: Sequence[float] | None = None,
        progress: bool = True,
    ) -> xr.Dataset:
        """Mean, spread, extremes, quantiles and count in one pass. Computes. Memory does not grow
        with the number of times (a chunk of the source is read whole, however large).

        Parameters
        ----------
        names : sequence of str, optional
            Variables in the data's own names; by default all that change over time.
        time : optional
            A slice, a year, or a pair such as ``("2016", "2021")``: the training period; by default
            all times.
        weights : {"cosine", None}
            By the cosine of latitude, or every grid point alike. Counts and extremes have no
            weights.
        quantiles : sequence of float, optional
            By default from 0.01 % to 99.99 %.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        Dataset
            Canonical units. ``name (statistic[, level])``: mean, std, min, max, count, and for
            precipitation wet_fraction, mean and standard deviation of the natural logarithm of wet
            amounts, and how many negative values were set to zero; ``name_quantile (quantile[,
            level])``, the smallest value that at least such a share does not exceed, to a relative
            bin width of 1/4096. Missing values are left out. The attribute ``source_hash`` changes
            with the values, times, points and names that they were computed from, not with their
            chunks.

        Raises
        ------
        XauroraError
            What :meth:`check` would list; an unknown variable; a period without times.
        """
        from xaurora.fields import statistics as normalisation

        q = normalisation.QUANTILES if quantiles is None else quantiles
        return normalisation.summary(
            self._ds, names, time=time, weights=weights, quantiles=q, progress=progress
        )

    def prepare(
        self,
        path: str | Path,
        *,
        target: str | Sequence[str] | None = "tp",
        model: Any = "small",
        region: Any = None,
        time: Any = None,
        bits: int | None = None,
        progress: bool = True,
    ) -> xr.Dataset:
        """A local Zarr store that training reads fast, from data that are far away or whose chunks
        hold whole globes and many times. Computes. An interrupted call goes on where it stopped.

        Parameters
        ----------
        path : path
            Where it is written.
        target : str or sequence of str, optional
            Stored beside the model's variables; precipitation as six-hour totals.
        model : str, optional
            Variables and levels that this one takes; None stores all that were recognised.
        region : str, tuple, mask or polygon, optional
            The box around it, out to whole patches. Then the model sees the region alone: for a
            backbone that sees the globe, prepare the globe and give ``region=`` to
            :meth:`finetune`.
        time : optional
            A slice, a year, or a pair such as ``("2016", "2021")``; by default all times.
        bits : int, optional
            Keep so many of float32's 23 mantissa bits, rounded to the nearest: a relative error of
            at most 2^−(bits+1), in less room. By default nothing is lost.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        Dataset
            Lazy, from the store: the data's own names, canonical units, float32, latitude
            decreasing. ``xaurora.open(path)`` opens it again.

        Raises
        ------
        XauroraError
            What :meth:`check` would list; a path that holds something else; a full disk, after
            which the same call goes on.
        """
        from xaurora.sources import preparing

        return preparing.prepare(
            self._ds,
            path,
            target=target,
            model=model,
            region=region,
            time=time,
            bits=bits,
            progress=progress,
        )

    def finetune(
        self,
        target: str | Sequence[str] = "tp",
        *,
        truth: xr.Dataset | None = None,
        model: Any = "small",
        weights: str | Path | None = None,
        strategy: Any = "frozen",
        head: Any = "auto",
        as_input: bool = False,
        train: Any = None,
        validation: Any = None,
        halo: int = 0,
        region: Any = None,
        out: str | Path | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 1,
        gradient_accumulation: int = 1,
        learning_rate: float | None = None,
        head_learning_rate: float | None = None,
        schedule: str = "cosine",
        warmup: int | None = None,
        clip: float = 1.0,
        weight_decay: float = 0.01,
        base_loss: float = 1.0,
        rollout_steps: int = 1,
        push_forward: bool = False,
        replay_buffer: Any = None,
        precision: str = "auto",
        activation_checkpointing: bool | str = "auto",
        latents: Any = "auto",
        compile: bool = False,
        ema: float | None = None,
        early_stopping: int | None = None,
        validations: int = 10,
        checkpoint_every: int | None = None,
        resume: bool = False,
        devices: int = 1,
        num_nodes: int = 1,
        parallel: str = "auto",
        workers: int = 2,
        seed: int = 0,
        progress: bool = True,
        logger: Any = None,
        **unknown: Any,
    ) -> TunedAurora:
        """Fine-tune an Aurora so that it also predicts six-hour precipitation, or other surface
        variables; or its own variables.

        Parameters
        ----------
        target : str or sequence of str
            What to learn, one or several surface variables. Hourly totals are summed over six
            hours; a variable that is not known here is taken in its own units. ``"all"`` trains
            Aurora's own variables, ``["all", "tp"]`` both.
        truth : Dataset, optional
            Where the target is taken from, by default from the data themselves; aligned in time,
            and brought onto the data's grid conservatively.
        model : str or model
            ``"tiny"`` (made here, random), ``"tiny-pretrained"`` (knows the synthetic fields),
            ``"small"``, ``"base"``, ``"finetuned"``, a :class:`~xaurora.model.tuned.TunedAurora` or
            its path, or an :class:`aurora.Aurora`, which is copied.
        weights : path, optional
            Local checkpoint of the named model; by default it is fetched.
        strategy : {"frozen", "decoder", "lora", "peft", "full"} or StrategyOptions
            What trains: the head alone; the head and the last layers of Aurora's decoding half;
            low-rank adapters, Aurora's own or those of Hugging Face PEFT, on a base that stays as
            it is; or everything.
        head : str, HeadOptions, or dict of them by target
            What is predicted. For precipitation ``"censored_normal"``, ``"hurdle_lognormal"``,
            ``"hurdle_gamma"``, ``"csgd"``, ``"quantile"``, ``"deterministic"``, or the preset
            ``"lehmann2025"``; for others ``"normal"`` or ``"bounded_normal"``. ``"auto"`` goes by
            the variable.
        as_input : bool
            Feed the target to the encoder as well, its embedding starting at zero: a baseline to
            compare with. Forecasts then need the target at init time and six hours before.
        train, validation : optional
            A slice, a year, or a pair such as ``("2016", "2023")``; by default the last fifth
            validates, with a gap between.
        halo : int
            Grid points at the edges of a region that are computed and not trained on (see
            ``docs/regions.md``).
        region : str, tuple, mask or polygon, optional
            Where the target is learnt and scored: a name such as ``"europe"``, a box ``(south,
            north, west, east)``, a DataArray, a polygon. The backbone sees all of the data, the
            heads this part of its latents: with global data a region then has no edges
            (``docs/regions.md``).
        out : path, optional
            Where ``best/``, ``last/``, ``checkpoint/``, ``log.jsonl`` and ``learning.png`` go; by
            default ``runs/<target>-<time>``.
        epochs, steps : int, optional
            How long; ``steps`` takes precedence, ten epochs where neither is given.
        batch_size, gradient_accumulation : int
            Samples at once on each device, and how many such batches make a step.
        learning_rate, head_learning_rate : float, optional
            Peak rate of all parameters, and of new ones alone; by default 1e-3 for new ones and
            5e-5 for pretrained ones (2e-3 for all of a random tiny model).
        schedule, warmup : {"cosine", "constant"}, int
            What the rate does, after so many steps of linear warm-up (a twentieth of all, at most
            1000).
        clip, weight_decay : float
            Largest norm of the gradient, and AdamW's decay.
        base_loss : float
            Weight of Aurora's own loss on its own variables, for strategies that move the base; 0
            turns it off. Rain alone ruins the state that later leads stand on.
        rollout_steps : int
            Six-hour steps of each training forecast; the losses of all are averaged.
        push_forward : bool
            Stop gradients between steps: memory holds one step.
        replay_buffer : int or ReplayOptions, optional
            Keep so many forecasts, on disk, and go one step on with one at a time; they grow up to
            ``rollout_steps`` long.
        precision : {"auto", "32", "bf16", "fp16"}
            Of the backbone; ``"auto"`` is bf16 on a GPU that has it, else float32. ``"fp16"`` is
            for GPUs without bf16.
        activation_checkpointing : bool or "auto"
            Recompute instead of store; ``"auto"`` is on for a GPU when the base trains.
        latents : {"auto", True, False}, path or LatentOptions
            Whether the latents of a frozen backbone are computed once and kept, in bfloat16 unless
            :class:`~xaurora.training.options.LatentOptions` say otherwise, in ``latents/`` beside
            the run's folder or in the store that is named. ``"auto"`` does so where samples are
            seen more than once (``docs/latents.md``).
        compile : bool
            Compile the backbone's blocks with ``torch.compile``: for GPUs. Where it is not
            available, that is said, and they run as they are.
        ema : float, optional
            Decay of a moving average of the weights, which is then what is validated and kept.
        early_stopping : int, optional
            Stop after so many of the ``validations`` without a better score.
        validations : int
            How often to score the validation samples.
        checkpoint_every : int, optional
            Steps between checkpoints; by default a twentieth of all, at least 10 and at most 500.
            One is also written at SIGTERM and Ctrl-C.
        resume : bool
            Go on from the checkpoint in ``out``, to the bit on a CPU; where there is none, begin.
        devices, num_nodes, parallel : int, int, {"auto", "ddp", "fsdp"}
            Devices on each machine (processes where there is no GPU), machines, and whether each
            device holds the whole model. The script is started once more for every other device, or
            by ``torchrun``.
        workers : int
            Threads that read ahead.
        seed : int
            Of initial weights, sample order and dropout.
        progress : bool
            Whether to show a bar with loss and rate.
        logger : optional
            One of Lightning Fabric's loggers, or several. ``log.jsonl`` is always written.

        Returns
        -------
        TunedAurora
            The best by validation CRPS in mm; it is also what ``predict`` takes next in this
            session.

        Raises
        ------
        XauroraError
            What :meth:`check` would list; an unknown option; too few samples for a split; a run to
            resume that was made with other settings; a loss that is no number.

        References
        ----------
        Bodnar et al. (2025), A foundation model for the Earth system,
        doi:10.1038/s41586-025-09005-y. Lehmann et al. (2025), arXiv:2506.19088, for heads on a
        frozen backbone.
        """
        from xaurora.training import finetune as finetuning
        from xaurora.training import options as config

        options = config.training_options(
            {
                "epochs": epochs,
                "steps": steps,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "learning_rate": learning_rate,
                "head_learning_rate": head_learning_rate,
                "schedule": schedule,
                "warmup": warmup,
                "clip": clip,
                "weight_decay": weight_decay,
                "base_loss": base_loss,
                "rollout_steps": rollout_steps,
                "push_forward": push_forward,
                "replay_buffer": replay_buffer,
                "precision": precision,
                "activation_checkpointing": activation_checkpointing,
                "latents": latents,
                "compile": compile,
                "ema": ema,
                "early_stopping": early_stopping,
                "validations": validations,
                "checkpoint_every": checkpoint_every,
                "resume": resume,
                "devices": devices,
                "num_nodes": num_nodes,
                "parallel": parallel,
                "workers": workers,
                "seed": seed,
                "progress": progress,
                "logger": logger,
                **unknown,
            }
        )
        return finetuning.finetune(
            self._ds,
            target,
            truth=truth,
            model=model,
            weights=weights,
            strategy=strategy,
            head=head,
            as_input=as_input,
            train=train,
            validation=validation,
            halo=halo,
            region=region,
            out=out,
            options=options,
        )

    def estimate(
        self,
        target: str | Sequence[str] = "tp",
        *,
        truth: xr.Dataset | None = None,
        model: Any = "small",
        weights: str | Path | None = None,
        strategy: Any = "frozen",
        head: Any = "auto",
        as_input: bool = False,
        train: Any = None,
        validation: Any = None,
        halo: int = 0,
        region: Any = None,
        out: str | Path | None = None,
        compare: bool = False,
        **options: Any,
    ) -> Estimate:
        """What :meth:`finetune` would cost with the same arguments: memory at the peak, time, bytes
        read, disk. Trains nothing, and needs no weights.

        Parameters
        ----------
        target, truth, model, weights, strategy, head, as_input, train, validation, halo, region,
        out, **options
            Those of :meth:`finetune`.
        compare : bool
            Every base and strategy side by side as well.

        Returns
        -------
        Estimate
            Readable when printed; ``memory``, ``available``, ``fits``, ``parts``, ``seconds``,
            ``bytes_read``, ``disk``, ``advice``, ``others``.

        Raises
        ------
        XauroraError
            What :meth:`finetune` would raise before it starts.
        """
        from xaurora.training import estimate as estimation
        from xaurora.training import options as config

        return estimation.estimate(
            self._ds,
            target,
            truth=truth,
            model=model,
            weights=weights,
            strategy=strategy,
            head=head,
            as_input=as_input,
            train=train,
            validation=validation,
            halo=halo,
            region=region,
            out=out,
            options=config.training_options(options),
            compare=compare,
        )

    def predict(
        self,
        lead: Any = "6h",
        *,
        model: Any = None,
        weights: str | Path | None = None,
        time: Any = None,
        variables: Sequence[str] | None = None,
        quantiles: Sequence[float] = (),
        thresholds_mm: Sequence[float] = (),
        members: int = 0,
        past: xr.Dataset | None = None,
        halo: int | None = None,
        region: Any = None,
        store: str | Path | None = None,
        batch_size: int = 1,
        devices: int = 1,
        compile: bool = False,
        precision: str = "auto",
        progress: bool = True,
    ) -> xr.Dataset:
        """Forecast.

        Parameters
        ----------
        lead : str, timedelta, or a list of them
            A multiple of six hours: ``"24h"`` gives every six hours up to it, a list just those.
        model : str or model, optional
            As in :meth:`finetune`; by default the model tuned last in this session.
        weights : path, optional
            Local checkpoint of the named model.
        time : optional
            Init times: one, several, or a slice; by default all that have a frame six hours before
            them.
        variables : sequence of str, optional
            Just these, in the data's own names; by default all of the model's, and the target.
        quantiles : sequence of float
            Adds ``tp_quantile``.
        thresholds_mm : sequence of float
            Adds ``tp_probability``, the probability of more than so many mm.
        members : int
            Gives ``tp`` the dim ``number``: so many members with the head's distribution at every
            point and the dependence of past fields in space and time (Schaake shuffle). The mean is
            then ``tp_mean``.
        past : Dataset, optional
            Fields whose dependence the members take; by default those of the data, the forecast's
            own time left out.
        halo : int, optional
            Grid points trimmed from the edges of a region; by default what the model was tuned
            with.
        region : str, tuple, mask or polygon, optional
            Put out this part alone, as in :meth:`finetune`; the model sees all of the data. Of a
            mask or polygon it is the box around.
        store : path, optional
            A Zarr store that is written one init time after another; an interrupted run goes on
            where it stopped.
        batch_size : int
            Init times at once.
        devices : int
            GPUs that share the init times, each with a copy of the model.
        compile : bool
            Compile the backbone's blocks with ``torch.compile``: worth it on a GPU and for many
            init times. Where it is not available, that is said, and they run as they are.
        precision : {"auto", "32", "bf16"}
            Of the backbone.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        Dataset
            Dims ``(init_time, lead_time[, level], latitude, longitude)`` with ``valid_time``; the
            data's own names, units, latitude order and longitude convention. ``tp`` is the mean
            total over six hours; the head's parameters stand beside it.

        Raises
        ------
        XauroraError
            A lead that is no positive multiple of six hours, an init time without its history, no
            model, and what :meth:`check` would list.
        """
        from xaurora.forecasting import predict as prediction

        return prediction.predict(
            self._ds,
            lead,
            model=model,
            weights=weights,
            time=time,
            variables=variables,
            quantiles=quantiles,
            thresholds_mm=thresholds_mm,
            members=members,
            past=past,
            halo=halo,
            region=region,
            store=store,
            batch_size=batch_size,
            devices=devices,
            compile=compile,
            precision=precision,
            progress=progress,
        )

    # --- a forecast, and its scores ---

    def evaluate(
        self,
        truth: xr.Dataset,
        *,
        climatology: xr.Dataset | None = None,
        metrics: Sequence[str] | str | None = None,
        regions: Any = None,
        thresholds_mm: Sequence[float] = (0.1, 1, 5, 10, 20),
        neighborhood_sizes: Sequence[int] = (1, 3, 5, 9),
        quantile_levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        skipna: bool = False,
        accumulate: str | None = None,
        regrid: str | None = None,
        by: Sequence[str] | str = (),
        lead_bins: dict[str, tuple[Any, Any]] | None = None,
        convention: str = "weatherbench2",
        engine: str = "xaurora",
        seed: int = 0,
        progress: bool = True,
    ) -> xr.Dataset:
        """Score this forecast as WeatherBench2 does. Computes, block by block: memory does not grow
        with the number of init times.

        Parameters
        ----------
        truth : Dataset
            Fields of the same variables, in any naming; hourly precipitation is summed. Where a
            truth is missing by nature, as IMERG is poleward of 60°, what is there is scored, and a
            metric ``coverage`` says how much that is.
        climatology : Dataset, optional
            In WeatherBench2's layout (``hour``, ``dayofyear``); ``acc``, the activities, ``seeps``
            and the scores at climatological quantiles need it.
        metrics : sequence of str, optional
            Names of :data:`xaurora.evaluation.metrics.METRICS`; ``"all"`` for everything that this
            forecast can be scored by; by default what one pass over the fields gives.
        regions : optional
            Names of WeatherBench2's regions, ``"domain"``, a box ``(south, north, west, east)``, a
            DataArray mask, a polygon (GeoJSON), a dict of those, or ``"edge"`` for rings by
            distance from the domain's edge; by default WeatherBench2's regions for a globe, the
            whole ``domain`` for a region, and their land where the truth has a land-sea mask.
        thresholds_mm : sequence of float
            Amounts at which rain is scored as yes or no.
        neighborhood_sizes : sequence of int
            Of FSS, in grid points, odd.
        quantile_levels : sequence of float
            At which quantiles of the forecast are scored.
        skipna : bool
            Leave missing values out, at the same points in all that is compared, instead of passing
            them on.
        accumulate : str, optional
            Sum precipitation over so long first, such as ``"24h"``. Refused where the forecast is a
            distribution at every point for itself.
        regrid : {"conservative"}, optional
            Bring the truth onto the forecast's grid.
        by : str or sequence of {"init_time", "season", "month", "hour", "year"}
            Times to keep apart, each as a dim; all but ``init_time`` are those of the valid time.
        lead_bins : dict, optional
            Label → (first, last) lead, which are scored together: ``{"day 1": ("6h", "24h")}``.
        convention : {"weatherbench2", "weatherbenchx"}
            Whose definition where the two differ: ACC, SEEPS, land, end rows.
        engine : {"xaurora", "weatherbench2"}
            Compute with the classes of an installed WeatherBench2 instead.
        seed : int
            Of what is drawn at random: ties of ranks, PIT of dry points.
        progress : bool
            Whether to show a bar, of work that takes more than two seconds.

        Returns
        -------
        Dataset
            Each variable has the dims ``(metric, region, lead_time[, level])``, in the forecast's
            units; beside it stand ``tp_exceed`` (with ``threshold_mm``), ``tp_fss``,
            ``tp_reliability`` and others. Coordinates such as ``tp__squared_error`` carry the area
            means of each init time, from which intervals are made and scores of files are added up.

        Raises
        ------
        XauroraError
            This is no forecast; truth and forecast share no time, variable or grid; a metric that
            was named cannot be had.
        """
        from xaurora.evaluation import compare

        return compare.evaluate(
            self._ds,
            truth,
            climatology=climatology,
            metrics=metrics,
            regions=regions,
            thresholds_mm=thresholds_mm,
            neighborhood_sizes=neighborhood_sizes,
            quantile_levels=quantile_levels,
            skipna=skipna,
            accumulate=accumulate,
            regrid=regrid,
            by=by,
            lead_bins=lead_bins,
            convention=convention,
            engine=engine,
            seed=seed,
            progress=progress,
        )

    def to_weatherbench2(self) -> xr.Dataset:
        """This forecast in WeatherBench2's names and layout: ``time``, ``prediction_timedelta``, SI
        units. Lazy. Of scores: as its evaluation writes them.
        """
        from xaurora.evaluation.layout import to_weatherbench2

        return to_weatherbench2(self._ds)

    def plot(
        self,
        name: str = "tp",
        *,
        init_time: Any = None,
        lead: Any = None,
        truth: xr.Dataset | None = None,
        level: float | None = None,
        ax: Any = None,
    ) -> Any:
        """A map of this forecast, or with ``truth`` a triptych of forecast, truth and difference.
        Of fields: what a target looks like.

        Fields have no lead times; of them, ``ds.aurora.plot("tp")`` shows what ``finetune`` would
        learn: mean, wet fraction (or spread), histogram and time series, from ``truth`` if it is
        given.

        Parameters
        ----------
        name : str
            Variable.
        init_time, lead : optional
            Which ones; by default the first.
        truth : Dataset, optional
            Fields to compare with.
        level : float, optional
            hPa.
        ax : matplotlib axes, optional
            To draw into; three of them for a triptych, four for a target.
        """
        from xaurora.fields import recognition
        from xaurora.plots import forecasts, target

        if not recognition.is_forecast(self._ds):
            return target.target(self._ds, name, truth=truth, ax=ax)
        return forecasts.forecast(
            self._ds, name, init_time=init_time, lead=lead, truth=truth, level=level, ax=ax
        )

    def scorecard(
        self,
        path: str | Path | None = None,
        *,
        baseline: xr.Dataset | dict[str, xr.Dataset] | None = None,
        name: str = "forecast",
        title: str = "Scorecard",
        forecast: xr.Dataset | None = None,
        truth: xr.Dataset | None = None,
        published: dict[str, xr.Dataset] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Any:
        """Scores as a table, a page and a picture: relative differences in WeatherBench's colours,
        significance, what they rest on.

        Parameters
        ----------
        path : path, optional
            ``.html`` or ``.png``; by default nothing is written, and the card shows itself in a
            notebook.
        baseline : Dataset or dict of Dataset, optional
            Scores of other forecasts (of :func:`xaurora.persistence`, of another model) by label;
            the first one is what the rest is compared with.
        name, title : str
            Of this forecast, and of the page.
        forecast, truth : Dataset, optional
            To show the best and the worst case as maps.
        published : dict of Dataset, optional
            Of :func:`xaurora.published_scores`, to draw beside one's own.
        level : float
            Of the intervals by which differences are marked.
        seed : int
            Of the bootstrap.

        Returns
        -------
        Scorecard
            With ``rows``, ``notes``, ``html``, ``plot()`` and ``save(path)``.
        """
        from xaurora.plots import scorecards

        return scorecards.build(
            self._ds,
            path,
            baseline=baseline,
            name=name,
            title=title,
            forecast=forecast,
            truth=truth,
            published=published,
            level=level,
            seed=seed,
        )
