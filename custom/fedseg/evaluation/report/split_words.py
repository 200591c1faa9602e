"""What a report says of split training: which models were scored, what left the sites, and why nothing was probed."""

from __future__ import annotations

from fedseg.evaluation.summary import Summary, part

_LABELS = {
    "shared": "The labels of these patches were sent to the server as they are.",
    "private": (
        "Labels stayed at the sites in form only: the gradients that the sites send at the predictions tell the label "
        "of each voxel to whoever looks for it."
    ),
}
_PARTS = {
    "averaged": "After each round every site sent its part of the network to the server, as the change of its weights.",
    "summed": "In each step every site sent the gradients of its part of the network to the server.",
    "handed_on": "After its turn every site sent its part of the network to the server, which gave it to the next one.",
}


def own_models(summary: Summary) -> bool:
    """Whether each site has a model of its own, so that there is no global one."""
    return part(summary, "split").get("site_update") == "separate"


def private_layers(summary: Summary) -> bool:
    """Whether each site keeps some layers for itself, as in FedBN, so that its final model is another."""
    named = part(summary, "privacy").get("filters") or ()
    return any(each["filter"] in ("PrivateLayers", "SharedLayers") and not each.get("frozen") for each in named)


def submitted_parts(summary: Summary) -> list[str]:
    """Sites with parts of their own that gave these to the server at the end."""
    return sorted(part(summary, "final", "models")) if own_models(summary) else []


def leaving_words(summary: Summary) -> list[str]:
    """What left the sites besides features, probed or not; nothing for ordinary training."""
    split = part(summary, "split")
    if not split:
        return []
    parts = _own_part_words(summary) if own_models(summary) else _PARTS.get(str(split.get("site_update")))
    return [text for text in (_LABELS.get(str(split.get("labels"))), parts) if text]


def unmeasured_words(summary: Summary) -> str:
    """Why a run of split training has no probe, and what would give one."""
    trust = "without such a measurement the server is to be trusted with features as with images."
    if own_models(summary) and not submitted_parts(summary) and not part(summary, "final").get("model"):
        return (
            "This was not measured and cannot be: no site gave its part of the network to the server at the end, as "
            "the policies of the sites do not let it out without the rule submit_model, so that the run has no whole "
            "model to probe. This does not keep the server from it: it has the features, and could still learn to "
            f"invert them; {trust}"
        )
    return (
        "This was not measured. fedseg probe-split RUN --data DIR does it, on the images of at least two sites; "
        f"{trust}"
    )


def _own_part_words(summary: Summary) -> str:
    start = "Each site trained its part of the network for itself, from a beginning that the server knows."
    sites = submitted_parts(summary)
    if not sites:
        return f"{start} No site gave the trained part away: this takes the rule submit_model of its policy."
    return (
        f"{start} At the end the server got the part of {', '.join(sites)}: a site submits it unless its policy lacks "
        "the rule submit_model. With it the server can look into features that it has kept."
    )
