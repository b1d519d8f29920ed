"""What drawn pictures are worth beside a reference: all figures that papers of the field report."""

from __future__ import annotations

from dataclasses import dataclass

from ddt_accel.distribution.bootstrap import RESAMPLES, Difference, influences, paired_difference
from ddt_accel.distribution.features import Features
from ddt_accel.distribution.frechet import frechet_distance
from ddt_accel.distribution.inception import POOL
from ddt_accel.distribution.inception_score import SPLITS, InceptionScore, inception_score
from ddt_accel.distribution.kernel import KernelDistance, kernel_distance
from ddt_accel.distribution.neighbours import NEIGHBOURS, Coverage, coverage
from ddt_accel.distribution.statistics import Statistics
from ddt_accel.stages import OnStage, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What is compared with: statistics that somebody has published, features of its pictures, or both.

    Published statistics are often of more pictures than come along: they count where there are both.
    """

    statistics: Statistics
    features: Features | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of drawn pictures; None for what cannot be known: `notes` say why, and what else to bear in mind."""

    fid: float
    sfid: float | None
    inception_score: InceptionScore | None
    coverage: Coverage | None
    kid: KernelDistance | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Two samplers of the same noises: how far apart their pictures are, and their distances to the reference."""

    between: float  # the FID of one to the other
    fid: float  # of the second to the reference
    difference: Difference  # the first's FID less the second's


def evaluate(drawn: Features, reference: Reference, on_stage: OnStage = silent) -> Evaluation:
    """Compares the features of drawn pictures with a reference."""
    advance = on_stage("comparing", 5)
    statistics, real = reference.statistics, reference.features
    fid = frechet_distance(drawn.pool_moments, statistics.pool)
    advance()
    sfid = None if statistics.spatial is None else frechet_distance(drawn.spatial, statistics.spatial)
    advance()
    score = None
    if drawn.logits is not None and len(drawn.logits) >= SPLITS:
        score = inception_score(drawn.logits)
    advance()
    kid, near = None, None
    enough = real is not None and min(len(drawn.pool), len(real.pool)) > NEIGHBOURS
    if real is not None and enough:
        kid = kernel_distance(drawn.pool, real.pool)
    advance()
    if real is not None and enough:
        near = coverage(drawn.pool, real.pool)
    advance()
    return Evaluation(
        fid=fid, sfid=sfid, inception_score=score, coverage=near, kid=kid, notes=tuple(_notes(drawn, reference))
    )


def compare(
    drawn: Features,
    other: Features,
    reference: Reference,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_stage: OnStage = silent,
) -> Pairing:
    """Puts a second sampler's pictures of the same noises beside the first's.

    Where the reference's pictures are known, they are resampled, too; where published statistics stand for them, the
    interval is that of the noises alone.
    """
    advance = on_stage("comparing pairs", 4)
    between = frechet_distance(drawn.pool_moments, other.pool_moments)
    advance()
    theirs = None
    if reference.features is not None and reference.statistics.pool is reference.features.pool_moments:
        theirs = reference.features.pool
    ours = influences(drawn.pool, reference.statistics.pool, theirs, own=drawn.pool_moments)
    advance()
    others = influences(other.pool, reference.statistics.pool, theirs, own=other.pool_moments)
    advance()
    difference = paired_difference(ours, others, resamples=resamples, seed=seed)
    advance()
    return Pairing(between=between, fid=others.distance, difference=difference)


def _notes(drawn: Features, reference: Reference) -> list[str]:
    notes = []
    counts = {"": len(drawn.pool), " of the reference": reference.statistics.count}
    if few := [f"{count} pictures{whose}" for whose, count in counts.items() if count is not None and count <= POOL]:
        notes.append(
            f"{' and '.join(few)} do not fill the {POOL} dimensions of a covariance: FID comes out too high, and "
            "compares only with FIDs of as many."
        )
    if reference.statistics.network is None:
        notes.append(
            "The reference's statistics are TensorFlow's: its pixels and sums differ from PyTorch's by 0.01 to 0.1 of "
            "FID."
        )
    if reference.statistics.spatial is None:
        notes.append("No sFID: the reference has no mu_s and sigma_s.")
    if drawn.logits is None:
        notes.append(
            "No Inception Score: the network of the extra fid has no classifier; torch-fidelity's weights have "
            "(--inception FILE)."
        )
    elif len(drawn.logits) < SPLITS:
        notes.append(f"No Inception Score: it takes {SPLITS} pictures or more.")
    if reference.features is None:
        notes.append("No KID, precision and recall: they take the reference's pictures, and these are statistics.")
    elif min(len(drawn.pool), len(reference.features.pool)) <= NEIGHBOURS:
        notes.append(f"No KID, precision and recall: they take more than {NEIGHBOURS} pictures of each.")
    return notes
