"""All rivals, in the order of tables."""

from __future__ import annotations

from ddt_accel.rivals import (
    cem,
    dpcache,
    fewer_steps,
    foca,
    hicache,
    l2p,
    lemica,
    magcache,
    neural_solver,
    predit,
    published,
    soda,
    spectrum,
    taylor_seer,
    tcc,
    teacache,
)
from ddt_accel.rivals.rival import Rival

RIVALS = (
    Rival(name="fewer steps", source="named integrators", variants=fewer_steps.variants, shares=False),
    Rival(name="DDT's own", source="arXiv 2504.05741", variants=published.variants),
    Rival(name="TaylorSeer", source="arXiv 2503.06923", variants=taylor_seer.variants),
    Rival(name="HiCache", source="arXiv 2508.16984", variants=hicache.variants),
    Rival(name="FoCa", source="arXiv 2508.16211", variants=foca.variants),
    Rival(name="PrediT", source="arXiv 2602.18093", variants=predit.variants),
    Rival(name="Spectrum", source="arXiv 2603.01623", variants=spectrum.variants),
    Rival(name="L2P", source="arXiv 2604.26365", variants=l2p.variants),
    Rival(name="DPCache", source="arXiv 2602.22654", variants=dpcache.variants),
    Rival(name="LeMiCa", source="arXiv 2511.00090", variants=lemica.variants),
    Rival(name="SODA", source="arXiv 2603.07057", variants=soda.variants),
    Rival(name="CEM", source="arXiv 2512.23258", variants=cem.variants),
    Rival(name="TeaCache", source="arXiv 2411.19108", variants=teacache.variants),
    Rival(name="MagCache", source="arXiv 2506.09045", variants=magcache.variants),
    Rival(name="TCC", source="arXiv 2605.24870", variants=tcc.variants, along=tcc.consistent),
    Rival(
        name="neural solver", source="arXiv 2505.21114", variants=neural_solver.variants, shares=False, refitted=True
    ),
)
