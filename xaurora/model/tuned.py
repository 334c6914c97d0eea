"""``TunedAurora``, the artefact of fine-tuning: saving, loading, provenance and model card.

On disk it is a folder with ``config.json``, ``head.safetensors``, ``model.safetensors`` (if the
base was trained or was created here), the adapter (``adapter.safetensors``, or a folder ``adapter``
in PEFT's own format), ``normalisation.json``, ``history.json`` and ``README.md``. Nothing is
pickled.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from aurora import Aurora

from xaurora.errors import CheckpointError, OptionError, printable
from xaurora.fields.requirements import Needs
from xaurora.fields.targets import InputForm
from xaurora.model import adapters, strategies
from xaurora.model.artefact import (
    base_of,
    check_digest,
    hash_file,
    read_json,
    with_digest,
    write_json,
)
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.card import describe_strategy, model_card
from xaurora.model.hashing import state_hash
from xaurora.model.heads import OWN, DistributionHead, HeadSet, from_config
from xaurora.model.tiny import TinyAurora
from xaurora.model.weights import compare_keys, read_state
from xaurora.utils import html, storage

FORMAT = 4
_READS = (2, 3, 4)  # format 2 has no adapters, and format 3 no checksum of the config
_INPUT = "input."


@dataclass
class TunedAurora:
    """A fine-tuned Aurora.

    Parameters
    ----------
    model : AuroraWithHead
        Base and heads.
    needs : Needs
        Variables, levels and patches that it takes.
    config : dict
        Everything else in ``config.json``: base, strategy, targets, training data, scores,
        versions.
    history : list of dict
        One entry per logged step: ``step``, ``loss``, ``learning_rate``, and at validations
        ``validation_crps_mm`` and others.
    path : Path, optional
        Folder that it was saved to or loaded from.

    Examples
    --------
    >>> tuned.targets, tuned.base_name
    (['tp'], 'tiny-pretrained')
    """

    model: AuroraWithHead
    needs: Needs
    config: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None

    @property
    def base_name(self) -> str:
        """Name of the base: of the model table, or ``"given"``."""
        return str(self.config["base"]["name"])

    @property
    def heads(self) -> HeadSet:
        """The heads, by target."""
        heads = self.model.head
        if heads is None:
            raise OptionError(
                "this model has no head of this package.", fix="ds.aurora.finetune(target='tp')"
            )
        return heads

    @property
    def head(self) -> DistributionHead:
        """The head of the first target."""
        return self.heads[self.target]

    @property
    def targets(self) -> list[str]:
        """Canonical names of the targets."""
        return list(self.config["targets"])

    @property
    def target(self) -> str:
        """Canonical name of the first target.

        Raises
        ------
        OptionError
            If only Aurora's own variables were trained.
        """
        if not self.targets:
            raise OptionError(
                "this model was trained only on Aurora's own variables and has no head.",
                fix="ds.aurora.finetune(target='tp', model=tuned)",
            )
        return self.targets[0]

    @property
    def halo(self) -> int:
        """Grid points at the edges of a region that are computed but not trained on."""
        return int(self.config.get("halo", 0))

    @property
    def hash(self) -> str:
        """Hash of all weights."""
        return state_hash(self.model)

    def summary(self) -> str:
        """Return what was trained, on which data, and the scores, as text.

        Examples
        --------
        >>> print(tuned.summary())
        TunedAurora: tp with a csgd head on Aurora 'tiny-pretrained', strategy frozen
        ...
        """
        config = self.config
        names = ", ".join(
            (["Aurora's own variables"] if config.get("all") else [])
            + [
                f"{name} with {_described_head(info['head']['options']['family'])} head"
                for name, info in config["targets"].items()
            ]
        )
        inputs = f", fed back: {', '.join(config['inputs'])}" if config["inputs"] else ""
        lines = [
            (
                f"TunedAurora: {names} on Aurora {config['base']['name']!r}, strategy"
                f" {describe_strategy(config)}{inputs}"
            ),
            (
                f"  trained  {config['training']['samples']} samples, {config['training']['start']}"
                f" to {config['training']['end']}, {config['training']['steps']} steps"
            ),
        ]
        scores = config.get("scores", {})
        if scores:
            lines.append(
                "  scores   "
                + ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if isinstance(v, int | float))
            )
        if config["training"].get("validated_on_training_samples"):
            lines.append(
                "           (on the training samples themselves: how well they are fitted, not"
                " forecast skill)"
            )
        lines += ["", strategies.render([strategies.Part(**part) for part in config["parameters"]])]
        return printable("\n".join(lines))

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return html.text_block(self.summary())

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artefact. An older one at ``path`` is kept until the new one is complete.

        Parameters
        ----------
        path : path
        overwrite : bool
            Whether to replace an older tuned model.

        Raises
        ------
        SaveError
            If something is there already, or writing fails. Nothing is changed then.

        Examples
        --------
        >>> path = tuned.save("runs/mine", overwrite=True)
        """
        path = storage.output_path(path)
        if storage.is_taken(path) and not (path / "config.json").exists():
            raise storage.SaveError(
                f"'{path}' exists and is not a tuned model, so it is not overwritten.",
                fix="choose another folder",
            )
        storage.check_overwrite(path, overwrite=overwrite)
        storage.replace_folder(path, functools.partial(_write, self))
        self.path = path
        return path

    def merge(self) -> TunedAurora:
        """Return the same model with its adapter merged into the weights.

        It is as fast as without an adapter, and is saved with all its weights. Aurora's own LoRA
        switches itself off after 40 rollout steps. Merged, it stays active.

        Raises
        ------
        OptionError
            If there is no adapter, or it depends on the rollout step.

        Examples
        --------
        >>> tuned.merge()
        Traceback (most recent call last):
        xaurora.errors.OptionError: ...
        """
        model = copy.deepcopy(self.model)
        if model.adapter is None:
            raise OptionError("this model has no adapter to merge.", fix="use it as it is")
        adapters.merge(model.base, model.adapter)
        model.adapter = None
        base = {
            **self.config["base"],
            "saved": True,
            "lora": adapters.lora_options(model.base) is not None,
        }
        config = {**self.config, "base": base, "merged": self.config["strategy"]}
        return TunedAurora(model, self.needs, config, list(self.history))

    def load_weights(
        self, path: str | Path, moved: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Replace the weights by those of an artefact of the same model, and return its scores.

        Parameters
        ----------
        path : path
            Folder of the artefact.
        moved : collection of str, optional
            Parameters of the base that may differ. The others are not read.

        Returns
        -------
        dict
            Scores of the artefact.

        Examples
        --------
        >>> scores = tuned.load_weights(tuned.save("runs/mine"))
        >>> "validation_crps_mm" in scores
        True
        """
        from safetensors import safe_open

        folder = Path(path)
        config = read_json(folder / "config.json")
        state = read_state(folder / "head.safetensors")
        embeddings = {
            k.removeprefix(_INPUT): state.pop(k) for k in list(state) if k.startswith(_INPUT)
        }
        self.heads.load_state_dict(state)
        base = self.model.base
        for name, embedding in embeddings.items():
            base.encoder.surf_token_embeds.weights[name].data.copy_(embedding)
        if (folder / "model.safetensors").exists():
            own = adapters.plain_state(base, self.model.adapter)
            with torch.no_grad(), safe_open(folder / "model.safetensors", framework="pt") as file:
                for name in own if moved is None else own.keys() & set(moved):
                    own[name].copy_(file.get_tensor(name))
        if self.model.adapter is not None:
            adapters.load_into(base, self.model.adapter, folder)
        return config.get("scores", {})


def _write(tuned: TunedAurora, folder: Path) -> None:
    from safetensors.torch import save_file

    state = dict(tuned.heads.state_dict())
    if not tuned.config["base"][
        "saved"
    ]:  # the embeddings of targets that are inputs are saved with the heads
        embeds = tuned.model.base.encoder.surf_token_embeds.weights
        state |= {f"{_INPUT}{name}": embeds[name] for name in tuned.model.inputs}
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in state.items()},
        folder / "head.safetensors",
    )
    if tuned.config["base"]["saved"]:
        plain = adapters.plain_state(tuned.model.base, tuned.model.adapter)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in plain.items()},
            folder / "model.safetensors",
        )
    if tuned.model.adapter is not None:
        adapters.save(tuned.model.base, tuned.model.adapter, folder)
    base = tuned.model.base
    own = (
        {"surface": base.surf_stats, "atmos": base.atmos_stats}
        if isinstance(base, TinyAurora)
        else {}
    )
    write_json(
        folder / "normalisation.json",
        {
            "base": own or "Aurora's own",
            "targets": {name: info["statistics"] for name, info in tuned.config["targets"].items()},
        },
    )
    write_json(folder / "history.json", tuned.history)
    files = {
        str(p.relative_to(folder)): hash_file(p)
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".safetensors", ".json")
    }
    adapter = tuned.model.adapter.config() if tuned.model.adapter is not None else None
    config = {
        **tuned.config,
        "adapter": adapter,
        "format": FORMAT,
        "needs": asdict(tuned.needs),
        "files": files,
    }
    write_json(folder / "config.json", with_digest(config))
    (folder / "README.md").write_text(model_card(tuned.config, tuned.needs), encoding="utf-8")


def _described_head(family: str) -> str:
    return "Aurora's own" if family == OWN else f"a {family}"


def load(
    path: str | Path, *, weights: str | Path | None = None, base: Aurora | None = None
) -> TunedAurora:
    """Load a tuned model.

    Parameters
    ----------
    path : path
        Its folder, or the folder of a run, whose best model is then loaded.
    weights : path, optional
        Local checkpoint of the pretrained base, if the artefact holds only the head.
    base : aurora.Aurora, optional
        The base itself, if it was neither a named model nor saved.

    Raises
    ------
    CheckpointError
        If there is no tuned model, a file is damaged, or the base has other weights than the one
        that was tuned.
    OptionError
        If ``weights`` or ``base`` is given for an artefact that holds its own weights.
    WeightsUnavailableError
        If the pretrained base is not on this machine and cannot be downloaded.

    Examples
    --------
    >>> path = tuned.save("runs/mine", overwrite=True)
    >>> xaurora.load("runs/mine").target
    'tp'
    """
    folder = _folder(Path(path))
    config = read_json(folder / "config.json")
    made = config.get("format") if isinstance(config, dict) else None
    if made not in _READS:
        raise CheckpointError(
            f"'{folder}' has format {made!r}, but this version reads format {FORMAT}.",
            fix="install the version of xaurora that wrote it",
        )
    config = check_digest(config, folder / "config.json", required=made == FORMAT)
    for name, expected in config["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(
                f"'{folder}' lacks the file '{name}'.", fix="copy the whole folder again"
            )
        if hash_file(file) != expected:
            raise CheckpointError(
                f"'{file}' is damaged: its SHA-256 differs from that of the saved file.",
                fix="copy the whole folder again",
            )
    if config["base"]["saved"] and (
        weights is not None or (base is not None and config["base"]["name"].startswith("tiny"))
    ):
        raise OptionError(
            f"'{folder}' holds its own weights, so"
            f" {'weights=' if weights is not None else 'base='} would have no effect.",
            fix="xaurora.load(path)",
        )
    needs = _needs(config["needs"])
    inputs = {name: InputForm(**form) for name, form in config["inputs"].items()}
    if inputs and base is not None:
        base = copy.deepcopy(
            base
        )  # its encoder gets more inputs, and the caller's base must not change
    if config.get("adapter") and base is not None:
        base = copy.deepcopy(base)
    model_base, adapter = base_of(config, folder, needs, weights, base, inputs)
    heads = HeadSet({name: from_config(info["head"]) for name, info in config["targets"].items()})
    state = read_state(folder / "head.safetensors")
    embeddings = {k.removeprefix(_INPUT): state.pop(k) for k in list(state) if k.startswith(_INPUT)}
    compare_keys(heads.state_dict(), state, f"heads in '{folder}'", " and ".join(config["targets"]))
    heads.load_state_dict(state)
    model = AuroraWithHead(model_base, heads, inputs, adapter).eval()
    for name, embedding in embeddings.items():
        model_base.encoder.surf_token_embeds.weights[name].data.copy_(embedding)
    # Restore the state after training: Torch chooses other kernels for parameters without gradient,
    # and PEFT leaves the base frozen.
    model.requires_grad_(True)
    history = read_json(folder / "history.json")
    meta = {k: v for k, v in config.items() if k not in ("format", "needs", "files", "adapter")}
    return TunedAurora(model, needs, meta, history, folder)


def _folder(path: Path) -> Path:
    for candidate in (path, path / "best"):
        storage.recover(candidate)
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"there is no tuned model in '{path}' (no config.json there or in its folder 'best').",
        fix="pass the folder that finetune(out=...) or tuned.save(...) wrote",
    )


def _needs(config: dict[str, Any]) -> Needs:
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return Needs(**lists)


_last: TunedAurora | None = None


def remember(tuned: TunedAurora) -> None:
    """Store the model that was tuned last in this session, for ``predict(model=None)``."""
    global _last
    _last = tuned


def last() -> TunedAurora | None:
    """Return the model that was tuned last in this session."""
    return _last
