"""Plain, slow ways to the same numbers, and what a pass held in memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def plain_class_logits(backbone, context, cue_ids, offsets=None):
    """One unpadded, uncached forward pass of the whole text for each label word; full vocabulary, in float64.

    `offsets` `[n_layers, S, d]` are added by hooks on the model's own layers, at the cue's place in the text.
    """
    rows = []
    for piece in context.pieces:
        ids = [*piece.before, *cue_ids, *piece.after]
        handles = []
        if offsets is not None:
            start = len(piece.before)
            for number, layer in enumerate(own_layers(backbone.model)):
                handles.append(layer.register_forward_pre_hook(_adds(offsets[number], start)))
        row = [_class_score(backbone.model, ids, words) for words in context.renderer.label_ids]
        for handle in handles:
            handle.remove()
        rows.append(torch.stack(row))
    return torch.stack(rows)


def own_layers(model):
    """The layers by their place in each architecture."""
    body = model.base_model
    if hasattr(body, "h"):
        return body.h
    return body.encoder.layer if hasattr(body, "encoder") else body.layers


def _adds(offset, start):
    def hook(module, args):
        hidden = args[0].clone()
        hidden[:, start : start + len(offset)] += offset
        return (hidden, *args[1:])

    return hook


def _class_score(model, ids, words):
    scores = []
    for word in words:
        logits = model(torch.tensor([[*ids, *word]])).logits[0].double()
        # The first token's normaliser is the same for all words and left out on both sides.
        score = logits[len(ids) - 1, word[0]]
        for n in range(1, len(word)):
            score = score + logits[len(ids) - 1 + n].log_softmax(-1)[word[n]]
        scores.append(score)
    return torch.stack(scores).logsumexp(0)


class Tensors(TorchDispatchMode):
    """Notes the shape of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.shapes |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def saved_bytes(run):
    """Bytes of the tensors that `run` saves for a backward pass, each storage counted once."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        keep = run()
    assert keep.requires_grad
    return storages
