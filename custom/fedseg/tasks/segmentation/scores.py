"""What the scores of segmentation are called, in which range they lie, and what they mean to a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedseg.tasks.objective import Score
from fedseg.tasks.segmentation.calibration import BAND, BINS

DICE = Score(
    "dice",
    "Dice",
    highest=1.0,
    hint="1 is perfect, 0 is no overlap",
    meaning="Twice the shared volume of prediction and reference over the sum of their volumes. It is unforgiving to "
    "small structures: one voxel matters more there.",
)
HD95 = Score(
    "hd95",
    "HD95",
    "mm",
    higher_is_better=False,
    form=".1f",
    hint="smaller is better",
    meaning="The distance in millimetres within which 95\N{NO-BREAK SPACE}% of one surface lies from the other; "
    "computed in both directions, the larger counts. Always on the image's original grid.",
    caveat="A region that was missed or invented altogether counts as a very large distance and dominates such a mean.",
)
NSD = Score(
    "nsd",
    "NSD",
    main=False,
    highest=1.0,
    hint="1: all borders within the tolerance",
    meaning="Normalised surface distance: the share of both surfaces that lies within the task's tolerance in "
    "millimetres of the other surface.",
)
VOLUME_ERROR = Score(
    "volume_error",
    "Volume error",
    higher_is_better=False,
    zero_is_best=True,
    main=False,
    lowest=-1.0,
    form="+.2f",
    hint="0 is best; above 0 is too large",
    meaning="Volume of the prediction minus that of the reference, over that of the reference. Errors of both signs "
    "cancel in a mean. Cases whose reference is empty have none.",
)
VOLUME_DIFFERENCE = Score(
    "volume_difference",
    "Volume difference",
    "ml",
    higher_is_better=False,
    zero_is_best=True,
    main=False,
    lowest=-math.inf,
    form="+.2f",
    hint="0 is best; above 0 is too large",
    meaning="Volume of the prediction minus that of the reference in millilitres. Differences of both signs cancel in "
    "a mean.",
)
LESION_DICE = Score(
    "lesion_dice",
    "Lesion-wise Dice",
    main=False,
    highest=1.0,
    hint="each lesion counts the same",
    meaning="The mean Dice over the lesions of a case, where a missed and an invented lesion count 0, as in the BraTS "
    "2023 challenges: a small lesion counts as much as a large one.",
)
LESION_HD95 = Score(
    "lesion_hd95",
    "Lesion-wise HD95",
    "mm",
    higher_is_better=False,
    main=False,
    form=".1f",
    hint="each lesion counts the same",
    meaning="The mean HD95 over the lesions of a case, where a missed and an invented lesion count the diagonal of the "
    "image, as in the BraTS 2023 challenges.",
)
LESION_F1 = Score(
    "lesion_f1",
    "Lesion F1",
    main=False,
    highest=1.0,
    hint="1: all lesions found, none invented",
    meaning="Detection of lesions: twice the found ones over twice the found ones plus the missed and invented ones.",
)
LESIONS_FOUND = Score(
    "lesions_found",
    "Lesions found",
    main=False,
    highest=1.0,
    hint="share of the lesions of the reference",
    meaning="The share of the reference's lesions that a predicted piece touches. Cases without a lesion have none.",
)
LESIONS_INVENTED = Score(
    "lesions_invented",
    "Lesions invented",
    higher_is_better=False,
    main=False,
    form=".1f",
    hint="pieces in a case that are no lesion",
    meaning="How many predicted pieces of a case touch no lesion of the reference.",
)
ECE = Score(
    "ece",
    "Calibration error",
    higher_is_better=False,
    main=False,
    highest=1.0,
    hint="0: probabilities mean what they say",
    meaning="Expected calibration error: by how much the predicted probabilities of a region differ from how often it "
    f"is there, over the voxels within {BAND:.0f}\N{NO-BREAK SPACE}mm of a border of the reference or the prediction "
    f"({BINS} bins). Cases in which both are empty have none.",
)
SCORES = (
    DICE,
    HD95,
    NSD,
    VOLUME_ERROR,
    VOLUME_DIFFERENCE,
    LESION_DICE,
    LESION_HD95,
    LESION_F1,
    LESIONS_FOUND,
    LESIONS_INVENTED,
    ECE,
)
GLOSSARY: Mapping[str, str] = {
    "Empty regions": "A patient may have no voxel of a region, such as no enhancing tumour. The BraTS convention: if "
    "prediction and reference are both empty, Dice is 1 and HD95 is 0; if only one is, Dice is 0 and HD95 is the "
    'diagonal of the image (373\N{NO-BREAK SPACE}mm for a BraTS image). The convention "exclude" leaves cases with an '
    "empty reference out of the means instead."
}
