"""The model card of a tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xaurora.fields.requirements import Needs
from xaurora.model import strategies
from xaurora.model.heads.options import OWN


def model_card(config: Mapping[str, Any], needs: Needs) -> str:
    """Return the text of the artefact's ``README.md``."""
    training = config["training"]
    variables = ", ".join(
        (
            *needs.surface,
            *(f"{v} (pressure levels)" for v in needs.atmos),
            *(f"{v} (static)" for v in needs.static),
        )
    )
    levels = (
        "all levels of the data"
        if needs.levels is None
        else ", ".join(f"{v:g}" for v in needs.levels) + " hPa"
    )
    scores = (
        "\n".join(
            f"| {k} | {v:.6g} |"
            for k, v in config.get("scores", {}).items()
            if isinstance(v, int | float)
        )
        or "| none | |"
    )
    warning = (
        "\n\nThese are scores on the training samples themselves: how well they are fitted, not"
        " forecast skill."
        if training.get("validated_on_training_samples")
        else ""
    )
    names = "; ".join(
        [f"{info['long_name'].lower()} ({name})" for name, info in config["targets"].items()]
        or ["none, trained on its own variables"]
    )
    heads = "; ".join(
        f"{name}: {_own_options(info['head']['options'])}"
        for name, info in config["targets"].items()
    )
    return f"""# Aurora, fine-tuned for {", ".join(config["targets"]) or "its own variables"}

New variables of Aurora {config["base"]["name"]!r}, trained with xaurora: {names}.
Precipitation is the total over six hours.

```python
import xaurora

tuned = xaurora.load("this folder")
forecast = ds.aurora.predict("24h", model=tuned)
```

| | |
|---|---|
| base | {config["base"]["name"]} ({config["base"]["class"]}), {config["base"]["hash"]} |
| strategy | {describe_strategy(config)} |
| heads | {heads or "none"} |
| fed back to the encoder | {", ".join(config["inputs"]) or "nothing"} |
| inputs | {variables} |
| levels | {levels} |
| trained on | {training["samples"]} samples from {training["start"]} to {training["end"]} |
| region | {training["region"]} |
| steps | {training["steps"]} of batch size {training["batch_size"]}, seed {training["seed"]} |
| created | {config["made"]} with {", ".join(f"{k} {v}" for k, v in config["versions"].items())} |

## Scores on the validation samples

| score | value |
|---|---|
{scores}{warning}

## Parameters

```
{strategies.render([strategies.Part(**part) for part in config["parameters"]])}
```
"""


def describe_strategy(config: Mapping[str, Any]) -> str:
    """Return the strategy and its options as text."""
    options = {
        k: v for k, v in config.get("strategy_options", {}).items() if k != "name" and v is not None
    }
    more = ", ".join(
        f"{k} {', '.join(map(str, v)) if isinstance(v, list | tuple) else v}"
        for k, v in options.items()
    )
    merged = ", merged into the weights" if config.get("merged") else ""
    return f"{config['strategy']}" + (f" ({more})" if more else "") + merged


def _own_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the head has: Aurora's own layer has only two."""
    return (
        {name: options[name] for name in ("family", "epsilon")}
        if options["family"] == OWN
        else options
    )
