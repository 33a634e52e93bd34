"""The model card that lies in an artifact's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuecraft.prompts.manifest import Manifest

#: Key of an event of the trace: what users of the prompt have to know.
CAVEAT = "caveat"


def model_card(manifest: Manifest, trace: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the artifact's README in Markdown, with the caveats of its trace first."""
    caveats = "".join(f"\n**Warning: {event[CAVEAT]}.**\n" for event in trace if CAVEAT in event)
    task, backbone, prompt = manifest.task, manifest.backbone, manifest.prompt
    words = [f"| {label} | {', '.join(words)} |" for label, words in zip(task.labels, task.label_words, strict=True)]
    metrics = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in manifest.metrics.items()]
    data = [f"| {name} | {split.rows} | `{split.sha256[:16]}` |" for name, split in manifest.data.items()]
    found = f"\nFound on the way, in words: `{manifest.words!r}`\n" if manifest.words else ""
    nearest = f"the {task.nearest} nearest of " if task.nearest else ""
    shots = f"- in front of every text: {nearest}{len(task.shots)} labelled examples (`task.shots` in manifest.json)\n"
    examples = shots if task.shots else ""
    count = f"\n{prompt.count} prompts answer together, this one and others: their probabilities are averaged.\n"
    together = count if prompt.count > 1 else ""
    measured = ["| measured | |", "| --- | --- |", *metrics, ""] if metrics else []
    return f"""# A tuned prompt for {backbone.name}
{caveats}
Made by cuecraft with `{manifest.method}`, seed {manifest.seed}. The backbone
stays as it is; this folder holds a prompt of {prompt.length} tokens.
{together}
- prompt ({prompt.kind}): `{prompt.text!r}`
- template: `{task.template!r}`
{examples}- backbone: {backbone.name} ({backbone.head}), hash `{backbone.sha256[:16]}`
{found}
| class | label words |
| --- | --- |
{chr(10).join(words)}

{"".join(f"{line}{chr(10)}" for line in measured)}| data | rows | hash |
| --- | --- | --- |
{chr(10).join(data)}

```bash
cuecraft predict THIS_FOLDER "a text to classify"
```

The prompt answers for the kind of text it was tuned on, with the labels above and no others. It inherits the
backbone's licence, its knowledge and its biases. It is not a safeguard against text written to mislead it.
"""
