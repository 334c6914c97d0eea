"""The ``ds.aurora`` accessor, the public interface of the package.

Each method documents its arguments and delegates to the module that does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from aurora import Batch
    from distributed import Client

    from xaurora.fields.checking import Report
    from xaurora.fields.grid.regions import RegionLike
    from xaurora.model.heads import HeadLike
    from xaurora.model.options import StrategyOptions
    from xaurora.model.resolve import ModelLike
    from xaurora.model.tuned import TunedAurora
    from xaurora.plots.scorecards import Scorecard
    from xaurora.training.estimate import Estimate
    from xaurora.training.nested_options import LatentOptions, ReplayOptions
    from xaurora.utils.types import AnyAxes, LeadLike, LeadsLike, PeriodLike, TimeLike, TimesLike


@xr.register_dataset_accessor("aurora")
class AuroraAccessor:
    """Accessor for a Dataset of fields, of a forecast or of scores.

    The accessor holds no state. A model kept here would be lost by ``sel`` and would be copied into
    every pickle of the Dataset.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        from xaurora.fields.summary import describe

        return describe(self._ds)

    def _repr_html_(self) -> str:
        from xaurora.utils import html

        return html.text_block(repr(self))

    # --- fields ---

    def check(
        self,
        target: str | Sequence[str] | None = None,
        model: ModelLike = "small",
        *,
        static_file: str | Path | None = None,
    ) -> Report:
        """List every problem of the data at once, each with its fix.

        Reads a few frames, or all of them if the Dataset is small and in memory.

        Parameters
        ----------
        target : str or sequence of str, optional
            Variables that are also checked as training targets, for example ``"tp"``.
        model : str or model
            The model that the data are checked against.
        static_file : path, optional
            File of the static fields of ``"v1.5"``, as in :meth:`predict`.

        Returns
        -------
        Report
            ``.ok``, ``.problems`` (code, message, fix) and ``.notes``. ``str(report)`` is readable.

        Examples
        --------
        >>> report = ds.aurora.check("tp", model="tiny")
        >>> report.ok, report.problems
        (True, [])
        """
        from xaurora.fields import checking
        from xaurora.model.resolve import resolve

        found = resolve(model, static_file=static_file)
        return checking.check(self._ds, target, found.needs, found.notes)

    def to_batch(
        self,
        time: TimesLike = None,
        *,
        model: ModelLike = "small",
        static_file: str | Path | None = None,
    ) -> Batch:
        """Return an :class:`aurora.Batch` of one or several init times.

        Reads the frames of these init times and of their history.

        Parameters
        ----------
        time : optional
            One init time or several. By default the latest with a frame six hours before it.
        model : str or model
            The model whose variables, levels and patch size the Batch is made for. ``"tiny"`` takes
            the variables and levels that the data have.
        static_file : path, optional
            File of the static fields of ``"v1.5"``, as in :meth:`predict`.

        Returns
        -------
        aurora.Batch
            ``surf_vars`` of shape ``(b, 2, h, w)``, ``static_vars`` ``(h, w)`` and ``atmos_vars``
            ``(b, 2, c, h, w)``, in SI units and float32, with times in UTC. Rows and columns that
            do not fill a whole patch are left out, with a warning in the log.

        Raises
        ------
        XauroraError
            If :meth:`check` would list a problem, an init time lacks its history, or a field
            contains NaN.

        Examples
        --------
        >>> batch = ds.aurora.to_batch("2020-01-08T12:00", model="tiny")
        >>> batch.surf_vars["2t"].shape
        torch.Size([1, 2, 16, 32])
        """
        from xaurora.model import bridge

        return bridge.to_batch(self._ds, time, model, static_file)

    def from_batch(self, batch: Batch) -> xr.Dataset:
        """Convert a Batch to a Dataset with the names and layout of this Dataset.

        Names, units, dimension order, dtype and attributes are those of this Dataset.

        Parameters
        ----------
        batch : aurora.Batch
            A Batch made by :meth:`to_batch`, or what a model predicted from it.

        Returns
        -------
        Dataset
            One entry along time for every distinct time in the Batch, history included.

        Raises
        ------
        GridError
            If the Batch is on another grid.
        MissingVariableError
            If the Batch holds variables or levels that this Dataset lacks.

        Examples
        --------
        >>> batch = ds.aurora.to_batch(model="tiny")
        >>> ds.aurora.from_batch(batch)["t2m"].equals(ds["t2m"].isel(time=slice(-2, None)))
        True
        """
        from xaurora.model import bridge

        return bridge.from_batch(self._ds, batch)

    def accumulate(self, name: str = "tp", period: str = "6h") -> xr.DataArray:
        """Return totals over a period that ends at each time.

        In a forecast, the period ends at each lead time. The result is lazy, and NaN where a part
        of the period is missing.

        Parameters
        ----------
        name : str
            The variable.
        period : str
            Such as ``"6h"`` or ``"24h"``.

        Returns
        -------
        DataArray
            The totals, in the units of the variable.

        Raises
        ------
        AccumulationError
            If the data do not say which period each value covers, or the requested period cannot be
            summed from these values.
        MissingVariableError
            If the variable is not in the data, or is not an accumulated variable.

        Examples
        --------
        >>> daily = ds.aurora.accumulate("tp", "24h")
        >>> daily.attrs["cell_methods"]
        'time: sum (interval: 24 hours)'
        """
        from xaurora.fields import precipitation

        return precipitation.accumulate_variable(self._ds, name, period)

    def deaccumulate(self, name: str = "tp", *, every: str = "24h", start: int = 0) -> xr.DataArray:
        """Convert totals since a base time to the total of each step.

        ERA5-Land and MARS forecasts hold such totals. In a forecast Dataset, totals since the init
        time become totals between lead times. The result is lazy, except that the first two days
        are read to check it.

        Parameters
        ----------
        name : str
            The variable.
        every : str
            How often the totals start again: ``"24h"`` for ERA5-Land.
        start : int
            First hour UTC at which they start again.

        Returns
        -------
        DataArray
            The total of each step, in the units of the variable.

        Raises
        ------
        AccumulationError
            If the totals drop at times other than those given by ``every`` and ``start``.
        MissingVariableError
            If the variable is not in the data.

        Examples
        --------
        >>> day = ds["tp"].isel(time=slice(1, 5))
        >>> running = day.cumsum("time").assign_coords(time=day.time).assign_attrs(units="m")
        >>> totals = running.to_dataset().aurora.deaccumulate("tp", every="24h")
        >>> bool(abs(totals - day).max() < 1e-6)
        True
        """
        from xaurora.fields import precipitation

        return precipitation.deaccumulate_variable(self._ds, name, every, start)

    def statistics(
        self,
        names: Sequence[str] | str | None = None,
        *,
        time: PeriodLike = None,
        weights: str | None = "cosine",
        quantiles: Sequence[float] | None = None,
        progress: bool = True,
    ) -> xr.Dataset:
        """Compute mean, spread, extremes, quantiles and count in one pass.

        Computes eagerly. Memory does not grow with the number of times, but each chunk of the
        source is read as a whole, however large.

        Parameters
        ----------
        names : sequence of str, optional
            Variables, by the data's own names. By default all that change over time.
        time : optional
            The training period: a slice, a year, or a pair such as ``("2016", "2021")``. By default
            all times.
        weights : {"cosine", None}
            Weight grid points by the cosine of latitude, or equally. Counts and extremes are not
            weighted.
        quantiles : sequence of float, optional
            By default from 0.01 % to 99.99 %.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        Dataset
            Statistics in canonical units.

            ``name (statistic[, level])`` holds mean, std, min, max and count. For precipitation it
            also holds wet_fraction, the mean and standard deviation of the natural logarithm of wet
            amounts, and the number of negative values that were set to zero.

            ``name_quantile (quantile[, level])`` holds the smallest value that at least that share
            of the data does not exceed, to a relative bin width of 1/4096.

            ``name_histogram (name_bin)``, of surface variables, holds the weight in each bin. With
            it, ``finetune(statistics=...)`` starts from the whole training period.

            Missing values are left out. The attribute ``source_hash`` changes with the values,
            times, points and names that the statistics were computed from, but not with their
            chunks.

        Raises
        ------
        XauroraError
            If :meth:`check` would list a problem, a variable is unknown, or the period holds no
            times.

        Examples
        --------
        >>> stats = ds.aurora.statistics(["t2m", "tp"], progress=False)
        >>> 0 < stats["tp"].sel(statistic="wet_fraction") < 1
        <xarray.DataArray 'tp' ()> ...
        """
        from xaurora.fields import statistics as normalisation

        q = normalisation.QUANTILES if quantiles is None else quantiles
        return normalisation.statistics(
            self._ds, names, time=time, weights=weights, quantiles=q, progress=progress
        )

    def prepare(
        self,
        path: str | Path,
        *,
        target: str | Sequence[str] | None = "tp",
        model: ModelLike = "small",
        static_file: str | Path | None = None,
        region: RegionLike | None = None,
        time: PeriodLike = None,
        bits: int | None = None,
        overwrite: bool = False,
        client: Client | None = None,
        progress: bool = True,
    ) -> xr.Dataset:
        """Write a local Zarr store that training can read quickly.

        Use it for sources that are remote, or whose chunks hold whole globes and many times.
        Computes eagerly. Calling it again after an interruption resumes where it stopped, and
        several processes or machines that make the same call share the work.

        Parameters
        ----------
        path : path
            Where the store is written.
        target : str or sequence of str, optional
            Variables to store beside the model's own. Precipitation is stored as six-hour totals.
        model : str, optional
            Store the variables and levels that this model takes. None stores all recognised
            variables.
        static_file : path, optional
            File of the static fields of ``"v1.5"``, as in :meth:`predict`.
        region : str, tuple, mask or polygon, optional
            Store only the bounding box of this region, extended outwards to whole patches. The
            model then sees the region alone. For a backbone that sees the globe, prepare the globe
            and pass ``region=`` to :meth:`finetune`.
        time : optional
            A slice, a year, or a pair such as ``("2016", "2021")``. By default all times.
        bits : int, optional
            Keep this many of float32's 23 mantissa bits, rounded to nearest, to save space. The
            relative error is at most 2^−(bits+1). By default all bits are kept.
        overwrite : bool
            Whether to replace another prepared store at ``path``.
        client : distributed.Client, optional
            Write on the workers of this dask cluster, which must reach both source and path. By
            default the active client is used, or else threads of this process.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        Dataset
            Lazy, opened from the store: the data's own names, canonical units, float32, latitude
            decreasing. ``xaurora.open(path)`` opens it again.

        Raises
        ------
        XauroraError
            If :meth:`check` would list a problem, the path holds something else, or the disk is
            full. After a full disk, the same call resumes.

        Examples
        --------
        >>> local = ds.aurora.prepare("training.zarr", model="tiny", overwrite=True, progress=False)
        >>> local["tp"].attrs["units"]
        'm'
        """
        from xaurora.model.resolve import resolve
        from xaurora.sources.preparing import prepare

        return prepare(
            self._ds,
            path,
            target=target,
            needs=None if model is None else resolve(model, static_file=static_file).needs,
            region=region,
            time=time,
            bits=bits,
            overwrite=overwrite,
            client=client,
            progress=progress,
        )

    def finetune(
        self,
        target: str | Sequence[str] = "tp",
        *,
        truth: xr.Dataset | None = None,
        statistics: xr.Dataset | None = None,
        model: ModelLike = "small",
        weights: str | Path | None = None,
        static_file: str | Path | None = None,
        strategy: str | StrategyOptions = "frozen",
        head: HeadLike = "auto",
        as_input: bool = False,
        train: PeriodLike = None,
        validation: PeriodLike = None,
        halo: int = 0,
        region: RegionLike | None = None,
        out: str | Path | None = None,
        precision: str = "auto",
        memory: float | str | None = None,
        activation_checkpointing: bool | str = "auto",
        optimizer_state: str = "auto",
        compile: bool = False,
        devices: int = 1,
        num_nodes: int = 1,
        parallel: str = "auto",
        engine: str = "torch",
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
        replay_buffer: int | ReplayOptions | None = None,
        latents: bool | str | Path | LatentOptions = "auto",
        ema: float | None = None,
        early_stopping: int | None = None,
        validations: int = 10,
        checkpoint_every: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        wait: float = 0.0,
        workers: int = 2,
        first_look: int = 256,
        strict: bool = False,
        seed: int = 0,
        progress: bool = True,
        logger: object = None,
        **unknown: object,
    ) -> TunedAurora:
        """Fine-tune Aurora to predict precipitation or other surface variables.

        ``target="all"`` fine-tunes Aurora's own variables instead.

        Parameters
        ----------
        target : str or sequence of str
            What to learn: one or several surface variables. Hourly totals are summed over six
            hours. A variable that is not known is taken in its own units. ``"all"`` trains Aurora's
            own variables, ``["all", "tp"]`` both.
        truth : Dataset, optional
            Where the target is taken from, by default the data themselves. It is aligned in time
            and regridded conservatively onto the data's grid.
        statistics : Dataset, optional
            What ``ds.aurora.statistics(time=...)`` returned for the training period: the heads
            start from all of it, and only a few frames of the targets are read before training. If
            it has all inputs of a new tiny model, they are normalised by it, too. By default a
            sample of the frames is read (``first_look``).
        model : str or model
            ``"tiny"`` (built here, random), ``"tiny-pretrained"`` (trained on synthetic fields),
            ``"small"``, ``"base"``, ``"finetuned"``, ``"v1.5"``, ``"v1.5-ensemble"``, the toys
            ``"tiny-v1.5"``, ``"tiny-v1.5-ensemble"`` and ``"tiny-v1.5-pretrained"``, a
            :class:`~xaurora.TunedAurora` or its path, or an :class:`aurora.Aurora`, which is
            copied.
        weights : path, optional
            Local checkpoint of the named model. By default the published one is fetched.
        static_file : path, optional
            For ``"v1.5"``: file of its static fields, ``aurora-v1.5-static.pickle`` as it was
            published or an ``.npz`` of the same arrays. By default ERA5's static fields in the
            data, or where they lack some the file in the hub's cache. Code in a pickle is not run.
        strategy : {"frozen", "decoder", "lora", "peft", "full"} or StrategyOptions
            What trains: the head alone; the head and the last layers of Aurora's decoding half;
            low-rank adapters, Aurora's own or those of Hugging Face PEFT, on a frozen base; or
            everything.
        head : str, HeadOptions, or dict of them by target
            What is predicted. For precipitation ``"censored_normal"``, ``"hurdle_lognormal"``,
            ``"hurdle_gamma"``, ``"csgd"``, ``"quantile"``, ``"deterministic"``, the preset
            ``"lehmann2025"`` or ``"own"``, Aurora 1.5's own decoder. For other variables
            ``"normal"`` or ``"bounded_normal"``. ``"auto"`` chooses by the variable.
        as_input : bool
            Also feed the target to the encoder, with an embedding that starts at zero. Forecasts
            then need the target at the init time and six hours before.
        train : slice, str, int or pair, optional
            Training period: a slice, a year, or a pair such as ``("2016", "2022")``. By default all
            but the last fifth of the samples.
        validation : slice, str, int or pair, optional
            Validation period. By default the last fifth of the samples, with a gap between that
            neither history nor accumulation crosses.
        halo : int
            Grid points at the edges of a region that are computed and not trained on
            (``docs/regions.md``).
        region : str, tuple, mask or polygon, optional
            Where the target is learnt and scored: a name such as ``"europe"``, a box ``(south,
            north, west, east)``, a DataArray, a polygon. The backbone sees all of the data, the
            heads this part of its latents, so that with global data a region has no edges
            (``docs/regions.md``).
        out : path, optional
            Folder for ``best/``, ``last/``, ``checkpoint/``, ``log.jsonl`` and ``learning.png``. By
            default ``runs/<target>-<time>``.
        precision : {"auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16"}
            Precision of the model; head and score are always float32. ``"bf16"`` is that of the
            backbone alone, as upstream; ``"bf16-tf32"`` lets GPUs round the matrix products of
            encoder and decoder to TF32, ``"bf16-all"`` runs them in bf16 too, and ``"tf32"`` rounds
            all of them to TF32. ``"auto"`` is bf16 on a GPU that supports it, else float32.
            ``"fp16"`` is for GPUs without bf16: the loss is scaled.
        memory : float or str, optional
            Bytes of the device that training may take, also as text: ``"24 GB"``. By default what
            is free. Where an option says ``"auto"``, the fastest way that fits is chosen by a
            simulation of a step (``docs/cards.md``).
        activation_checkpointing : bool, "auto" or "offload"
            Recompute activations in the backward pass instead of storing them. ``"offload"`` also
            keeps the inputs of blocks in host memory until then. ``"auto"`` chooses the fastest way
            that fits into ``memory``; with ``engine="jax"`` it recomputes on GPUs and TPUs.
        optimizer_state : {"auto", "device", "host", "8bit"}
            Where float32 weights, gradients and the moments of AdamW are. With ``"host"`` the
            device holds the weights that train only in the precision they are computed in.
            ``"auto"`` chooses the fastest of the two that fits into ``memory``. With ``"8bit"`` all
            are on the device, and the moments are rounded to eight bits, which changes the result a
            little; it requires ``pip install "xaurora[eight-bit]"``.
        compile : bool
            Compile the backbone's blocks with ``torch.compile``. If it is not available, a warning
            is logged and the blocks run uncompiled.
        devices : int
            Devices on each machine (processes if there is no GPU). The script is started once more
            for every other device, or by ``torchrun``.
        num_nodes : int
            Number of machines.
        parallel : {"auto", "ddp", "fsdp"}
            Whether each device holds the whole model (``auto``, ``ddp``) or a part of it.
        engine : {"torch", "jax"}
            What trains. ``"jax"`` compiles one program for a step and runs on TPUs as well; it
            requires ``pip install "xaurora[jax]"`` (``docs/jax.md``). The tuned model is the same.
        epochs : int, optional
            Passes over the training samples. Ten if neither this nor ``steps`` is given.
        steps : int, optional
            Optimiser steps. Takes precedence over ``epochs``.
        batch_size : int
            Samples in one forward pass on each device.
        gradient_accumulation : int
            Batches whose gradients are averaged for one step: the memory of one, the effect of all.
        learning_rate : float, optional
            Peak learning rate. By default 1e-3 for new parameters and 5e-5 for pretrained ones
            (2e-3 for all parameters of a random tiny model).
        head_learning_rate : float, optional
            Peak learning rate of new parameters alone. By default ``learning_rate`` if it is given.
        schedule : {"cosine", "constant"}
            What the learning rate does after the warm-up: decay to a twentieth along a cosine, or
            stay constant.
        warmup : int, optional
            Steps of linear warm-up. By default a twentieth of all steps, at most 1000.
        clip : float
            Largest norm of the gradient.
        weight_decay : float
            Weight decay of AdamW.
        base_loss : float
            Weight of the loss on Aurora's own variables, for strategies that train the base. 0
            turns it off. Training on rain alone ruins the state that later leads start from.
        rollout_steps : int
            Six-hour steps of each training forecast. Their losses are averaged.
        push_forward : bool
            Stop gradients between rollout steps, so that memory holds one step.
        replay_buffer : int or ReplayOptions, optional
            Keep this many forecasts on disk and continue one of them by one step at a time, up to
            ``rollout_steps`` steps.
        latents : {"auto", True, False}, path or LatentOptions
            Compute the latents of a frozen backbone once and keep them, in bfloat16 unless
            :class:`~xaurora.LatentOptions` say otherwise, in ``latents/`` beside the run's folder
            or in the store that is named. ``"auto"`` does so if samples are seen more than once
            (``docs/latents.md``).
        ema : float, optional
            Decay of an exponential moving average of the weights, such as 0.999. The average is
            what is validated and kept.
        early_stopping : int, optional
            Stop after this many validations without a better score.
        validations : int
            How often to score the validation samples.
        checkpoint_every : int, optional
            Steps between checkpoints. By default a twentieth of all steps, at least 10 and at most
            500. A checkpoint is also written at SIGTERM and Ctrl-C.
        resume : bool
            Resume from the checkpoint in ``out``, exactly to the bit on a CPU. Start from the
            beginning if there is none.
        overwrite : bool
            Whether to replace a finished or stopped run in ``out``.
        wait : float
            Seconds to wait if another process still writes to ``out``, such as a job that is being
            stopped and queued again.
        workers : int
            Threads that read ahead. 0 reads when data are needed.
        first_look : int
            Frames of the training period that are read before training, evenly spread over years,
            months and hours of the day: they give the heads their starting point, the losses their
            scale and a tiny model its normalisation. All frames if there are fewer.
        strict : bool
            Whether a sample that is missing or broken stops the run. By default it is skipped,
            counted and named.
        seed : int
            Seed of initial weights, sample order and dropout.
        progress : bool
            Whether to show a progress bar with loss and learning rate.
        logger : logger or list of loggers, optional
            Lightning Fabric's loggers. ``log.jsonl`` is always written.

        Returns
        -------
        TunedAurora
            The state with the best validation skill score, the mean over the targets of 1 − CRPS /
            CRPS of the climatology. :meth:`predict` uses it by default for the rest of this
            session.

        Raises
        ------
        XauroraError
            If :meth:`check` would list a problem, an option is unknown, there are too few samples
            to train or validate, the run to resume was made with other settings, or the loss is not
            finite.

        References
        ----------
        Bodnar et al. (2025), A foundation model for the Earth system,
        doi:10.1038/s41586-025-09005-y. Lehmann et al. (2025), arXiv:2506.19088, for heads on a
        frozen backbone.

        Examples
        --------
        >>> tuned = ds.aurora.finetune(
        ...     "tp", model="tiny-pretrained", steps=2, out="runs/tp", progress=False
        ... )
        >>> tuned.target, tuned.heads["tp"].options.family
        ('tp', 'csgd')
        """
        arguments = dict(locals())
        from xaurora.training.finetune import finetune
        from xaurora.training.options import options_from

        return finetune(self._ds, options_from(arguments, verb="finetune"))

    def estimate(
        self,
        target: str | Sequence[str] = "tp",
        *,
        truth: xr.Dataset | None = None,
        statistics: xr.Dataset | None = None,
        model: ModelLike = "small",
        weights: str | Path | None = None,
        static_file: str | Path | None = None,
        strategy: str | StrategyOptions = "frozen",
        head: HeadLike = "auto",
        as_input: bool = False,
        train: PeriodLike = None,
        validation: PeriodLike = None,
        halo: int = 0,
        region: RegionLike | None = None,
        out: str | Path | None = None,
        precision: str = "auto",
        memory: float | str | None = None,
        activation_checkpointing: bool | str = "auto",
        optimizer_state: str = "auto",
        compile: bool = False,
        devices: int = 1,
        num_nodes: int = 1,
        parallel: str = "auto",
        engine: str = "torch",
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
        replay_buffer: int | ReplayOptions | None = None,
        latents: bool | str | Path | LatentOptions = "auto",
        ema: float | None = None,
        early_stopping: int | None = None,
        validations: int = 10,
        checkpoint_every: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        wait: float = 0.0,
        workers: int = 2,
        first_look: int = 256,
        strict: bool = False,
        seed: int = 0,
        progress: bool = True,
        logger: object = None,
        compare: bool = False,
        device: str = "auto",
        **unknown: object,
    ) -> Estimate:
        """Estimate what :meth:`finetune` would cost with the same arguments.

        Covers peak memory, time, bytes read and disk space. It does not train and needs no weights.

        Parameters
        ----------
        target : str or sequence of str
            What to learn: one or several surface variables. Hourly totals are summed over six
            hours. A variable that is not known is taken in its own units. ``"all"`` trains Aurora's
            own variables, ``["all", "tp"]`` both.
        truth : Dataset, optional
            Where the target is taken from, by default the data themselves. It is aligned in time
            and regridded conservatively onto the data's grid.
        statistics : Dataset, optional
            What ``ds.aurora.statistics(time=...)`` returned for the training period: the heads
            start from all of it, and only a few frames of the targets are read before training. If
            it has all inputs of a new tiny model, they are normalised by it, too. By default a
            sample of the frames is read (``first_look``).
        model : str or model
            ``"tiny"`` (built here, random), ``"tiny-pretrained"`` (trained on synthetic fields),
            ``"small"``, ``"base"``, ``"finetuned"``, ``"v1.5"``, ``"v1.5-ensemble"``, the toys
            ``"tiny-v1.5"``, ``"tiny-v1.5-ensemble"`` and ``"tiny-v1.5-pretrained"``, a
            :class:`~xaurora.TunedAurora` or its path, or an :class:`aurora.Aurora`, which is
            copied.
        weights : path, optional
            Local checkpoint of the named model. By default the published one is fetched.
        static_file : path, optional
            For ``"v1.5"``: file of its static fields, ``aurora-v1.5-static.pickle`` as it was
            published or an ``.npz`` of the same arrays. By default ERA5's static fields in the
            data, or where they lack some the file in the hub's cache. Code in a pickle is not run.
        strategy : {"frozen", "decoder", "lora", "peft", "full"} or StrategyOptions
            What trains: the head alone; the head and the last layers of Aurora's decoding half;
            low-rank adapters, Aurora's own or those of Hugging Face PEFT, on a frozen base; or
            everything.
        head : str, HeadOptions, or dict of them by target
            What is predicted. For precipitation ``"censored_normal"``, ``"hurdle_lognormal"``,
            ``"hurdle_gamma"``, ``"csgd"``, ``"quantile"``, ``"deterministic"``, the preset
            ``"lehmann2025"`` or ``"own"``, Aurora 1.5's own decoder. For other variables
            ``"normal"`` or ``"bounded_normal"``. ``"auto"`` chooses by the variable.
        as_input : bool
            Also feed the target to the encoder, with an embedding that starts at zero. Forecasts
            then need the target at the init time and six hours before.
        train : slice, str, int or pair, optional
            Training period: a slice, a year, or a pair such as ``("2016", "2022")``. By default all
            but the last fifth of the samples.
        validation : slice, str, int or pair, optional
            Validation period. By default the last fifth of the samples, with a gap between that
            neither history nor accumulation crosses.
        halo : int
            Grid points at the edges of a region that are computed and not trained on
            (``docs/regions.md``).
        region : str, tuple, mask or polygon, optional
            Where the target is learnt and scored: a name such as ``"europe"``, a box ``(south,
            north, west, east)``, a DataArray, a polygon. The backbone sees all of the data, the
            heads this part of its latents, so that with global data a region has no edges
            (``docs/regions.md``).
        out : path, optional
            Folder for ``best/``, ``last/``, ``checkpoint/``, ``log.jsonl`` and ``learning.png``. By
            default ``runs/<target>-<time>``.
        precision : {"auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16"}
            Precision of the model; head and score are always float32. ``"bf16"`` is that of the
            backbone alone, as upstream; ``"bf16-tf32"`` lets GPUs round the matrix products of
            encoder and decoder to TF32, ``"bf16-all"`` runs them in bf16 too, and ``"tf32"`` rounds
            all of them to TF32. ``"auto"`` is bf16 on a GPU that supports it, else float32.
            ``"fp16"`` is for GPUs without bf16: the loss is scaled.
        memory : float or str, optional
            Bytes of the device that training may take, also as text: ``"24 GB"``. By default what
            is free. Where an option says ``"auto"``, the fastest way that fits is chosen by a
            simulation of a step (``docs/cards.md``).
        activation_checkpointing : bool, "auto" or "offload"
            Recompute activations in the backward pass instead of storing them. ``"offload"`` also
            keeps the inputs of blocks in host memory until then. ``"auto"`` chooses the fastest way
            that fits into ``memory``; with ``engine="jax"`` it recomputes on GPUs and TPUs.
        optimizer_state : {"auto", "device", "host", "8bit"}
            Where float32 weights, gradients and the moments of AdamW are. With ``"host"`` the
            device holds the weights that train only in the precision they are computed in.
            ``"auto"`` chooses the fastest of the two that fits into ``memory``. With ``"8bit"`` all
            are on the device, and the moments are rounded to eight bits, which changes the result a
            little; it requires ``pip install "xaurora[eight-bit]"``.
        compile : bool
            Compile the backbone's blocks with ``torch.compile``. If it is not available, a warning
            is logged and the blocks run uncompiled.
        devices : int
            Devices on each machine (processes if there is no GPU). The script is started once more
            for every other device, or by ``torchrun``.
        num_nodes : int
            Number of machines.
        parallel : {"auto", "ddp", "fsdp"}
            Whether each device holds the whole model (``auto``, ``ddp``) or a part of it.
        engine : {"torch", "jax"}
            What trains. ``"jax"`` compiles one program for a step and runs on TPUs as well; it
            requires ``pip install "xaurora[jax]"`` (``docs/jax.md``). The tuned model is the same.
        epochs : int, optional
            Passes over the training samples. Ten if neither this nor ``steps`` is given.
        steps : int, optional
            Optimiser steps. Takes precedence over ``epochs``.
        batch_size : int
            Samples in one forward pass on each device.
        gradient_accumulation : int
            Batches whose gradients are averaged for one step: the memory of one, the effect of all.
        learning_rate : float, optional
            Peak learning rate. By default 1e-3 for new parameters and 5e-5 for pretrained ones
            (2e-3 for all parameters of a random tiny model).
        head_learning_rate : float, optional
            Peak learning rate of new parameters alone. By default ``learning_rate`` if it is given.
        schedule : {"cosine", "constant"}
            What the learning rate does after the warm-up: decay to a twentieth along a cosine, or
            stay constant.
        warmup : int, optional
            Steps of linear warm-up. By default a twentieth of all steps, at most 1000.
        clip : float
            Largest norm of the gradient.
        weight_decay : float
            Weight decay of AdamW.
        base_loss : float
            Weight of the loss on Aurora's own variables, for strategies that train the base. 0
            turns it off. Training on rain alone ruins the state that later leads start from.
        rollout_steps : int
            Six-hour steps of each training forecast. Their losses are averaged.
        push_forward : bool
            Stop gradients between rollout steps, so that memory holds one step.
        replay_buffer : int or ReplayOptions, optional
            Keep this many forecasts on disk and continue one of them by one step at a time, up to
            ``rollout_steps`` steps.
        latents : {"auto", True, False}, path or LatentOptions
            Compute the latents of a frozen backbone once and keep them, in bfloat16 unless
            :class:`~xaurora.LatentOptions` say otherwise, in ``latents/`` beside the run's folder
            or in the store that is named. ``"auto"`` does so if samples are seen more than once
            (``docs/latents.md``).
        ema : float, optional
            Decay of an exponential moving average of the weights, such as 0.999. The average is
            what is validated and kept.
        early_stopping : int, optional
            Stop after this many validations without a better score.
        validations : int
            How often to score the validation samples.
        checkpoint_every : int, optional
            Steps between checkpoints. By default a twentieth of all steps, at least 10 and at most
            500. A checkpoint is also written at SIGTERM and Ctrl-C.
        resume : bool
            Resume from the checkpoint in ``out``, exactly to the bit on a CPU. Start from the
            beginning if there is none.
        overwrite : bool
            Whether to replace a finished or stopped run in ``out``.
        wait : float
            Seconds to wait if another process still writes to ``out``, such as a job that is being
            stopped and queued again.
        workers : int
            Threads that read ahead. 0 reads when data are needed.
        first_look : int
            Frames of the training period that are read before training, evenly spread over years,
            months and hours of the day: they give the heads their starting point, the losses their
            scale and a tiny model its normalisation. All frames if there are fewer.
        strict : bool
            Whether a sample that is missing or broken stops the run. By default it is skipped,
            counted and named.
        seed : int
            Seed of initial weights, sample order and dropout.
        progress : bool
            Whether to show a progress bar with loss and learning rate.
        logger : logger or list of loggers, optional
            Lightning Fabric's loggers. ``log.jsonl`` is always written.
        compare : bool
            Also estimate every base and strategy, for comparison; for a GPU with the cards that
            each fits on.
        device : {"auto", "cpu", "gpu"}
            What trains, by default a GPU if there is one. A GPU's step can be estimated on any
            machine.

        Returns
        -------
        Estimate
            Readable when printed. Its attributes are ``memory``, ``available``, ``fits``,
            ``parts``, ``seconds``, ``bytes_read``, ``disk``, ``advice`` and ``others``.

        Raises
        ------
        XauroraError
            If :meth:`finetune` would raise before it starts.

        Examples
        --------
        >>> estimate = ds.aurora.estimate("tp", model="tiny-pretrained", strategy="lora")
        >>> f"{estimate.trainable:,} of {estimate.total:,} parameters train"
        '... parameters train'
        """
        arguments = dict(locals())
        from xaurora.training.estimate import estimate
        from xaurora.training.options import options_from

        del arguments["compare"], arguments["device"]
        options = options_from(arguments, verb="estimate")
        return estimate(self._ds, options, compare=compare, device=device)

    def predict(
        self,
        lead: LeadsLike = "6h",
        *,
        step: LeadsLike | None = None,
        model: ModelLike | None = None,
        weights: str | Path | None = None,
        static_file: str | Path | None = None,
        time: TimesLike = None,
        variables: Sequence[str] | None = None,
        quantiles: float | Sequence[float] = (),
        thresholds_mm: float | Sequence[float] = (),
        members: int = 0,
        past: xr.Dataset | None = None,
        halo: int | None = None,
        region: RegionLike | None = None,
        store: str | Path | None = None,
        overwrite: bool = False,
        wait: float = 0.0,
        batch_size: int = 1,
        devices: int = 1,
        compile: bool = False,
        precision: str = "auto",
        engine: str = "torch",
        progress: bool = True,
        **unknown: object,
    ) -> xr.Dataset:
        """Return a forecast from one or several init times.

        Parameters
        ----------
        lead : str, timedelta, or a list of them
            A multiple of six hours, or of ``step``. ``"24h"`` gives every six hours up to it, a
            list gives just those.
        step : str or timedelta, optional
            Time between lead times, and period of Aurora's own precipitation: ``"1h"``, ``"2h"``,
            ``"3h"`` or ``"6h"`` (the default), for a model with hourly lead times such as
            ``"v1.5"``.
        model : str or model, optional
            A name of the model table, a :class:`~xaurora.TunedAurora` or its path, or an
            :class:`aurora.Aurora`. By default the model tuned last in this session.
        weights : path, optional
            Local checkpoint of the named model.
        static_file : path, optional
            For ``"v1.5"``: file of its static fields, ``aurora-v1.5-static.pickle`` as it was
            published or an ``.npz`` of the same arrays. By default ERA5's static fields in the
            data, or where they lack some the file in the hub's cache. Code in a pickle is not run.
        time : time, sequence of times or slice, optional
            Init times. By default all that have a frame six hours before them. ``"2021-06-01"``
            selects the day, ``"2021-06-01T12"`` one time.
        variables : sequence of str, optional
            Only these, in the data's own names. By default all of the model's variables and its
            targets.
        quantiles : sequence of float
            Quantiles of the targets, as ``tp_quantile``.
        thresholds_mm : sequence of float
            Adds ``tp_probability``, the probability of more than these amounts in mm.
        members : int
            Number of members along the dimension ``number``. They have the head's distribution at
            every point and the dependence of past fields in space and time (Schaake shuffle). The
            mean is then ``tp_mean``. ``"v1.5-ensemble"`` draws members of all variables itself,
            each with a seed of its own.
        past : Dataset, optional
            Fields whose dependence the members take. By default those of the data, except the times
            of the forecast itself.
        halo : int, optional
            Grid points trimmed from the edges of a region. By default the halo that the model was
            tuned with.
        region : str, tuple, mask or polygon, optional
            Forecast this part only, as in ``finetune``. The model sees all of the data. For a mask
            or polygon the box around it is forecast.
        store : path, optional
            A Zarr store that is written one init time after another. An interrupted run resumes
            where it stopped.
        overwrite : bool
            Whether to replace another forecast in ``store``.
        wait : float
            Seconds to wait if another process still writes to ``store``.
        batch_size : int
            Init times in one forward pass.
        devices : int
            GPUs that share the init times, each with a copy of the model.
        compile : bool
            Compile the backbone's blocks with ``torch.compile``: worth it on a GPU and for many
            init times. Where it is not available, a warning is logged and the blocks run
            uncompiled.
        precision : {"auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16"}
            Precision of the model, as in ``finetune``. ``"auto"`` keeps the model's own setting.
        engine : {"torch", "jax"}
            What computes the forecast. ``"jax"`` compiles one program for a grid, and runs on TPUs
            as well; it requires ``pip install "xaurora[jax]"``.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        Dataset
            Dims ``(init_time, lead_time[, level], latitude, longitude)`` with ``valid_time``, in
            the data's own names, units, latitude order and longitude convention. ``tp`` is the mean
            total over six hours. The head's parameters are separate variables beside it.

        Raises
        ------
        XauroraError
            If a lead time is not a positive multiple of six hours, an init time lacks its history,
            there is no model, or :meth:`check` would list a problem.

        Examples
        --------
        >>> fc = ds.aurora.predict(
        ...     "12h", model=tuned, time="2020-01-08T00", quantiles=[0.5, 0.9], thresholds_mm=[1]
        ... )
        >>> fc["tp_quantile"].dims
        ('init_time', 'lead_time', 'quantile', 'latitude', 'longitude')
        """
        arguments = dict(locals())
        from xaurora.forecasting.options import PredictOptions
        from xaurora.forecasting.predict import predict
        from xaurora.utils.options import from_arguments

        return predict(self._ds, from_arguments(PredictOptions, arguments, verb="predict"))

    # --- a forecast, and its scores ---

    def sensitivity(
        self,
        name: str = "tp",
        *,
        region: RegionLike,
        time: TimesLike = None,
        lead: LeadsLike = "24h",
        model: ModelLike | None = None,
        weights: str | Path | None = None,
        static_file: str | Path | None = None,
        statistic: str = "mean",
        threshold_mm: float | None = None,
        level: float | None = None,
        per_std: bool = False,
        engine: str = "torch",
        progress: bool = True,
    ) -> xr.Dataset:
        """Differentiate a forecast quantity with respect to every input field.

        The quantity is an average over a region, weighted by area, at one lead time. Its gradient
        says how much the forecast there would change if an input changed by one unit at one grid
        point, at the init time or six hours before.

        Parameters
        ----------
        name : str
            The forecast variable: a target of the tuned model, or one of Aurora's own variables.
        region : str, tuple, mask or polygon
            Where the forecast is averaged, as in :meth:`predict`.
        time : time, optional
            The init time, by default the last.
        lead : str or timedelta
            The lead time, a multiple of six hours.
        model : str or model, optional
            As in :meth:`predict`, by default the model tuned last in this session.
        weights : path, optional
            Local checkpoint of the named model.
        static_file : path, optional
            File of the static fields of ``"v1.5"``, as in :meth:`predict`.
        statistic : {"mean", "probability"}
            The mean of the variable, or the chance of more rain than ``threshold_mm``.
        threshold_mm : float, optional
            Amount in mm over six hours.
        level : float, optional
            Pressure level of the forecast variable, hPa.
        per_std : bool
            Per standard deviation of each input variable, that of the model's normalisation,
            instead of per unit, so that variables can be compared.
        engine : {"torch", "jax"}
            What differentiates. Both recompute activations in the backward pass.
        progress : bool
            Whether to say what is done.

        Returns
        -------
        Dataset
            In the names, order and units of the data: each input variable at both input times, in
            units of the quantity per unit of the variable. The attributes hold the quantity.

        Raises
        ------
        XauroraError
            If the variable is not predicted, more than one time or lead is selected, the region is
            not in the data, or the memory does not suffice.

        Notes
        -----
        Activations are recomputed in the backward pass. The memory that this takes is counted
        before anything is computed, and what does not fit is refused.

        Examples
        --------
        >>> s = ds.aurora.sensitivity(
        ...     "tp", region=(-20, 20, 0, 60), lead="6h", model=tuned, progress=False
        ... )
        >>> s["msl"].attrs["units"]
        'm / (Pa)'
        """
        from xaurora.forecasting.sensitivity import SensitivityOptions, sensitivity

        options = SensitivityOptions(
            name=name,
            region=region,
            time=time,
            lead=lead,
            model=model,
            weights=weights,
            static_file=static_file,
            statistic=statistic,
            threshold_mm=threshold_mm,
            level=level,
            per_std=per_std,
            engine=engine,
            progress=progress,
        )
        return sensitivity(self._ds, options)

    def evaluate(
        self,
        truth: xr.Dataset,
        *,
        climatology: xr.Dataset | None = None,
        metrics: Sequence[str] | str | None = None,
        regions: RegionLike | None = None,
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
        """Score this forecast with the definitions of WeatherBench2.

        Computes eagerly, block by block, so that memory does not grow with the number of init
        times.

        Parameters
        ----------
        truth : Dataset
            Fields of the same variables, in any naming convention. Hourly precipitation is summed.
            If the truth has permanent gaps, such as IMERG poleward of 60°, the rest is scored and
            the metric ``coverage`` gives its share.
        climatology : Dataset, optional
            In WeatherBench2's layout (``hour``, ``dayofyear``). Required for ``acc``, the
            activities, ``seeps`` and the scores at climatological quantiles.
        metrics : sequence of str, optional
            Names from :data:`xaurora.evaluation.metrics.METRICS`. ``"all"`` computes every metric
            that applies to this forecast. By default those that take a single pass over the fields.
        regions : optional
            Names of WeatherBench2's regions, ``"domain"``, a box ``(south, north, west, east)``, a
            DataArray mask, a polygon (GeoJSON), a dict of those, or ``"edge"`` for rings by
            distance from the domain's edge. By default WeatherBench2's regions for a globe and the
            whole ``domain`` for a region, and their land part if the truth has a land-sea mask.
        thresholds_mm : sequence of float
            Thresholds for categorical precipitation scores, in mm.
        neighborhood_sizes : sequence of int
            Neighbourhood sizes of the FSS, in grid points, odd.
        quantile_levels : sequence of float
            Levels at which quantiles of the forecast are scored.
        skipna : bool
            Leave missing values out, at the same points for everything that is compared. By default
            missing values propagate.
        accumulate : str, optional
            Sum precipitation over this period first, such as ``"24h"``. Raises if the forecast is a
            separate distribution at every point.
        regrid : {"conservative"}, optional
            Regrid the truth onto the forecast's grid.
        by : str or sequence of {"init_time", "season", "month", "hour", "year"}
            Score these times separately, each as a dim. All but ``init_time`` refer to the valid
            time.
        lead_bins : dict, optional
            Label → (first, last) lead time, scored together: ``{"day 1": ("6h", "24h")}``.
        convention : {"weatherbench2", "weatherbenchx"}
            Which definition to use where the two differ: ACC, SEEPS, land, and the weights of the
            first and last rows.
        engine : {"xaurora", "weatherbench2"}
            ``"weatherbench2"`` computes with the classes of an installed WeatherBench2 instead.
        seed : int
            Seed of random draws: ties of ranks, PIT of dry points.
        progress : bool
            Whether to show a progress bar, for work that takes more than two seconds.

        Returns
        -------
        Dataset
            Each variable has the dims ``(metric, region, lead_time[, level])`` and the forecast's
            units. Further variables are ``tp_exceed`` (with the dim ``threshold_mm``), ``tp_fss``,
            ``tp_reliability`` and others. Coordinates such as ``tp__squared_error`` hold the area
            means of each init time, which are used to compute intervals and to combine the scores
            of several files.

        Raises
        ------
        XauroraError
            If this is not a forecast, forecast and truth share no time, variable or grid, or a
            requested metric cannot be computed.

        Examples
        --------
        >>> scores = fc.aurora.evaluate(ds, metrics=["rmse", "crps"], regions=["tropics"])
        >>> scores["tp"].sel(metric="crps", region="tropics").dims
        ('lead_time',)
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
        """Return this forecast in the names and layout of WeatherBench2.

        The dims are ``time`` and ``prediction_timedelta``, the units SI. Lazy. Scores are returned
        as WeatherBench2's evaluation writes them.

        Returns
        -------
        Dataset
            The same forecast or scores.

        Examples
        --------
        >>> fc.aurora.to_weatherbench2()["total_precipitation_6hr"].dims[:2]
        ('time', 'prediction_timedelta')
        """
        from xaurora.evaluation.layout import to_weatherbench2

        return to_weatherbench2(self._ds)

    def plot(
        self,
        name: str = "tp",
        *,
        init_time: TimeLike | None = None,
        lead: LeadLike | None = None,
        truth: xr.Dataset | None = None,
        level: float | None = None,
        ax: AnyAxes = None,
    ) -> AnyAxes:
        """Draw a map of a forecast or a sensitivity, or an overview of a training target.

        For a forecast, ``truth`` adds the truth and the difference as two more maps. For fields,
        which have no lead times, ``ds.aurora.plot("tp")`` shows the data that :meth:`finetune`
        would train on: mean, wet fraction (or spread), histogram and time series, from ``truth`` if
        it is given.

        Parameters
        ----------
        name : str
            The variable.
        init_time, lead : optional
            Init time and lead time to draw. By default the first.
        truth : Dataset, optional
            Fields to compare with.
        level : float, optional
            Pressure level in hPa. By default the first.
        ax : matplotlib axes, optional
            Axes to draw into: one for a map, three for forecast, truth and difference, four for a
            target.

        Returns
        -------
        matplotlib axes, or ndarray of them
            One for a map, three for forecast, truth and difference, four for a target.

        Raises
        ------
        XauroraError
            If the variable, init time, lead time or level is not in the data, or ``ax`` does not
            hold three axes for a comparison with ``truth``.

        Examples
        --------
        >>> axes = fc.aurora.plot("tp", lead="12h", truth=ds)
        """
        from xaurora import plots
        from xaurora.fields import recognition

        if "xaurora_sensitivity" in self._ds.attrs:
            return plots.sensitivity(self._ds, name, level=level, ax=ax)
        if not recognition.is_forecast(self._ds):
            return plots.target(self._ds, name, truth=truth, ax=ax)
        return plots.forecast(
            self._ds, name, init_time=init_time, lead=lead, truth=truth, level=level, ax=ax
        )

    def animate(
        self,
        path: str | Path,
        name: str = "tp",
        *,
        truth: xr.Dataset | None = None,
        init_time: TimeLike | None = None,
        level: float | None = None,
        frames_per_second: float = 2.0,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Path:
        """Write an animation of this forecast over its lead times, beside the truth if it is given.

        Parameters
        ----------
        path : path
            ``.gif``, or ``.mp4``, which needs ffmpeg.
        name : str
            The variable.
        truth : Dataset, optional
            Fields at the valid times.
        init_time : optional
            Init time to show. By default the first.
        level : float, optional
            Pressure level in hPa. By default the first.
        frames_per_second : float
            Lead times per second.
        overwrite : bool
            Whether to replace an existing file.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        Path
            That of the file.

        Raises
        ------
        XauroraError
            If this is not a forecast, the file exists, or ffmpeg is missing.

        Examples
        --------
        >>> path = fc.aurora.animate("rain.gif", truth=ds)
        """
        from xaurora.plots.animation import animate

        return animate(
            self._ds,
            path,
            name,
            truth=truth,
            init_time=init_time,
            level=level,
            frames_per_second=frames_per_second,
            overwrite=overwrite,
            progress=progress,
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
        test: str = "autoregressive",
        variables: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        levels: Sequence[float] | None = None,
        regions: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Scorecard:
        """Build a scorecard from these scores, as an HTML page and a figure.

        The page begins with a heat map of the headline scores by lead time, beside each baseline,
        in WeatherBench's colours and with their significance. Precipitation follows in detail;
        tables of all other variables are folded.

        Parameters
        ----------
        path : path, optional
            ``.html``, or ``.png``, ``.pdf`` and ``.svg`` for the headline scores. By default
            nothing is written, and a notebook displays the headline scores.
        baseline : Dataset or dict of Dataset, optional
            Scores of other forecasts by label, such as those of :func:`xaurora.persistence` or of
            another model. Everything is compared with the first one.
        name, title : str
            Name of this forecast, and title of the page.
        forecast, truth : Dataset, optional
            Fields from which the best and the worst case are drawn as maps.
        published : dict of Dataset, optional
            Scores from :func:`xaurora.published_scores` to draw beside these.
        level : float
            Differences are marked as significant so that, of all marks on the card, a share of
            at most ``1 − level`` is expected to be false.
        test : {"autoregressive", "diebold_mariano"}
            The test of significance, as for :func:`xaurora.significance`. The page names it.
        variables, metrics, levels, regions : sequence, optional
            Show only these. By default all variables and levels, the usual metrics, and the first
            region.
        overwrite : bool
            Whether to replace an existing file.

        Returns
        -------
        Scorecard
            With ``rows``, ``notes``, ``html``, ``plot()`` and ``save(path)``.

        Raises
        ------
        KindError
            If this Dataset or a baseline does not hold scores.
        OptionError
            If only one of ``forecast`` and ``truth`` is given, or a label occurs twice.

        Examples
        --------
        >>> baseline = xaurora.persistence(ds, ["tp"], ["6h", "12h"]).aurora.evaluate(ds)
        >>> card = scores.aurora.scorecard(
        ...     "scorecard.html", baseline={"persistence": baseline}, overwrite=True
        ... )
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
            test=test,
            variables=variables,
            metrics=metrics,
            levels=levels,
            regions=regions,
            overwrite=overwrite,
        )
