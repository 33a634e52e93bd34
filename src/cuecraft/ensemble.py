"""An ensemble: several prompts over one backbone, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.answering import Answering, TunedPrompt, class_probabilities
from cuecraft.data.texts import Texts
from cuecraft.errors import ArtifactError
from cuecraft.method import Event
from cuecraft.prompts import load_artifact, member_folders
from cuecraft.task import Task


class PromptEnsemble:
    """Several prompts for one task over one backbone; a text's probabilities are the mean of theirs.

    Averaging over seeds takes out most of what is luck of a seed (Lakshminarayanan et al., NeurIPS 2017,
    arXiv 1612.01474). Texts are read once for all members that have the same template and label words.

    Args:
        members: fitted classifiers, or tuned prompts, of the same classes over the same backbone.

    Raises:
        ArtifactError: no members, or of other classes.
    """

    def __init__(self, members: Sequence[Answering]) -> None:
        if not members:
            raise ArtifactError("an ensemble needs at least one prompt; give one")
        first = members[0]
        for member in members[1:]:
            if member.classes_.tolist() != first.classes_.tolist():
                theirs, own = (", ".join(map(str, one.classes_.tolist())) for one in (member, first))
                raise ArtifactError(f"prompts of other classes cannot be averaged: {own} and {theirs}")
            if member.backbone_ is not first.backbone_:
                raise ArtifactError("prompts over several backbones cannot be averaged; load them over one")
        self.members = list(members)
        self.classes_ = first.classes_

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> PromptEnsemble:
        """Read the artifacts that `tune --seeds` wrote into a folder; arguments as for `PromptClassifier.load`.

        Raises:
            ArtifactError: there is none, or one is damaged, or made for another backbone.
        """
        folders = member_folders(folder)
        if not folders:
            raise ArtifactError(f"{folder}: holds no artifacts seed-0, seed-1, ...; check the path")
        first = TunedPrompt.load(folders[0], model, device, local_files_only, dtype)
        others = [TunedPrompt(load_artifact(path), first.backbone_) for path in folders[1:]]
        return cls([first, *others])

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> np.ndarray:
        """Return class probabilities `[N, C]`, columns as in `classes_`: the mean of the members'."""
        texts = list(texts) if isinstance(texts, Iterator) else texts  # each group reads them
        groups: dict[Task, list[Answering]] = {}
        for member in self.members:
            groups.setdefault(member.task_, []).append(member)
        parts = [
            class_probabilities(own[0].backbone_, task, [member.candidate_ for member in own], texts, report)
            for task, own in groups.items()
        ]
        mean: np.ndarray = np.concatenate(parts).mean(0)
        return mean

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether it is cut at its end to fit, in front of some member at least."""
        texts = list(texts) if isinstance(texts, Iterator) else texts
        found: np.ndarray = np.any([member.truncated(texts) for member in self.members], axis=0)
        return found

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the likeliest class of each text `[N]`."""
        labels: np.ndarray = self.classes_[self.predict_proba(texts).argmax(1)]
        return labels
